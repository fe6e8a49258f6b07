"""Flask-SQLAlchemy and Flask-SQLAlchemy-Lite: an app's database session and mapped classes."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Iterator

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask import Flask, g
from flask_login import UserMixin
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.model import Model

from ..errors import ConfigurationError

if t.TYPE_CHECKING:
    import flask_sqlalchemy_lite

_SUPPORTED = (
    "Use Flask-SQLAlchemy (3.1 or newer) or Flask-SQLAlchemy-Lite: pass its 'SQLAlchemy', or call"
    " its 'init_app(app)'."
)


class Database(t.Protocol):
    """The database extension of an app."""

    #: The target of events on classes that are mapped from now on: a base class, for those that
    #: inherit from it; or all mappers.
    observed: t.Any

    @property
    def session(self) -> sa_orm.Session:
        """The app's current database session."""

    @property
    def is_session_open(self) -> bool:
        """Whether the session has been created already."""

    @property
    def factory(self) -> Callable[..., sa_orm.Session]:
        """Makes sessions configured like the app's own."""

    def mapped_classes(self) -> Iterator[type[t.Any]]:
        """Yield the mapped classes that may include the user model."""

    def base_for(self, user_model: type[t.Any]) -> type[t.Any]:
        """Return the base class for a table beside that of the users."""


class _FlaskSQLAlchemy:
    def __init__(self, extension: SQLAlchemy) -> None:
        self._extension = extension
        self.observed: t.Any = extension.Model

    @property
    def session(self) -> sa_orm.Session:
        return self._extension.session()

    @property
    def is_session_open(self) -> bool:
        return self._extension.session.registry.has()

    @property
    def factory(self) -> Callable[..., sa_orm.Session]:
        return self._extension.session.session_factory

    def mapped_classes(self) -> Iterator[type[t.Any]]:
        return (mapper.class_ for mapper in self.observed.registry.mappers)

    def base_for(self, _: type[t.Any]) -> type[t.Any]:
        return self._extension.Model


class _FlaskSQLAlchemyLite:
    """One session for each app context; the app decides how classes are mapped."""

    observed: t.Any = sa_orm.Mapper

    def __init__(self, extension: flask_sqlalchemy_lite.SQLAlchemy) -> None:
        self._extension = extension

    @property
    def session(self) -> sa_orm.Session:
        return self._extension.session

    @property
    def is_session_open(self) -> bool:
        return "default" in g.get("_sqlalchemy_sessions", {})

    @property
    def factory(self) -> Callable[..., sa_orm.Session]:
        return self._extension.sessionmaker

    def mapped_classes(self) -> Iterator[type[t.Any]]:
        waiting: list[type[t.Any]] = [UserMixin]
        while waiting:
            for cls in waiting.pop().__subclasses__():
                waiting.append(cls)
                # Classes on Flask-SQLAlchemy belong to another app in this process.
                if not issubclass(cls, Model) and sa.inspect(cls, raiseerr=False) is not None:
                    yield cls

    def base_for(self, user_model: type[t.Any]) -> type[t.Any]:
        return t.cast("type[t.Any]", sa.inspect(user_model).registry.generate_base())


def database_of(app: Flask, given: t.Any) -> Database | None:
    """Return the database extension of an app; ``None`` if it isn't set up yet.

    :param given: the one passed to the registry, if any.
    :raises ConfigurationError: this kind isn't supported.
    """
    extension = app.extensions.get("sqlalchemy") if given is None else given
    if extension is None:
        return None
    if isinstance(extension, SQLAlchemy):
        return _FlaskSQLAlchemy(extension)
    # By name, so that it isn't imported where it isn't used.
    if any(cls.__module__.startswith("flask_sqlalchemy_lite") for cls in type(extension).__mro__):
        return _FlaskSQLAlchemyLite(extension)
    origin = "'db' is" if given is not None else "'app.extensions[\"sqlalchemy\"]' is"
    raise ConfigurationError(
        f"{origin} a '{type(extension).__name__}', which is not supported. {_SUPPORTED}"
    )


def check_app(app: object) -> None:
    """Make sure that this is a Flask app.

    :raises ConfigurationError: it isn't; it is one of Quart, for example.
    """
    if not isinstance(app, Flask):
        kind = type(app)
        raise ConfigurationError(
            f"'app' is a '{kind.__module__.partition('.')[0]}.{kind.__name__}', not a Flask app."
            " Only Flask is supported, not Quart. Flask's views may be coroutines: install"
            " 'Flask[async]'."
        )


#: The error where neither is set up.
NO_DATABASE = (
    "Flask-SQLAlchemy is not set up on this app. Call 'db.init_app(app)'. Flask-SQLAlchemy-Lite"
    " works too; a database session created by the app itself doesn't."
)
