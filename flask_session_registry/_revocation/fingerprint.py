"""With which credential was a session opened?

The fingerprint of a session is SHA-256 of the stored password hash. It is compared, never
reversed: it tells nothing that the password hash beside it in the database does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import typing as t
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from sqlalchemy.sql import visitors

from .._compat.flask import request_context
from ..errors import ConfigurationError, SessionRegistryError, StaleRequestError
from ..models import key_of

Values = tuple[t.Any, ...]
_State = sa_orm.InstanceState[t.Any]

#: Where a request keeps what was seen of each user.
_SEEN = "_session_registry_seen"

#: The fingerprint of a session whose credential was no longer the stored one when its row was
#: written. It equals no other.
SUPERSEDED = "superseded"

#: Codes by which a database says that another transaction was first: a serialization failure or a
#: deadlock of PostgreSQL, a deadlock or a changed record of MariaDB, a stale snapshot of SQLite.
_OVERTAKEN = frozenset({"40001", "40P01", 1213, 1020, 517})


def fingerprint(values: Values) -> str | None:
    """SHA-256, in hexadecimal, of the values of the password attributes; ``None`` of none.

    :raises SessionRegistryError: a value is neither text, bytes, a number nor ``None``.
    """
    if not values:
        return None
    digests = [hashlib.sha256(_as_bytes(value)) for value in values]
    if len(digests) == 1:
        return digests[0].hexdigest()
    return hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()


def _as_bytes(value: object) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if value is None:
        return b"\0"
    if isinstance(value, (int, float)):
        return repr(value).encode()
    raise SessionRegistryError(
        f"A password attribute holds a '{type(value).__name__}', of which no fingerprint can be"
        " made. Name an attribute that holds text, bytes or a number in"
        " 'SESSION_REGISTRY_PASSWORD_ATTRIBUTE'."
    )


def password_attributes(
    user_model: type[t.Any], names: tuple[str, ...], *, search: bool
) -> tuple[str, ...]:
    """Which mapped attributes of the user model hold the password.

    :param names: the attributes, or with ``search`` the candidates, of which one must be mapped.
    :raises ConfigurationError: the model does not map them; or with ``search``, it, or a class that
        inherits from it, maps several.
    """
    mapper = sa.inspect(user_model)
    if search:
        family = list(mapper.self_and_descendants)
        mapped = {name for each in family for name in _columns_of(each)}
        found_in = (_column_behind(each, name) for name in names for each in family)
        candidates = list(dict.fromkeys(name for name in found_in if name in mapped))
        if len(candidates) > 1:
            found = " and ".join(f"'{name}'" for name in candidates)
            raise ConfigurationError(
                f"The user model '{user_model.__name__}' maps {found}, and each might hold the"
                " password hash. Name the right one in 'SESSION_REGISTRY_PASSWORD_ATTRIBUTE', or"
                " all of them if more than one does."
            )
        names = tuple(candidates) or names
    else:
        names = tuple(dict.fromkeys(_column_behind(mapper, name) for name in names))
    missing = ", ".join(f"'{name}'" for name in names if name not in _columns_of(mapper))
    if not missing:
        return names
    for each in mapper.self_and_descendants:
        if _columns_of(each).issuperset(names):
            name = each.class_.__name__
            raise ConfigurationError(
                f"The user model '{user_model.__name__}' maps no column {missing}, but '{name}',"
                f" which inherits from it, does. If those sign in, pass 'user_model={name}'."
            )
    raise ConfigurationError(
        f"The user model '{user_model.__name__}' maps no column {missing}. Name the attribute that"
        " holds the password hash in 'SESSION_REGISTRY_PASSWORD_ATTRIBUTE', or set it to None if"
        " users have no password."
    )


def _column_behind(mapper: sa_orm.Mapper[t.Any], name: str) -> str:
    """The attribute that this one is a synonym of, else itself."""
    while mapper.has_property(name):
        found: t.Any = mapper.get_property(name)
        if not isinstance(found, sa_orm.SynonymProperty):
            break
        name = found.name
    return name


def _columns_of(mapper: sa_orm.Mapper[t.Any]) -> set[str]:
    """The names of the attributes that hold a column, and not what a query computes."""
    # Not 'column_attrs', which would configure mappers that are not all imported yet.
    return {name for name, column in mapper.columns.items() if isinstance(column, sa.Column)}


class StoredCredential(t.NamedTuple):
    """The credential of a user as the database holds it."""

    fingerprint: str | None
    #: The values of the password attributes as an instance of the user model shows them.
    shown: Values
    #: The values of which the fingerprint is made.
    stored: Values

    def __repr__(self) -> str:
        return "StoredCredential()"


class CheckedCredential(t.NamedTuple):
    """Which credential a login was checked against, as far as it was seen."""

    #: What an instance showed when one was first loaded; ``None``: the password was not loaded.
    seen: Values | None = None
    #: What this process has stored since.
    stored: tuple[Values, ...] = ()
    #: Whether the fingerprint is one that was seen before the instance was loaded, by the session
    #: check or by an earlier step of the login; ``None``: neither has seen one.
    is_known: Callable[[str | None], bool] | None = None
    #: What the instance shows that signs in, if it was made by hand; ``None``: no password.
    by_hand: Values | None = None

    def covers(self, current: StoredCredential) -> bool:
        """Whether the login was checked against the credential that is stored now.

        If none was seen, it is taken to be the one that is stored now.
        """
        if current.shown in self.stored:
            return True
        if self.is_known is not None and not self.is_known(current.fingerprint):
            return False
        if self.by_hand is not None and self.by_hand != current.shown:
            return False
        return self.seen is None or self.seen == current.shown

    def __repr__(self) -> str:
        return "Evidence()"


class Change(t.NamedTuple):
    """A credential that a flush has changed, as fingerprints."""

    before: str | None
    after: str | None
    #: Whether only what identifies a user without a password has changed.
    is_same_password: bool

    def __repr__(self) -> str:
        return f"Change(is_same_password={self.is_same_password})"


class Credentials:
    """The password attributes of one user model, and what this process has seen of their values.

    What counts at a login is the hash that the password was *checked against*: the one that was
    loaded first, or one that this very process has stored since; not one that an instance shows
    because a commit has expired it.

    Users without a password would all have the same fingerprint. Theirs is made from the columns
    with a unique constraint, too, so that a new user does not share it who is given the key of a
    deleted one.
    """

    def __init__(self, user_model: type[t.Any], names: tuple[str, ...]) -> None:
        self.user_model = user_model
        self.names = names
        self.key = key_of(user_model)
        mapper = sa.inspect(user_model)
        passwords = [mapper.columns[name] for name in names]
        self.identifying: tuple[str, ...] = ()
        if names and all(column.nullable for column in passwords):
            self.identifying = _identifying_attributes(mapper, names)
        watched = [*names, *self.identifying]
        #: What the database holds, whatever a type of the app's own makes of it.
        self.columns = [
            _as_stored(getattr(user_model, name), mapper.columns[name]) for name in watched
        ]
        self.tables = {mapper.columns[name].table for name in watched}
        self._passwords = passwords
        #: What a row must have for :meth:`read`.
        self.stored = [*self.columns]
        if any(map(_converts, passwords)):
            self.stored += [getattr(user_model, name) for name in names]
        self.is_versioned = mapper.version_id_col is not None
        self._by_key = (
            sa.select(*self.stored).where(self.key == sa.bindparam("key")) if watched else None
        )
        self._known = f"flask_session_registry.known.{','.join(names)}"
        self._base = f"flask_session_registry.base.{','.join(names)}"

    def listen(self) -> None:
        """Follow the values through the life of every instance of the user model."""
        for event in ("load", "refresh", "expire", "after_insert", "before_update"):
            receiver = getattr(self, f"_on_{event}")
            sa.event.listen(self.user_model, event, receiver, raw=True, propagate=True)

    # -- what was seen -------------------------------------------------------------------------

    def _on_load(self, state: _State, _: object) -> None:
        values = self.shown(state)
        # A deferred column is not loaded.
        if values is not None:
            state.info[self._known] = self._known_of(_key_of_state(state), values)

    def _known_of(self, key: t.Any, values: Values) -> list[Values]:
        """What was seen of a user, these values unless there are others; and what is stored later.

        Within a request by any instance of that user: the one that a password was checked on may be
        gone by the time of the login.
        """
        context = request_context()
        if context is None:
            return [values]
        seen: dict[t.Any, list[Values]] = vars(context.request).setdefault(_SEEN, {})
        return seen.setdefault((self.user_model, self.names, key), [values])

    def fingerprint_history(self, user_id: t.Any, info: dict[t.Any, t.Any]) -> list[Values]:
        """What was seen of a user by an instance with this information, or by this request."""
        known: list[Values] | None = info.get(self._known)
        if known is None:
            known = _seen().get((self.user_model, self.names, user_id))
        return known or []

    def _on_refresh(
        self, state: _State, context: object, attributes: Collection[str] | None
    ) -> None:
        values, info = self.shown(state), state.info
        if (
            values is None
            or not {*(attributes or self.names)}.intersection(self.names)
            # What the app has set, and not flushed yet, was not loaded.
            or not state.committed_state.keys().isdisjoint(self.names)
        ):
            return
        if self._known not in info:
            info[self._known] = self._known_of(_key_of_state(state), values)
            info.pop(self._base, None)
        elif attributes is None or context is None or info.get(self._base, values) is None:
            # The app has asked for it, or written it by a bulk update: a change starts from here.
            info[self._base] = values

    def _on_expire(self, state: _State, attributes: Collection[str] | None) -> None:
        # Within a request, what was loaded before anything could be waited for goes on counting.
        if request_context() is None and (
            not attributes or not {*attributes}.isdisjoint(self.names)
        ):
            state.info[self._base] = None

    def _on_after_insert(self, _: object, connection: sa.Connection, state: _State) -> None:
        values = self.shown(state)
        # What a type converts on its way into the database is read where it is needed.
        if values is not None and self._is_plain_on(connection) and not _has_expression(values):
            state.info[self._known] = [values]

    def shown(self, state: _State) -> Values | None:
        """The password as an instance shows it; ``None``: it is not loaded."""
        try:
            return tuple([state.dict[name] for name in self.names])
        except KeyError:
            return None

    def shown_by_hand(self, user: object) -> Values | None:
        """The password in an instance that was made by hand; ``None``: there is none in it."""
        state = sa.inspect(user, raiseerr=True)
        values = self.shown(state) if state.transient else None
        return None if values is None or all(map(is_unusable, values)) else values

    def evidence(
        self, user: object, *, is_known: Callable[[str | None], bool] | None = None
    ) -> CheckedCredential:
        """What was seen of the credential of a user who signs in.

        :param is_known: see :attr:`Evidence.is_known`.
        """
        state = sa.inspect(user, raiseerr=True)
        known = self.fingerprint_history((state.identity or (None,))[0], state.info)
        return CheckedCredential(known[0] if known else None, tuple(known[1:]), is_known)

    def seen(self, state: _State) -> list[Values] | None:
        """The passwords from which a change of this instance may start; ``None``: any."""
        known: list[Values] = state.info.get(self._known) or []
        base: Values | None = state.info.get(self._base, known[-1] if known else None)
        if base is None:
            return None
        return [*known, *([] if base in known else [base])]

    def forget(self, state: _State) -> None:
        """Forget what was seen, so that the next change starts from what is loaded then."""
        _seen().pop((self.user_model, self.names, _key_of_state(state)), None)
        state.info.pop(self._known, None)
        state.info.pop(self._base, None)

    # -- what is stored ------------------------------------------------------------------------

    def fingerprint(self, values: Values) -> str | None:
        """The fingerprint of what a row holds in :attr:`columns`."""
        count = len(self.names)
        if len(values) == count or not all(map(is_unusable, values[:count])):
            return fingerprint(values[:count])
        return fingerprint(values)

    def read(self, row: Sequence[t.Any]) -> StoredCredential:
        """The credential in what a row holds in :attr:`stored`."""
        values, count = tuple(row), len(self.names)
        stored = values[: len(self.columns)]
        shown = values[len(self.columns) :] or stored[:count]
        return StoredCredential(self.fingerprint(stored), shown, stored)

    def current(
        self, execute: Callable[..., t.Any], key: t.Any, *, lock: bool = False
    ) -> StoredCredential | None:
        """The credential that is stored now; ``None``: there is no such user."""
        if self._by_key is None:
            return self.read(())
        statement = self._by_key
        if lock:
            tables = sa.inspect(self.user_model).tables
            statement = statement.with_for_update(key_share=True, of=tables)
        row = execute(statement, {"key": key}).first()
        return None if row is None else self.read(row)

    # -- what is changed -----------------------------------------------------------------------

    def _on_before_update(self, _: object, connection: sa.Connection, state: _State) -> None:
        if not self.tables:
            return
        flush = self._flush_on(connection)
        if flush is None:
            flush = _Flush(self)
            _flushes.setdefault(connection, {})[self.user_model, self.names] = flush
            sa.event.listen(connection, "before_execute", flush.before_execute, retval=True)
            sa.event.listen(connection, "after_execute", flush.after_execute)
            if not sa.event.contains(connection.engine, "handle_error", self._explain):
                sa.event.listen(connection.engine, "handle_error", self._explain)
        flush.updates[_key_of_state(state)] = _Update(state)

    def _explain(self, context: sa.engine.ExceptionContext) -> Exception | None:
        """Say of a change of a password that another transaction was first."""
        flush = self._flush_on(context.connection)
        if flush is None or not _was_overtaken(context.original_exception):
            return None
        has_changed = (
            flush.changed_in is t.cast(sa.Connection, context.connection).get_transaction()
        )
        return StaleRequestError() if has_changed else None

    def change(self, connection: sa.Connection, user: object) -> Change | None:
        """After an update: what it has changed; ``None`` if the credential is what it was.

        It is told once.
        """
        state = sa.inspect(user, raiseerr=True)
        flush = self._flush_on(connection)
        update = flush.updates.pop(_key_of_state(state), None) if flush else None
        if update is None or update.before is None:
            return None
        before, shown = update.before, self.shown(state)
        if (
            shown is not None
            and self._is_plain_on(connection)
            and not _has_expression(shown)
            and not (self.identifying and all(map(is_unusable, shown)))
        ):
            after: StoredCredential | None = StoredCredential(fingerprint(shown), shown, shown)
        else:
            after = self.current(connection.execute, self.key_in(state))
        assert after is not None  # noqa: S101 -- its row was written a moment ago
        state.info.setdefault(self._known, []).append(after.shown)
        state.info.pop(self._base, None)
        if before.fingerprint == after.fingerprint:
            return None
        return Change(before.fingerprint, after.fingerprint, before.shown == after.shown)

    def _is_plain_on(self, connection: sa.Connection) -> bool:
        """Whether an instance shows its password as the database holds it, just written, too."""
        return all(_is_plain(column, connection.dialect) for column in self._passwords)

    def _flush_on(self, connection: sa.Connection | None) -> _Flush | None:
        flushes = None if connection is None else _flushes.get(connection)
        return (flushes or {}).get((self.user_model, self.names))

    def key_in(self, state: _State) -> t.Any:
        """The key that an instance has been given by a flush."""
        return state.mapper.primary_key_from_instance(state.obj())[0]


#: What is written on each connection, by users of which model and with which passwords. The apps of
#: one process may share a user model, to which only the first of them listens.
_flushes: weakref.WeakKeyDictionary[
    sa.Connection, dict[tuple[type[t.Any], tuple[str, ...]], _Flush]
] = weakref.WeakKeyDictionary()


class _Update:
    """A user who is written by a flush."""

    def __init__(self, state: _State) -> None:
        self.state = state
        #: The credential before the change; ``None``: it is not changed.
        self.before: StoredCredential | None = None

    def changes(self, names: Sequence[str]) -> bool:
        return any(self.state.attrs[name].history.has_changes() for name in names)


class _Flush:
    """Compares the password that a change started from with the one that is stored.

    Otherwise a request that has loaded a user before another one changes the password would store
    over it: a lost update. The ``UPDATE`` itself carries the comparison, where it can.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self.updates: dict[t.Any, _Update] = {}
        #: The transaction that has changed a credential.
        self.changed_in: object = None
        self._compared: tuple[object, _Update] | None = None

    def before_execute(
        self,
        connection: sa.Connection,
        statement: t.Any,
        many: t.Any,
        one: t.Any,
        _: object,
    ) -> tuple[t.Any, t.Any, t.Any]:
        if isinstance(statement, sa.Update) and statement.table in self._credentials.tables:
            parameter = _key_parameter(statement)
            for row in many or [one]:
                update = self.updates.get(row.get(parameter))
                if update is None or not self._begin(connection, update, is_alone=not many):
                    continue
                if not many and update.changes(self._credentials.names):
                    conditions = self._conditions(update, statement.table, connection.dialect)
                    statement = statement.where(*conditions)
                    self._compared = statement, update
        return statement, many, one

    def after_execute(
        self, _: object, statement: object, __: object, ___: object, ____: object, result: t.Any
    ) -> None:
        if self._compared is None or self._compared[0] is not statement:
            return
        update, self._compared = self._compared[1], None
        # An app that counts the versions of its users is told by SQLAlchemy.
        if result.rowcount == 0 and not self._credentials.is_versioned:
            self._refuse(update)

    def _begin(self, connection: sa.Connection, update: _Update, *, is_alone: bool) -> bool:
        """Whether the credential is about to be changed: find out which one it was.

        :param is_alone: whether the statement is of this user only, and can compare.
        """
        if update.before is not None:
            return True
        credentials, state = self._credentials, update.state
        changes_password = update.changes(credentials.names)
        if not changes_password and not update.changes(credentials.identifying):
            return False
        seen = credentials.seen(state)
        if not changes_password and seen and not any(all(map(is_unusable, one)) for one in seen):
            # What identifies a user without a password is nothing to one who has one.
            return False
        if (
            is_alone
            and len(credentials.tables) == 1
            and credentials._is_plain_on(connection)
            and seen is not None
            and len(seen) == 1
            and not (credentials.identifying and all(map(is_unusable, seen[0])))
        ):
            update.before = StoredCredential(fingerprint(seen[0]), seen[0], seen[0])
        else:
            before = credentials.current(connection.execute, _key_of_state(state), lock=True)
            if before is None or (seen is not None and before.shown not in seen):
                self._refuse(update)
            update.before = before
        self.changed_in = connection.get_transaction()
        return True

    def _conditions(
        self, update: _Update, table: t.Any, dialect: sa.Dialect
    ) -> list[sa.ColumnElement[bool]]:
        credentials, before = self._credentials, t.cast(StoredCredential, update.before)
        columns = sa.inspect(credentials.user_model).columns
        return [
            _equals(columns[name], value, dialect)
            for name, value in zip(credentials.names, before.stored, strict=False)
            if columns[name].table is table
        ]

    def _refuse(self, update: _Update) -> t.NoReturn:
        # Or the next try would be refused as well, although it has loaded what is stored.
        self._credentials.forget(update.state)
        raise StaleRequestError


