"""The tables of the registry, as mapped classes."""

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
from ._user_model import key_of
from .errors import ConfigurationError

#: The key under which the users' metadata keeps the class that was defined in it. A table can be
#: defined only once, however many apps are created.
_DEFINED = "flask_session_registry"

#: A store key that a session has left for good, until its entry is deleted.
STALE_KEY = "stale_key"

#: A store key that a session has left, and its browser may come back to.
LINKED_KEY = "linked_key"

# Plain types with variants, because a migration can't import a type of ours. By default, MariaDB
# drops the microseconds of a DATETIME.
_MOMENT = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")

#: PostgreSQL leaves room in each page for the next versions of its rows, so that updates stay in
#: their page. SQLAlchemy 2.0 has no option for it.
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

    :class:`UserSessionRecord` says what each column holds. All times are aware UTC, on every
    database.
    """

    id: sa_orm.Mapped[uuid.UUID] = sa_orm.mapped_column(sa.Uuid, primary_key=True)
    generation: sa_orm.Mapped[int] = sa_orm.mapped_column(sa.Integer, nullable=False)
    store_id: sa_orm.Mapped[t.Optional[str]] = sa_orm.mapped_column(sa.String(255), index=True)
    ip_address: sa_orm.Mapped[t.Optional[str]] = sa_orm.mapped_column(sa.String(45))
    user_agent: sa_orm.Mapped[t.Optional[str]] = sa_orm.mapped_column(sa.String(512))
    created_at: sa_orm.Mapped[dt.datetime] = sa_orm.mapped_column(_MOMENT, nullable=False)
    last_seen_at: sa_orm.Mapped[dt.datetime] = sa_orm.mapped_column(_MOMENT, nullable=False)
    rotated_at: sa_orm.Mapped[t.Optional[dt.datetime]] = sa_orm.mapped_column(_MOMENT)
    authenticated_at: sa_orm.Mapped[dt.datetime] = sa_orm.mapped_column(_MOMENT, nullable=False)
    remember_until: sa_orm.Mapped[t.Optional[dt.datetime]] = sa_orm.mapped_column(_MOMENT)
    fingerprint: sa_orm.Mapped[t.Optional[str]] = sa_orm.mapped_column(sa.String(64))
    revoked_at: sa_orm.Mapped[t.Optional[dt.datetime]] = sa_orm.mapped_column(_MOMENT)
    revoked_reason: sa_orm.Mapped[t.Optional[str]] = sa_orm.mapped_column(sa.String(64))
    revocation: sa_orm.Mapped[t.Optional[uuid.UUID]] = sa_orm.mapped_column(sa.Uuid)
    purged_at: sa_orm.Mapped[t.Optional[dt.datetime]] = sa_orm.mapped_column(_MOMENT)

    if t.TYPE_CHECKING:
        user_id: t.Any
        #: The mapped class of its tombstones. Not in the table's ``info``, which Alembic would
        #: write into migrations.
        __tombstones__: type[TombstoneMixin]

    def __repr__(self) -> str:
        # It comes before that of the app's own base, which might show all columns. It doesn't load
        # expired attributes.
        return f"<{type(self).__name__} {vars(self).get('id')}>"


class UserSessionRecord(t.Protocol):
    """A user session, as the registry returns it, with the attributes that it always has.

    ``sessions.active()`` and ``sessions.current`` return the same attributes wherever the user
    sessions are recorded: on a row of the app's database, or on a copy of what Redis holds. They
    are for reading: a session changes by the methods of :class:`SessionRegistry`. All times are
    aware UTC.
    """

    @property
    def id(self) -> uuid.UUID:
        """Public id of the user session: neither secret nor guessable."""

    @property
    def user_id(self) -> t.Any:
        """Primary key of the user, of the type that it has; ``None`` if the user was deleted."""

    @property
    def ip_address(self) -> str | None:
        """IP address when last seen; ``None`` if the server gave no valid one."""

    @property
    def user_agent(self) -> str | None:
        """User agent when last seen: at most 512 characters, without control characters.

        Untrusted input: escape it.
        """

    @property
    def created_at(self) -> dt.datetime:
        """When the session began: at the login, or when the registry first saw it."""

    @property
    def last_seen_at(self) -> dt.datetime:
        """When the session was last used, recorded at most once per ``TOUCH_INTERVAL``."""

    @property
    def rotated_at(self) -> dt.datetime | None:
        """When the session id was last changed; ``None`` if not since it began."""

    @property
    def authenticated_at(self) -> dt.datetime:
        """When the user last gave a password; 1970-01-01 if before the registry."""

    @property
    def remember_until(self) -> dt.datetime | None:
        """Until when a "remember me" cookie can restore the session; ``None`` if there is none."""

    @property
    def revoked_at(self) -> dt.datetime | None:
        """When the session ended; ``None`` if it hasn't."""

    @property
    def revoked_reason(self) -> str | None:
        """Why it ended: ``"password_changed"``, ``"logged_out"``, ``"replaced"``, or the reason
        given to :meth:`SessionRegistry.revoke`; ``None`` if it hasn't.
        """

    @property
    def revocation(self) -> uuid.UUID | None:
        """The revocation that ended it: the same value for all sessions that it ended.

        ``None`` if no revocation ended it.
        """

    @property
    def generation(self) -> int:
        """How often the session id was rotated. A cookie of an earlier generation is refused."""

    @property
    def store_id(self) -> str | None:
        """Key of the entry in the session store; ``None`` for signed cookies.

        By default a hash of the session id. Without ``HASH_SESSION_IDS``, it gives access to the
        session: don't show or log it.
        """

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the stored password hash that the session was opened with, in hexadecimal.

        ``None`` if the users have no password attribute. Don't show or log it.
        """

    @property
    def purged_at(self) -> dt.datetime | None:
        """When the entry of the ended session was deleted from the session store."""


class TombstoneMixin:
    """The columns of a tombstone, in a table beside that of the user sessions.

    It refers to no other table: it outlives the session that it is about.
    """

    id: sa_orm.Mapped[uuid.UUID] = sa_orm.mapped_column(sa.Uuid, primary_key=True)
    #: ``"stale_key"``, ``"linked_key"`` or ``"adoption_block"``.
    kind: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(16), nullable=False)
    #: The user session that has left a key behind.
    user_session_id: sa_orm.Mapped[t.Optional[uuid.UUID]] = sa_orm.mapped_column(
        sa.Uuid, index=True
    )
    #: The key.
    store_id: sa_orm.Mapped[t.Optional[str]] = sa_orm.mapped_column(sa.String(255), index=True)
    created_at: sa_orm.Mapped[dt.datetime] = sa_orm.mapped_column(_MOMENT, nullable=False)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {vars(self).get('id')}>"


def _make_times_aware(row: UserSessionMixin, *_: object) -> None:
    values = vars(row)
    for name, value in values.items():
        if isinstance(value, dt.datetime):
            values[name] = clock.as_utc(value)


def _complete_table(mapper: sa_orm.Mapper[t.Any], cls: type[UserSessionMixin]) -> None:
    """Define the table of the tombstones beside one of user sessions."""
    if mapper.inherits is not None:
        return
    # Only when a table is defined: importing Alembic takes a fifth of a second.
    from ._migrations import drop_with_its_indexes

    table = t.cast(sa.Table, mapper.local_table)
    cls.__tombstones__ = _define_tombstones(mapper, cls, table)
    drop_with_its_indexes(table)
    drop_with_its_indexes(table_of(cls.__tombstones__))


def _define_tombstones(
    mapper: sa_orm.Mapper[t.Any], cls: type, table: sa.Table
) -> type[TombstoneMixin]:
    name = f"{table.name.removesuffix('s')}_tombstones"
    if (name if table.schema is None else f"{table.schema}.{name}") in table.metadata.tables:
        raise ConfigurationError(
            f"The registry needs the name '{name}' for its own table, beside '{table.name}', but"
            " the app already has one. Rename yours."
        )
    members = {
        "__module__": cls.__module__,
        "__tablename__": name,
        "__table_args__": {"schema": table.schema},
        "metadata": table.metadata,
        # In the collation of the session's own key: the two are compared.
        "store_id": sa_orm.mapped_column(_type_of_reference(mapper.columns.store_id), index=True),
    }
    return mapper.registry.mapped(type(f"{cls.__name__}Tombstone", (TombstoneMixin,), members))


sa.event.listen(UserSessionMixin, "after_mapper_constructed", _complete_table, propagate=True)
sa.event.listen(UserSessionMixin, "load", _make_times_aware, propagate=True)
sa.event.listen(UserSessionMixin, "refresh", _make_times_aware, propagate=True)


def define_user_session(database: Database, user_model: type[t.Any]) -> type[t.Any]:
    """Define the tables ``user_sessions`` and ``user_session_tombstones`` beside the users' table.

    Called again for the same user model, return the same class.

    :raises ConfigurationError: the app has a table of that name, the users' key has several
        columns, the users are not in a table, or the table was defined for another user model.
    """
    users = sa.inspect(user_model).local_table
    if not isinstance(users, sa.Table):
        raise ConfigurationError(
            f"The user model '{user_model.__name__}' is mapped to a query or a join, which no"
            " foreign key can refer to. Pass a class of your own as 'session_model', built on"
            " 'UserSessionMixin', whose 'user_id' refers to the table with the users' key."
        )
    defined: tuple[type[t.Any], type[t.Any]] | None = users.metadata.info.get(_DEFINED)
    if defined is not None:
        if defined[0] is user_model:
            return defined[1]
        raise ConfigurationError(
            f"The table 'user_sessions' of this 'db' belongs to the user model"
            f" '{defined[0].__name__}', not to '{user_model.__name__}'. Pass a class of your own as"
            " 'session_model' for one of the two."
        )
    key_of(user_model)
    key = next(iter(users.primary_key))
    name = "user_sessions" if users.schema is None else f"{users.schema}.user_sessions"
    if name in users.metadata.tables:
        raise ConfigurationError(
            "There is a table 'user_sessions' already. Pass a class of your own as 'session_model',"
            " built on 'UserSessionMixin' and with another '__tablename__'."
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


def table_of(model: type[t.Any]) -> sa.Table:
    """Return the table of a mapped class."""
    return t.cast(sa.Table, sa.inspect(model).local_table)


def _type_of_reference(key: sa.Column[t.Any]) -> sa.types.TypeEngine[t.Any]:
    """Return the type of a column that refers to a key.

    Text gets the charset and the collation that the key has from its table: MariaDB requires it of
    a foreign key. The other columns don't: user agents may hold any character.
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
            # A variant that the app has given its key for this dialect takes precedence.
            with contextlib.suppress(sa.exc.ArgumentError):
                kind = kind.with_variant(variant, dialect)
    return kind
