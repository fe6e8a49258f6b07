"""What is kept of a signed-in browser: the row."""

from __future__ import annotations

import contextlib
import datetime as dt
import typing as t
import uuid

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from sqlalchemy.dialects import mysql, postgresql

from . import _clock as clock
from ._compat.databases import Database
from ._records.base import STALE_KEY
from ._user_model import key_of
from .errors import ConfigurationError

#: Where the metadata of the users keep the table that was defined in them: that can be done only
#: once, however many apps are made.
_DEFINED = "flask_session_registry"

# Plain types with variants, because a migration can't import a type of ours. MariaDB drops the
# microseconds of a DATETIME unless told otherwise.
_MOMENT = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")

#: Rows are written where they stand: a page of PostgreSQL has room for their next versions.
#: SQLAlchemy 2.0 can't say so.
_PAGES: dict[str, t.Any] = (
    {"postgresql_with": {"fillfactor": 50}}
    if "with" in dict(postgresql.dialect.construct_arguments or [])[sa.Table]
    else {}
)


class UserSessionMixin:
    """The columns of a user session. A class of your own adds ``user_id``::

        class UserSession(UserSessionMixin, db.Model):
            user_id = mapped_column(
                ForeignKey("user.id", onupdate="CASCADE", ondelete="SET NULL"), index=True
            )

    All times are aware UTC, on every database.
    """

    #: Public name of the user session: neither secret nor guessable.
    id: sa_orm.Mapped[uuid.UUID] = sa_orm.mapped_column(sa.Uuid, primary_key=True)
    #: How often the session id was rotated. A cookie of an earlier generation is dead.
    generation: sa_orm.Mapped[int] = sa_orm.mapped_column(sa.Integer, nullable=False)
    #: Key of the entry in the session store (a hash, see ``HASH_SESSION_IDS``); ``None`` for
    #: signed cookies.
    store_id: sa_orm.Mapped[t.Optional[str]] = sa_orm.mapped_column(sa.String(255), index=True)
    #: The key before the last rotation: how a late request with the old cookie is told apart.
    previous_store_id: sa_orm.Mapped[t.Optional[str]] = sa_orm.mapped_column(
        sa.String(255), index=True
    )
    #: IP address when last seen, or ``None`` where the server gave none that is one.
    ip_address: sa_orm.Mapped[t.Optional[str]] = sa_orm.mapped_column(sa.String(45))
    #: User agent when last seen: 512 characters at most, control characters taken out. It is
    #: what a stranger sent: escape it.
    user_agent: sa_orm.Mapped[t.Optional[str]] = sa_orm.mapped_column(sa.String(512))
    created_at: sa_orm.Mapped[dt.datetime] = sa_orm.mapped_column(_MOMENT, nullable=False)
    last_seen_at: sa_orm.Mapped[dt.datetime] = sa_orm.mapped_column(_MOMENT, nullable=False)
    #: When the session id was last changed.
    rotated_at: sa_orm.Mapped[t.Optional[dt.datetime]] = sa_orm.mapped_column(_MOMENT)
    #: When the user last gave a password.
    authenticated_at: sa_orm.Mapped[dt.datetime] = sa_orm.mapped_column(_MOMENT, nullable=False)
    #: Until when a "remember me" cookie can renew the session; ``None``: there is none.
    remember_until: sa_orm.Mapped[t.Optional[dt.datetime]] = sa_orm.mapped_column(_MOMENT)
    #: SHA-256 of the stored password hash that the session was opened with, in hexadecimal.
    fingerprint: sa_orm.Mapped[t.Optional[str]] = sa_orm.mapped_column(sa.String(64))
    #: When the session ended; ``None``: it has not.
    revoked_at: sa_orm.Mapped[t.Optional[dt.datetime]] = sa_orm.mapped_column(_MOMENT)
    #: Why it ended: ``"password_changed"``, ``"logged_out"``, ``"replaced"``, or what
    #: :meth:`SessionRegistry.revoke` was told. Two kinds of rows without a user are no sessions:
    #: ``"rotated"`` keeps the key of an entry that is to be deleted, ``"barred"`` says who must not
    #: be adopted.
    revoked_reason: sa_orm.Mapped[t.Optional[str]] = sa_orm.mapped_column(sa.String(64))
    #: Which revocation ended it. All sessions that one revocation ended carry the same value.
    revocation: sa_orm.Mapped[t.Optional[uuid.UUID]] = sa_orm.mapped_column(sa.Uuid)
    #: When the entry of the ended session was deleted from the session store.
    purged_at: sa_orm.Mapped[t.Optional[dt.datetime]] = sa_orm.mapped_column(_MOMENT)

    if t.TYPE_CHECKING:
        user_id: t.Any

    def __repr__(self) -> str:
        # Before that of a base of the app's own, which might show all columns. What is expired is
        # not loaded for it.
        return f"<{type(self).__name__} {vars(self).get('id')}>"


