"""Every setting: its name, its default, what it may be, what it means."""

from __future__ import annotations

import dataclasses
import datetime as dt
import difflib
import os
import re
import typing as t
from collections.abc import Callable, Mapping

from ._records.redis.home import is_home
from ._web.i18n import TEXTS, Text, fill_in
from .errors import ConfigurationError

PREFIX = "SESSION_REGISTRY_"

#: A name, say, and no address of a server.
_PLAIN = re.compile(r"[\w .-]{0,40}")

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


def _age(value: object) -> dt.timedelta:
    """A duration that may be zero."""
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


def _home(value: object) -> object:
    if value in ("sql", "redis") or is_home(value):
        return value
    if isinstance(value, str) and "://" in value:
        raise ValueError(
            "'redis', and 'SESSION_REGISTRY_REDIS' a client: 'redis.Redis.from_url(…)'"
        )
    raise ValueError("'sql', 'redis', or an object with the verbs of 'Home'")


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
    # An address to download it from has a licence key in it.
    if "://" in path:
        raise ValueError("the path of a file, or None")
    return path


def _texts(value: object) -> Mapping[str, Text]:
    if isinstance(value, Mapping) and all(_fits(*item) for item in value.items()):
        return value
    raise ValueError(
        "a dictionary of texts, or of pairs of them where there is a plural, with the same '%(…)s'"
        f" in them as ours, by these names: {', '.join(TEXTS)}"
    )


def _fits(name: t.Any, text: t.Any) -> bool:
    """Whether this may stand for the text of that name."""
    if name not in TEXTS or isinstance(text, tuple) != isinstance(TEXTS[name], tuple):
        return False
    if isinstance(text, tuple):
        return len(text) == 2 and all(_fills(TEXTS[name], part) for part in text)
    return _fills(TEXTS[name], text)


def _fills(ours: Text, text: t.Any) -> bool:
    """Whether the values that are put into ours can be put into this text."""
    if not isinstance(text, str):
        # One that is translated when it is needed.
        kind: t.Any = type(text)
        return kind is not bytes and kind.__str__ is not object.__str__
    try:
        fill_in(text, dict.fromkeys(re.findall(r"%\((\w+)\)", str(ours)), 2))
    except (KeyError, TypeError, ValueError):
        return False
    return True


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
        "RECORDS",
        "sql",
        _home,
        "where user sessions are kept: in a table of the users' database, in Redis, or in a 'Home' "
        "of your own",
    ),
    Setting(
        "REDIS",
        None,
        lambda value: value,
        "the client of the Redis that user sessions are kept in; None: the session store's own",
    ),
    Setting(
        "REDIS_PREFIX",
        "session_registry:",
        _prefix,
        "what all keys of user sessions in Redis begin with; another one for each app",
    ),
    Setting(
        "UNREGISTERED",
        "reject",
        _one_of("reject", "adopt"),
        "what becomes of a session from before the installation: it is refused, or it goes on, "
        "unless anything of its user was revoked since",
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
    Setting(
        "IDLE_TIMEOUT",
        None,
        _duration,
        "how long after it was last seen a session ends, remembered or not; None: see the README",
    ),
    Setting(
        "ABSOLUTE_TIMEOUT",
        None,
        _duration,
        "how long after it began a session ends, whatever it does; None: it need not end",
    ),
    Setting(
        "MAX_SESSIONS",
        None,
        _count,
        "how many active sessions a user may have; None: as many as they like",
    ),
    Setting(
        "MAX_SESSIONS_ACTION",
        "revoke_oldest",
        _one_of("revoke_oldest", "reject"),
        "what happens to a login beyond that: the oldest session ends, or the login is refused",
    ),
    Setting(
        "RETENTION",
        dt.timedelta(days=30),
        _age,
        "how long the row of an ended session is kept; 0: it is deleted once its entry is",
    ),
    Setting(
        "AUTO_PRUNE",
        dt.timedelta(hours=1),
        _duration,
        "how often each process prunes a batch at the end of a request; None: never",
    ),
    Setting(
        "REAUTH_AGE",
        dt.timedelta(minutes=15),
        _duration,
        "how long after a user has given the password the page ends sessions without asking for it "
        "again; None: as long as Flask-Login calls the login fresh",
    ),
    Setting(
        "BASE_TEMPLATE",
        "session_registry/base.html",
        _template,
        "the template that the page extends: your own, with the blocks 'title' and 'content'",
    ),
    Setting("TEXTS", {}, _texts, "what the page says in other words than ours"),
    Setting(
        "GEOIP_DATABASE",
        None,
        _path,
        "the file of a GeoIP2 or GeoLite2 database, from which the page says where an address is",
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
    #: 'sql', 'redis', or a home.
    records: t.Any
    redis: t.Any
    redis_prefix: str
    unregistered: str
    hash_session_ids: bool
    touch_interval: dt.timedelta | None
    idle_timeout: dt.timedelta | None
    absolute_timeout: dt.timedelta | None
    max_sessions: int | None
    max_sessions_action: str
    retention: dt.timedelta
    auto_prune: dt.timedelta | None
    reauth_age: dt.timedelta | None
    base_template: str
    texts: Mapping[str, Text]
    geoip_database: str | None

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
                    f"The setting '{name}' is {_shown(value)}. It must be {expected}."
                ) from None
        if self.idle_timeout is not None:
            if self.touch_interval is None:
                raise ConfigurationError(
                    f"'{PREFIX}IDLE_TIMEOUT' needs to know when a session was last seen. Do not set"
                    f" '{PREFIX}TOUCH_INTERVAL' to None."
                )
            # Or a session in use would look idle for as long as that is not written.
            self.touch_interval = min(self.touch_interval, self.idle_timeout / 10)
        self.password_attribute_is_set = PREFIX + "PASSWORD_ATTRIBUTE" in config


def _shown(value: object) -> str:
    """A wrong value, for an error: in full only what is too plain to have a password in it."""
    if value is None or isinstance(value, (bool, int, float, dt.timedelta)):
        return repr(value)
    if isinstance(value, str):
        return repr(value) if _PLAIN.fullmatch(value) else "text that is not shown here"
    return f"a '{type(value).__name__}'"


def _proposal(name: str) -> str:
    names = [setting.name for setting in SETTINGS]
    near = difflib.get_close_matches(name.removeprefix(PREFIX), names, n=1)
    if near:
        return f"Did you mean '{PREFIX}{near[0]}'?"
    return f"There are: {', '.join(PREFIX + known for known in names)}."