def _seen() -> dict[t.Any, list[Values]]:
    """What this request has seen of each user; empty: nothing, or there is no request."""
    context = request_context()
    return {} if context is None else vars(context.request).get(_SEEN, {})


def _key_of_state(state: _State) -> t.Any:
    """The key that a flush finds a row by."""
    return t.cast("t.Any", state.key)[1][0]


def _key_parameter(statement: sa.Update) -> str | None:
    """The name of the parameter by which an ``UPDATE`` of the ORM finds its row."""
    (key,) = t.cast(sa.Table, statement.table).primary_key
    for element in visitors.iterate(t.cast(t.Any, statement.whereclause)):
        if isinstance(element, sa.BinaryExpression) and element.left is key:
            return t.cast("str | None", getattr(element.right, "key", None))
    return None


def _equals(column: sa.Column[t.Any], value: t.Any, dialect: sa.Dialect) -> sa.ColumnElement[bool]:
    """Whether a column holds this value, as it came from the database or is plainly stored."""
    if _is_plain(column, dialect):
        return column.is_not_distinct_from(sa.literal(value, column.type))
    raw = sa.types.NullType()
    return sa.type_coerce(column, raw).is_not_distinct_from(sa.literal(value, raw))


def _as_stored(attribute: t.Any, column: sa.Column[t.Any]) -> t.Any:
    if not _converts(column):
        return attribute
    # Under a name of its own, or it would be taken for the column of the user itself.
    return sa.type_coerce(attribute, sa.types.NullType()).label(None)