def is_session(model: type[t.Any]) -> sa.ColumnElement[bool]:
    """Whether a row is, or was, somebody's session; a user who is deleted leaves it without one."""
    owner, reason = model.user_id, model.revoked_reason
    is_bar = sa.and_(owner.is_(None), reason.is_not_distinct_from("barred"))
    return sa.and_(reason.is_distinct_from(STALE_KEY), sa.not_(is_bar))


def _make_times_aware(row: UserSessionMixin, *_: object) -> None:
    values = vars(row)
    for name, value in values.items():
        if isinstance(value, dt.datetime):
            values[name] = clock.as_utc(value)


def _note_table(mapper: sa_orm.Mapper[t.Any], _: type) -> None:
    # Not before a table is defined: Alembic takes a fifth of a second to import.
    from ._migrations import drop_with_its_indexes

    drop_with_its_indexes(t.cast(sa.Table, mapper.local_table))


sa.event.listen(UserSessionMixin, "after_mapper_constructed", _note_table, propagate=True)
sa.event.listen(UserSessionMixin, "load", _make_times_aware, propagate=True)
sa.event.listen(UserSessionMixin, "refresh", _make_times_aware, propagate=True)


def define_user_session(database: Database, user_model: type[t.Any]) -> type[t.Any]:
    """Define the table ``user_sessions`` beside the table of the users.

    Called again for the same user model, it returns the same class.

    :raises ConfigurationError: the app has a table of that name, or the users' key has several
        columns, or the table was defined for another user model.
    """
    users = t.cast("sa.Table", sa.inspect(user_model).local_table)
    defined: tuple[type[t.Any], type[t.Any]] | None = users.metadata.info.get(_DEFINED)
    if defined is not None:
        if defined[0] is user_model:
            return defined[1]
        raise ConfigurationError(
            f"The table 'user_sessions' of this 'db' belongs to the user model"
            f" '{defined[0].__name__}', not to '{user_model.__name__}'. Pass a class of your own as"
            " 'session_model' for one of them."
        )
    key_of(user_model)
    key = next(iter(users.primary_key))
    name = "user_sessions" if users.schema is None else f"{users.schema}.user_sessions"
    if name in users.metadata.tables:
        raise ConfigurationError(
            "There is a table 'user_sessions' already. Pass a class of your own, built on"
            " 'UserSessionMixin', as 'session_model', with another '__tablename__'."
        )
    model = type(
        "UserSession",
        (UserSessionMixin, database.base_for(user_model)),
        {
            "__module__": __name__,
            "__doc__": "One signed-in browser of one user.",
            "__tablename__": "user_sessions",
            "__table_args__": {"schema": users.schema, **_PAGES},
            "__bind_key__": users.metadata.info.get("bind_key"),
            "user_id": sa_orm.mapped_column(
                _type_of_reference(key),
                sa.ForeignKey(key, onupdate="CASCADE", ondelete="SET NULL"),
                index=True,
            ),
        },
    )
    users.metadata.info[_DEFINED] = (user_model, model)
    return model


def _type_of_reference(key: sa.Column[t.Any]) -> sa.types.TypeEngine[t.Any]:
    """The type of a column that refers to a key.

    Text has the charset and the collation that the key has by its table, else MariaDB makes no
    foreign key. Not the whole table, whose user agents may hold any character.
    """
    kind = key.type
    has_own = getattr(kind, "collation", None) or getattr(kind, "charset", None)
    if not isinstance(kind, sa.String) or isinstance(kind, sa.Enum) or has_own:
        return kind
    for dialect in ("mysql", "mariadb"):
        options = key.table.dialect_options[dialect].items()
        found = {name.lower().removeprefix("default_"): value for name, value in options}
        charset, collation = found.get("charset", found.get("character_set")), found.get("collate")
        if charset or collation:
            text = mysql.CHAR if isinstance(kind, sa.CHAR) else mysql.VARCHAR
            variant = text(kind.length, charset=charset, collation=collation)
            # What the app says of its key for this dialect counts.
            with contextlib.suppress(sa.exc.ArgumentError):
                kind = kind.with_variant(variant, dialect)
    return kind
