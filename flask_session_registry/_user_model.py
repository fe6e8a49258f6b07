"""The class of the users who sign in."""

from __future__ import annotations

import typing as t
from collections.abc import Collection

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from ._compat.databases import Database
from .errors import ConfigurationError


def is_user_class(cls: type) -> bool:
    """Return whether a class has what Flask-Login requires of users."""
    return all(
        hasattr(cls, name) for name in ("is_authenticated", "is_active", "is_anonymous", "get_id")
    )


def topmost_user_class(cls: type[t.Any]) -> type[t.Any]:
    """Return the topmost mapped user class that a class inherits from, or the class itself."""
    mapper: sa_orm.Mapper[t.Any] = sa.inspect(cls)
    while mapper.inherits is not None and is_user_class(mapper.inherits.class_):
        mapper = mapper.inherits
    return mapper.class_


def find_user_model(database: Database) -> type[t.Any] | None:
    """Return the one mapped class that is a Flask-Login user; ``None`` if there is none (yet).

    :raises ConfigurationError: there are several.
    """
    found = {topmost_user_class(cls) for cls in database.mapped_classes() if is_user_class(cls)}
    if len(found) > 1:
        names = ", ".join(sorted(_names_of(found)))
        raise ConfigurationError(
            f"Several mapped classes are Flask-Login users: {names}. Name the class that signs in:"
            " 'SessionRegistry(user_model=…)'."
        )
    return found.pop() if found else None


def _names_of(classes: Collection[type]) -> list[str]:
    """Return the names of classes, with their modules if some have the same name."""
    names = {f"'{cls.__name__}'" for cls in classes}
    if len(names) < len(classes):
        names = {f"'{cls.__module__}.{cls.__qualname__}'" for cls in classes}
    return list(names)


def key_of(user_model: type[t.Any]) -> sa_orm.QueryableAttribute[t.Any]:
    """Return the attribute that holds the primary key of the users.

    :raises ConfigurationError: the key has several columns.
    """
    mapper = sa.inspect(user_model)
    if len(mapper.primary_key) != 1:
        raise ConfigurationError(
            f"The primary key of the user model '{user_model.__name__}' has"
            f" {len(mapper.primary_key)} columns. Use a user model with a key of one column."
        )
    name = mapper.get_property_by_column(mapper.primary_key[0]).key
    key: sa_orm.QueryableAttribute[t.Any] = getattr(user_model, name)
    return key
