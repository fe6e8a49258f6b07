"""With which credential was a session opened?

The fingerprint of a session is SHA-256 of the stored password hash. It is compared, never
reversed: it tells nothing that the password hash beside it in the database does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import typing as t
from collections.abc import Iterator

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from .errors import ConfigurationError, SessionRegistryError
from .models import key_of

Values = tuple[t.Any, ...]
_State = sa_orm.InstanceState[t.Any]


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
    if isinstance(value, bytes):
        return value
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

    :param names: the attributes, or with ``search`` the candidates, of which the first counts.
    :raises ConfigurationError: the model does not map them.
    """
    # Not 'column_attrs', which would configure mappers that are not all imported yet.
    columns = sa.inspect(user_model).columns
    found = tuple(name for name in names if name in columns)
    if search and found:
        return found[:1]
    if len(found) == len(names):
        return found
    missing = ", ".join(f"'{name}'" for name in names if name not in found)
    raise ConfigurationError(
        f"The user model '{user_model.__name__}' maps no column {missing}. Name the attribute that"
        " holds the password hash in 'SESSION_REGISTRY_PASSWORD_ATTRIBUTE', or set it to None if"
        " users have no password."
    )


class Credentials:
    """The password attributes of one user model, and what this process knows of their values.

    What counts at a login is the hash that the password was *checked against*: one that was loaded
    first, or stored by this very process since; not one that an instance shows because a commit has
    expired it.
    """

    def __init__(self, user_model: type[t.Any], names: tuple[str, ...]) -> None:
        self.user_model = user_model
        self.names = names
        self.key = key_of(user_model)
        self.columns = [getattr(user_model, name) for name in names]
        self._known = f"flask_session_registry.known.{','.join(names)}"
        self._before = f"flask_session_registry.before.{','.join(names)}"

    def listen(self) -> None:
        """Follow the values through the life of every instance of the user model."""
        for event in ("load", "after_insert", "before_update"):
            receiver = getattr(self, f"_on_{event}")
            sa.event.listen(self.user_model, event, receiver, raw=True, propagate=True)
        for column in self.columns:
            # So that the old value is known when an expired attribute is set.
            sa.event.listen(column, "set", lambda *_: None, active_history=True, propagate=True)

    def _on_load(self, state: _State, _: object) -> None:
        loaded = state.dict
        try:
            state.info[self._known] = [tuple([loaded[name] for name in self.names])]
        except KeyError:
            return  # A deferred column is not loaded.

    def _on_after_insert(self, _: object, connection: sa.Connection, state: _State) -> None:
        state.info[self._known] = [self._stored(connection, state)]

    def _on_before_update(self, _: object, __: object, state: _State) -> None:
        # Not after the update: a value that the database computes is expired by then.
        # A flush that failed may have left one.
        state.info.pop(self._before, None)
        histories = [state.attrs[name].history for name in self.names]
        if any(history.has_changes() for history in histories):
            # Where an attribute was only flagged as modified, its history knows no old value.
            last = state.info.get(self._known, [(None,) * len(histories)])[-1]
            state.info[self._before] = tuple(
                (history.deleted or history.unchanged or (value,))[0]
                for history, value in zip(histories, last, strict=True)
            )

    def _stored(self, connection: sa.Connection, state: _State) -> Values:
        """What a flush has just stored."""
        shown = tuple(state.dict.get(name, sa.null()) for name in self.names)
        if not any(isinstance(value, sa.ClauseElement) for value in shown):
            return shown
        key = state.mapper.primary_key_from_instance(state.obj())[0]
        row = connection.execute(sa.select(*self.columns).where(self.key == key)).one()
        return tuple(row)

    def known(self, user: object) -> list[Values]:
        """The values that this user was loaded with, and those that this process stored since."""
        state = sa.inspect(user, raiseerr=True)
        known: list[Values] | None = state.info.get(self._known)
        if known is None:
            known = [tuple(getattr(user, name) for name in self.names)]
            if state.has_identity:
                state.info[self._known] = known
        return known

    def fingerprints(self, user: object) -> list[str | None]:
        """The fingerprints of the values that are known, in the same order."""
        return [fingerprint(values) for values in self.known(user)]

    def change(self, connection: sa.Connection, user: object) -> tuple[Values, Values] | None:
        """After an update: the values before and after it; ``None`` if they have not changed."""
        state = sa.inspect(user, raiseerr=True)
        before: Values | None = state.info.pop(self._before, None)
        if before is None:
            return None
        after = self._stored(connection, state)
        self.known(user).append(after)
        return None if before == after else (before, after)


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