def _converts(column: sa.Column[t.Any]) -> bool:
    """Whether a type of the app's own stands between the database and an instance."""
    return isinstance(column.type, sa.TypeDecorator)


def _is_plain(column: sa.Column[t.Any], dialect: sa.Dialect) -> bool:
    """Whether the database holds a value as an instance shows it, read or just written."""
    kind = column.type
    return (
        isinstance(kind, (sa.String, sa.LargeBinary))
        and type(kind).__module__.startswith("sqlalchemy.")
        and not isinstance(kind, sa.Enum)
        # PostgreSQL pads it. As the database has it: it may be a variant.
        and "CHAR" not in kind.compile(dialect=dialect).replace("VARCHAR", "")
        and column.server_onupdate is None
    )


def _identifying_attributes(mapper: sa_orm.Mapper[t.Any], names: Sequence[str]) -> tuple[str, ...]:
    """The attributes whose values no two users share, but for the key."""
    found = []
    for name in sorted(_columns_of(mapper)):
        column = mapper.columns[name]
        table = column.table
        constraints = [*table.constraints, *table.indexes] if isinstance(table, sa.Table) else []
        is_unique = any(
            [*constraint.columns] == [column]
            for constraint in constraints
            if isinstance(constraint, sa.UniqueConstraint)
            or (isinstance(constraint, sa.Index) and constraint.unique)
        )
        if (is_unique or column.unique) and not column.primary_key and name not in names:
            found.append(name)
    return tuple(found)


def is_unusable(value: object) -> bool:
    """Whether nobody can sign in by this: no password, or what Django and Unix write for none."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return text is None or (isinstance(text, str) and text[:1] in ("", "!", "*"))


def _has_expression(values: Values) -> bool:
    return any(isinstance(value, sa.ClauseElement) for value in values)


def _was_overtaken(error: BaseException | None) -> bool:
    codes = [getattr(error, name, None) for name in ("sqlstate", "pgcode", "sqlite_errorcode")]
    return not _OVERTAKEN.isdisjoint([*codes, *getattr(error, "args", ())[:1]])


_SAME = "flask_session_registry.same_credentials"


def is_rehash(user: object) -> bool:
    """Whether a change is a new hash of the same password."""
    return bool(sa.inspect(user, raiseerr=True).info.get(_SAME))


@contextlib.contextmanager
def rehash(user: object) -> Iterator[None]:
    """Within it, a change of this user's password attributes is a new hash of the same password."""
    info = sa.inspect(user, raiseerr=True).info
    before = info.get(_SAME)
    info[_SAME] = True
    try:
        yield
    finally:
        info[_SAME] = before
