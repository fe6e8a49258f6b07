"""No object of ours shows a secret: error reporters, debuggers and logs show what they hold (79).

Every value that isn't known to be harmless counts as a secret: session ids, store keys,
fingerprints, cookies, passwords. So a new field or class fails here until somebody has decided.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime as dt
import functools
import importlib
import inspect
import ipaddress
import pkgutil
import types
import typing as t
import uuid

import pytest

import flask_session_registry
from flask_session_registry import UserSessionMixin
from flask_session_registry.models import TombstoneMixin

#: Types whose values carry no secret.
HARMLESS_TYPES = {
    bool: True,
    int: 7,
    float: 1.5,
    type(None): None,
    uuid.UUID: uuid.UUID(int=7),
    dt.datetime: dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc),
    dt.timedelta: dt.timedelta(1),
    ipaddress.IPv4Network: ipaddress.ip_network("192.0.2.0/24"),
    ipaddress.IPv6Network: ipaddress.ip_network("2001:db8::/32"),
}

#: Fields of other types that hold no secret, in any class: who, from where, with what, and why.
HARMLESS_FIELDS = {
    *("user", "user_id", "user_ids", "ip_address", "user_agent", "reason", "revoked_reason"),
    # Sentences and names that we have written.
    *("problem", "remedy", "meaning", "name", "kind", "level", "place", "browser", "system"),
    # Services of the app, and functions of a session store.
    *("registry", "check", "delete", "key"),
}

#: The same in one class.
HARMLESS = {
    # Of a setting that isn't set.
    ("Setting", "default"),
    # Conditions for rows: of SQLAlchemy, which shows no value, or of ids and filters.
    ("RevocationOrder", "where"),
}


@functools.cache
def all_classes() -> dict[str, type[t.Any]]:
    """All classes of the package, by their names."""
    modules = pkgutil.walk_packages(
        flask_session_registry.__path__, f"{flask_session_registry.__name__}."
    )
    return {
        cls.__name__: cls
        for module in modules
        for cls in vars(importlib.import_module(module.name)).values()
        if isinstance(cls, type) and cls.__module__ == module.name
    }


def classes() -> list[type[t.Any]]:
    """Dataclasses, named tuples, classes with slots, and those with a 'repr' of their own."""
    found = [
        cls
        for cls in all_classes().values()
        if dataclasses.is_dataclass(cls)
        or hasattr(cls, "_fields")
        or {"__slots__", "__repr__", "__str__"} & vars(cls).keys()
        # Bases of mapped classes, of which 'test_secrets' makes rows.
        if cls not in (UserSessionMixin, TombstoneMixin)
    ]
    return sorted(found, key=lambda cls: f"{cls.__module__}.{cls.__name__}")


def fields_of(cls: type[t.Any]) -> dict[str, t.Any]:
    """What an instance is made with: the type of each field.

    :raises TypeError: it is another kind of class, which this test can't make.
    """
    if dataclasses.is_dataclass(cls):
        names = [field.name for field in dataclasses.fields(cls) if field.init]
    elif hasattr(cls, "_fields"):
        names = list(cls._fields)
    elif "__init__" in vars(cls):
        names = [*inspect.signature(cls).parameters]
    else:
        raise TypeError(f"{cls.__name__}: make it a dataclass or a NamedTuple, or make it here.")
    # The package imports some types for the type checker only.
    source = cls if dataclasses.is_dataclass(cls) or hasattr(cls, "_fields") else cls.__init__
    hints = t.get_type_hints(source, localns=dict(all_classes()))
    return {name: hints[name] for name in names}


def secret_of(cls: type[t.Any], name: str) -> str:
    return f"<secret of {cls.__name__}.{name}>"


def make(cls: type[t.Any]) -> t.Any:
    """An instance that has a secret wherever there is room for one."""
    return cls(
        **{name: value_of(kind, secret_of(cls, name)) for name, kind in fields_of(cls).items()}
    )


def value_of(kind: t.Any, secret: str) -> t.Any:
    """A value of this type that holds the secret, if it can hold one.

    :raises TypeError: it isn't known how.
    """
    # One branch for each kind of type: long, but a list.
    origin, arguments = t.get_origin(kind), t.get_args(kind)
    if kind in HARMLESS_TYPES:
        return HARMLESS_TYPES[kind]
    if kind in (str, t.Any, object):
        return secret
    if kind is bytes:
        return secret.encode()
    if origin is t.Literal:
        return arguments[0]
    if origin in (t.Union, types.UnionType):
        # The first one that holds a secret.
        values = [value_of(each, secret) for each in arguments]
        return next((one for one in values if secret in f"{one!r}"), values[0])
    if origin is tuple:
        return tuple(value_of(each, secret) for each in arguments if each is not ...)
    if origin in (list, set, frozenset, collections.abc.Sequence, collections.abc.Iterable):
        return [value_of(arguments[0], secret)]
    if origin in (dict, collections.abc.Mapping):
        return {value_of(arguments[0], secret): value_of(arguments[1], secret)}
    if origin is collections.abc.Callable or kind is collections.abc.Callable:
        # Shows what it is called with.
        return functools.partial(str, secret)
    if kind in classes():
        return make(kind)
    if isinstance(kind, type):
        # A service: what it shows is its own affair.
        return object()
    raise TypeError(f"{kind!r}: say here how to make one.")


def is_harmless(cls: type[t.Any], name: str, kind: t.Any) -> bool:
    return (
        name in HARMLESS_FIELDS
        or (cls.__name__, name) in HARMLESS
        or secret_of(cls, name) not in f"{value_of(kind, secret_of(cls, name))!r}"
    )


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__qualname__)
def test_object_shows_no_secret(cls: type[t.Any]) -> None:
    """79: neither as text nor within another object, whatever class is added."""
    one = make(cls)
    shown = f"{one!r} {one!s} {one} {[one]} {(one,)}"
    leaking = [
        name
        for name, kind in fields_of(cls).items()
        if secret_of(cls, name) in shown and not is_harmless(cls, name, kind)
    ]
    assert leaking == [], f"{cls.__name__} shows {leaking}: hide it, or say here that it is none."


def test_classes_of_all_packages_are_found() -> None:
    """Those of each package, at any depth, are among them."""
    packages = {cls.__module__.split(".")[1] for cls in classes()}
    assert packages >= {"_records", "_request", "_revocation", "_store", "_web", "_ops"}


@dataclasses.dataclass
class _Careless:
    id: uuid.UUID
    user_id: str
    cookie: str | None
    keys: tuple[str, ...] = dataclasses.field(repr=False)


class _Other:
    __slots__ = ("store_id",)


def test_careless_class_is_noticed() -> None:
    """What shows a secret fails the test above, and so does what can't be made."""
    with pytest.raises(AssertionError, match=r"_Careless shows \['cookie'\]"):
        test_object_shows_no_secret(_Careless)
    with pytest.raises(TypeError, match="_Other"):
        test_object_shows_no_secret(_Other)
