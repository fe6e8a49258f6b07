"""Every setting: its name, its default, what it may be, what it means."""

from __future__ import annotations

import dataclasses
import datetime as dt
import difflib
import typing as t
from collections.abc import Callable, Mapping

from .errors import ConfigurationError

PREFIX = "SESSION_REGISTRY_"

#: Where the stored password is looked for when 'PASSWORD_ATTRIBUTE' is not set.
PASSWORD_ATTRIBUTES = ("password_hash", "password", "hashed_password")


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("True or False")


def _duration(value: object) -> dt.timedelta | None:
    expected = "a number of seconds above zero, a timedelta, or None"
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            value = dt.timedelta(seconds=value)
        except (OverflowError, ValueError):
            raise ValueError(expected) from None
    if isinstance(value, dt.timedelta) and value > dt.timedelta(0):
        return value
    raise ValueError(expected)


def _attributes(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    names = (value,) if isinstance(value, str) else value
    if (
        isinstance(names, (tuple, list))
        and names
        and all(isinstance(name, str) and name for name in names)
    ):
        return tuple(names)
    raise ValueError("the name of an attribute, a tuple of names, or None")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting: its name behind the prefix, its default, its check, its meaning."""

    name: str
    default: object
    check: Callable[[object], object]
    meaning: str


SETTINGS = (
    Setting(
        "PASSWORD_ATTRIBUTE",
        PASSWORD_ATTRIBUTES,
        _attributes,
        "what the fingerprint of a session's credential is made from; a tuple names several; "
        "None: no fingerprint, and no watching",
    ),
    Setting(
        "REVOKE_ON_PASSWORD_CHANGE",
        True,
        _boolean,
        "whether every change of the password through an instance ends the user's other sessions",
    ),
    Setting(
        "HASH_SESSION_IDS",
        True,
        _boolean,
        "whether the session store and the registry know a session id only by its SHA-256",
    ),
    Setting(
        "TOUCH_INTERVAL",
        dt.timedelta(minutes=5),
        _duration,
        "how often 'last_seen_at' is written at most; None: never",
    ),
)


class Settings:
    """The checked settings of one app.

    :raises ConfigurationError: a wrong value, or a name that does not exist.
    """

    #: Which attributes hold the password; empty: no fingerprint.
    password_attribute: tuple[str, ...]
    #: Whether 'password_attribute' is the app's own choice, or the default to search.
    password_attribute_is_set: bool
    revoke_on_password_change: bool
    hash_session_ids: bool
    touch_interval: dt.timedelta | None

    def __init__(self, config: Mapping[str, t.Any]) -> None:
        known = {PREFIX + setting.name for setting in SETTINGS}
        for name in sorted(key for key in config if key.startswith(PREFIX)):
            if name not in known:
                raise ConfigurationError(f"There is no setting '{name}'. {_proposal(name)}")
        for setting in SETTINGS:
            name = PREFIX + setting.name
            value = config.get(name, setting.default)
            try:
                setattr(self, setting.name.lower(), setting.check(value))
            except ValueError as expected:
                raise ConfigurationError(
                    f"The setting '{name}' is {value!r}. It must be {expected}."
                ) from None
        self.password_attribute_is_set = PREFIX + "PASSWORD_ATTRIBUTE" in config


def _proposal(name: str) -> str:
    names = [setting.name for setting in SETTINGS]
    near = difflib.get_close_matches(name.removeprefix(PREFIX), names, n=1)
    if near:
        return f"Did you mean '{PREFIX}{near[0]}'?"
    return f"There are: {', '.join(PREFIX + known for known in names)}."
