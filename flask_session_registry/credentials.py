"""With which credential was a session opened?

The fingerprint of a session is SHA-256 of the stored password hash. It is compared, never
reversed: it tells nothing that the password hash beside it in the database does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import typing as t

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from .errors import ConfigurationError, SessionRegistryError
from .models import key_of

Values = tuple[t.Any, ...]


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

    What counts at a login is the hash that the password was *checked against*: the one that was
    loaded first, not the one that an instance shows after a commit expired it. It moves along when
    this process stores a new one through the instance.
    """

    def __init__(self, user_model: type[t.Any], names: tuple[str, ...]) -> None:
        self.user_model = user_model
        self.names = names
        self.key = key_of(user_model)
        self._seen = f"flask_session_registry.seen.{','.join(names)}"
        self._same = "flask_session_registry.same_credentials"

    def listen(self) -> None:
        """Follow the values through the life of every instance of the user model."""
        sa.event.listen(self.user_model, "load", self._on_load, raw=True, propagate=True)
        sa.event.listen(self.user_model, "after_insert", self._on_insert, raw=True, propagate=True)
        for name in self.names:
            # So that the old value is known when an expired attribute is set.
            sa.event.listen(
                getattr(self.user_model, name),
                "set",
                lambda *_: None,
                active_history=True,
                propagate=True,
            )

    def _on_load(self, state: sa_orm.InstanceState[t.Any], _: object) -> None:
        loaded = state.dict
        with contextlib.suppress(KeyError):  # A deferred column is not loaded.
            state.info[self._seen] = tuple([loaded[name] for name in self.names])

    def _on_insert(self, _: object, __: object, state: sa_orm.InstanceState[t.Any]) -> None:
        state.info[self._seen] = self.current(state.obj())

    def current(self, user: object) -> Values:
        """What the instance shows now."""
        return tuple(getattr(user, name) for name in self.names)

    def seen(self, user: object) -> Values:
        """The values that this user was loaded with, or that this process has stored since."""
        info = sa.inspect(user, raiseerr=True).info
        values: Values | None = info.get(self._seen)
        if values is None:
            values = self.current(user)
            if sa.inspect(user).has_identity:
                info[self._seen] = values
        return values

    def change(self, user: object) -> tuple[Values, Values] | None:
        """Within a flush: the values before and after; ``None`` if they stay as they are.

        Takes note of the new ones.
        """
        attributes = sa.inspect(user, raiseerr=True).attrs
        histories = [attributes[name].history for name in self.names]
        if not any(history.has_changes() for history in histories):
            return None
        after = self.current(user)
        before = tuple(
            (history.deleted or (None,))[0] if history.has_changes() else value
            for history, value in zip(histories, after, strict=True)
        )
        sa.inspect(user, raiseerr=True).info[self._seen] = after
        return before, after

    def is_rehash(self, user: object) -> bool:
        """Whether a change is a new hash of the same password."""
        return bool(sa.inspect(user, raiseerr=True).info.get(self._same))

    def set_rehash(self, user: object, value: bool) -> None:
        sa.inspect(user, raiseerr=True).info[self._same] = value
