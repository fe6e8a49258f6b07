"""The settings: one declaration each, with its default, its check and its help."""

from __future__ import annotations

import datetime as dt
import difflib
import os
import re
import typing as t
from collections.abc import Callable, Mapping

from ._web.i18n import TEXTS, Text, fill_in
from .errors import ConfigurationError

PREFIX = "SESSION_REGISTRY_"

#: Text without a password in it: a name, not the address of a server.
_HARMLESS = re.compile(r"[\w .-]{0,40}")

#: The attributes that are searched for the stored password.
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


def _duration_or_zero(value: object) -> dt.timedelta:
    if value == 0 and not isinstance(value, bool):
        return dt.timedelta(0)
    try:
        duration = _duration(value)
    except ValueError:
        duration = None
    if duration is None:
        raise ValueError("a number of seconds, zero or more, or a timedelta")
    return duration


def _count(value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError("a whole number above zero, or None")


def _one_of(*choices: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if isinstance(value, str) and value in choices:
            return value
        raise ValueError(" or ".join(f"'{choice}'" for choice in choices))

    return check


def _records(value: object) -> str:
    if isinstance(value, str) and "://" in value:
        raise ValueError(
            "'redis', and 'SESSION_REGISTRY_REDIS' a client: 'redis.Redis.from_url(…)'"
        )
    return _one_of("sql", "redis")(value)


def _prefix(value: object) -> str:
    if isinstance(value, str) and value and not set(value) & set("{}"):
        return value
    raise ValueError("text without braces")


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


def _template(value: object) -> str:
    if isinstance(value, str) and value:
        return value
    raise ValueError("the name of a template")


def _path(value: object) -> str | None:
    if value is None:
        return None
    try:
        path: str = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        path = "://"
    # The address to download such a file from contains a licence key.
    if "://" in path:
        raise ValueError("the path of a file, or None")
    return path


def _texts(value: object) -> Mapping[str, Text]:
    if isinstance(value, Mapping) and all(_can_replace(*item) for item in value.items()):
        return value
    raise ValueError(
        "a dictionary of texts, or of pairs of texts where there is a plural, with the same '%(…)s'"
        f" as the default ones, under these names: {', '.join(TEXTS)}"
    )


def _can_replace(name: t.Any, text: t.Any) -> bool:
    """Return whether the page can use this text instead of the default one of this name."""
    if name not in TEXTS or isinstance(text, tuple) != isinstance(TEXTS[name], tuple):
        return False
    if isinstance(text, tuple):
        return len(text) == 2 and all(_takes_values_of(TEXTS[name], part) for part in text)
    return _takes_values_of(TEXTS[name], text)


def _takes_values_of(default: Text, text: t.Any) -> bool:
    """Return whether the values for the default text fit into this one."""
    if not isinstance(text, str):
        # Possibly translated lazily.
        kind: t.Any = type(text)
        return kind is not bytes and kind.__str__ is not object.__str__
    try:
        fill_in(text, dict.fromkeys(re.findall(r"%\((\w+)\)", str(default)), 2))
    except (KeyError, TypeError, ValueError):
        return False
    return True


_Value = t.TypeVar("_Value")


class Setting(t.Generic[_Value]):
    """The declaration of one setting; on :class:`Settings`, its checked value.

    :param check: returns the value to use, or raises ``ValueError`` with what it must be.
    :param help: what the setting decides, for the docs.
    """

    #: The name behind the prefix.
    name: str

    def __init__(self, default: object, check: Callable[[object], _Value], help: str) -> None:
        self.default = default
        self.check = check
        self.help = help

    def __set_name__(self, owner: type, attribute: str) -> None:
        self.name = attribute.upper()

    @t.overload
    def __get__(self, settings: None, owner: type) -> Setting[_Value]: ...

    @t.overload
    def __get__(self, settings: Settings, owner: type) -> _Value: ...

    def __get__(self, settings: Settings | None, owner: type) -> Setting[_Value] | _Value:
        # Only on the class: an instance has the value in its own dictionary.
        return self

    def read(self, config: Mapping[str, t.Any]) -> _Value:
        """Return the checked value.

        :raises ConfigurationError: the value is invalid.
        """
        name = PREFIX + self.name
        value = config.get(name, self.default)
        try:
            return self.check(value)
        except ValueError as expected:
            raise ConfigurationError(
                f"The setting '{name}' is {_shown(value)}. It must be {expected}."
            ) from None


class Settings:
    """The checked settings of one app.

    :raises ConfigurationError: a value is invalid, or a name unknown.
    """

    password_attribute = Setting(
        PASSWORD_ATTRIBUTES,
        _attributes,
        "The attribute of the user model that holds the password hash, or a tuple of attributes."
        " The fingerprint of a session's credential is made from it. None: no fingerprint, and"
        " password changes are not watched.",
    )
    revoke_on_password_change = Setting(
        True,
        _boolean,
        "Whether every password change made through an instance ends the user's other sessions.",
    )
    records = Setting(
        "sql",
        _records,
        "Where user sessions are kept: 'sql', in a table of the users' database, or 'redis', in"
        " Redis.",
    )
    redis = Setting[t.Any](
        None,
        lambda value: value,
        "The client of the Redis that user sessions are kept in. None: the session store's own.",
    )
    redis_prefix = Setting(
        "session_registry:",
        _prefix,
        "The prefix of all keys of user sessions in Redis. Use a different one for each app.",
    )
    unregistered = Setting(
        "reject",
        _one_of("reject", "adopt"),
        "What happens to a session from before the installation: 'reject' signs it out; 'adopt'"
        " lets it go on, unless a session of its user was revoked since.",
    )
    hash_session_ids = Setting(
        True,
        _boolean,
        "Whether the session store and the registry keep session ids only as SHA-256 hashes. If"
        " disabled, anyone with a dump of the store can hijack its sessions.",
    )
    touch_interval = Setting(
        dt.timedelta(minutes=5),
        _duration,
        "The minimum time between two updates of 'last_seen_at'. None: it is never updated.",
    )
    idle_timeout = Setting(
        None,
        _duration,
        "A session ends this long after it was last seen, remembered or not. None: no idle timeout,"
        " but see the README on expiry.",
    )
    absolute_timeout = Setting(
        None,
        _duration,
        "A session ends this long after it began, used or not. None: no absolute timeout.",
    )
    max_sessions = Setting(
        None, _count, "The maximum number of active sessions of one user. None: no limit."
    )
    max_sessions_action = Setting(
        "revoke_oldest",
        _one_of("revoke_oldest", "reject"),
        "What a login beyond 'MAX_SESSIONS' does: 'revoke_oldest' ends the oldest session; 'reject'"
        " refuses the login.",
    )
    retention = Setting(
        dt.timedelta(days=30),
        _duration_or_zero,
        "How long the row of an ended session is kept. 0: until its store entry is deleted.",
    )
    auto_prune = Setting(
        dt.timedelta(hours=1),
        _duration,
        "How often each process prunes a batch of sessions at the end of a request. None: never.",
    )
    reauth_age = Setting(
        dt.timedelta(minutes=15),
        _duration,
        "For this long after the password was given, the page ends sessions without asking for it"
        " again. None: as long as Flask-Login considers the login fresh.",
    )
    base_template = Setting(
        "session_registry/base.html",
        _template,
        "The template that the page extends. It needs the blocks 'title' and 'content'.",
    )
    texts = Setting({}, _texts, "Texts of the page that replace the default ones.")
    geoip_database = Setting(
        None,
        _path,
        "The path of a GeoIP2 or GeoLite2 database, from which the page shows the location of"
        " addresses. None: no locations.",
    )

    #: Whether the app has set 'PASSWORD_ATTRIBUTE'; otherwise the default ones are searched.
    password_attribute_is_set: bool

    def __init__(self, config: Mapping[str, t.Any]) -> None:
        _check_names(config)
        for setting in SETTINGS:
            setattr(self, setting.name.lower(), setting.read(config))
        self.password_attribute_is_set = PREFIX + "PASSWORD_ATTRIBUTE" in config
        if self.idle_timeout is not None:
            self._touch_often_for(self.idle_timeout)

    def _touch_often_for(self, idle_timeout: dt.timedelta) -> None:
        """Update 'last_seen_at' so often that a session in use doesn't look idle."""
        if self.touch_interval is None:
            raise ConfigurationError(
                f"'{PREFIX}IDLE_TIMEOUT' is set, but '{PREFIX}TOUCH_INTERVAL' is None, so that"
                f" nothing records when a session was last seen. Set '{PREFIX}TOUCH_INTERVAL' to a"
                " duration."
            )
        self.touch_interval = min(self.touch_interval, idle_timeout / 10)


SETTINGS: tuple[Setting[t.Any], ...] = tuple(
    value for value in vars(Settings).values() if isinstance(value, Setting)
)


def _check_names(config: Mapping[str, t.Any]) -> None:
    names = [setting.name for setting in SETTINGS]
    for name in sorted(key for key in config if key.startswith(PREFIX)):
        if name.removeprefix(PREFIX) in names:
            continue
        near = difflib.get_close_matches(name.removeprefix(PREFIX), names, n=1)
        advice = (
            f"Did you mean '{PREFIX}{near[0]}'?"
            if near
            else f"Known settings: {', '.join(PREFIX + known for known in names)}."
        )
        raise ConfigurationError(f"Unknown setting '{name}'. {advice}")


def _shown(value: object) -> str:
    """Return an invalid value as an error may show it: in full only if it can't be a secret."""
    if value is None or isinstance(value, (bool, int, float, dt.timedelta)):
        return repr(value)
    if isinstance(value, str):
        return repr(value) if _HARMLESS.fullmatch(value) else "text that is not shown here"
    return f"a '{type(value).__name__}'"
