"""Flask-SQLAlchemy and Flask-SQLAlchemy-Lite: the database session of an app, and its classes."""

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

_SUPPORTED = (
    "Supported are Flask-SQLAlchemy (3.1 or newer) and Flask-SQLAlchemy-Lite: pass the 'SQLAlchemy'"
    " of one of them, or call its 'init_app(app)'."
)


class Database(t.Protocol):
    """The database extension of an app."""

    #: The extension itself.
    extension: t.Any
    #: What is told of each class that is mapped from now on: a class, of those that inherit from
    #: it; or all mappers.
    observed: t.Any

    @property
    def session(self) -> sa_orm.Session:
        """The app's database session, here and now."""

    @property
    def is_session_open(self) -> bool:
        """Whether there is one already."""

    @property
    def factory(self) -> Callable[..., sa_orm.Session]:
        """Makes sessions as the app's own are made."""

    def mapped_classes(self) -> Iterator[type[t.Any]]:
        """The mapped classes of which one may be the user model."""

    def base_for(self, user_model: type[t.Any]) -> type[t.Any]:
        """What a table beside that of the users inherits from."""


class _FlaskSQLAlchemy:
    def __init__(self, extension: SQLAlchemy) -> None:
        self.extension = extension
        self.observed: t.Any = extension.Model

    @property
    def session(self) -> sa_orm.Session:
        return t.cast(sa_orm.Session, self.extension.session())

    @property
    def is_session_open(self) -> bool:
        return self.extension.session.registry.has()

    @property
    def factory(self) -> Callable[..., sa_orm.Session]:
        return self.extension.session.session_factory

    def mapped_classes(self) -> Iterator[type[t.Any]]:
        return (mapper.class_ for mapper in self.observed.registry.mappers)

    def base_for(self, _: type[t.Any]) -> type[t.Any]:
        return t.cast("type[t.Any]", self.extension.Model)


class _FlaskSQLAlchemyLite:
    """It has one session for each app context, and leaves it to the app how classes are mapped."""

    observed: t.Any = sa_orm.Mapper

    def __init__(self, extension: t.Any) -> None:
        self.extension = extension

    @property
    def session(self) -> sa_orm.Session:
        return t.cast(sa_orm.Session, self.extension.session)

    @property
    def is_session_open(self) -> bool:
        return "default" in g.get("_sqlalchemy_sessions", {})

    @property
    def factory(self) -> Callable[..., sa_orm.Session]:
        return t.cast("Callable[..., sa_orm.Session]", self.extension.sessionmaker)

    def mapped_classes(self) -> Iterator[type[t.Any]]:
        waiting: list[type[t.Any]] = [UserMixin]
        while waiting:
            for cls in waiting.pop().__subclasses__():
                waiting.append(cls)
                # Those of an app on Flask-SQLAlchemy in the same process are not this app's.
                if not issubclass(cls, Model) and sa.inspect(cls, raiseerr=False) is not None:
                    yield cls

    def base_for(self, user_model: type[t.Any]) -> type[t.Any]:
        return t.cast("type[t.Any]", sa.inspect(user_model).registry.generate_base())


def database_of(app: Flask, given: t.Any) -> Database | None:
    """The database extension of an app; ``None``: it is not set up yet.

    :param given: the one that the registry was told.
    :raises ConfigurationError: it is of a kind that is not supported.
    """
    extension = app.extensions.get("sqlalchemy") if given is None else given
    if extension is None:
        return None
    if isinstance(extension, SQLAlchemy):
        return _FlaskSQLAlchemy(extension)
    # By name, so that it is not imported where it is not used.
    if any(cls.__module__.startswith("flask_sqlalchemy_lite") for cls in type(extension).__mro__):
        return _FlaskSQLAlchemyLite(extension)
    origin = "'db' is" if given is not None else "'app.extensions[\"sqlalchemy\"]' is"
    raise ConfigurationError(
        f"{origin} a '{type(extension).__name__}', which the registry can't work with. {_SUPPORTED}"
    )


def check_app(app: object) -> None:
    """Refuse what is no app of Flask's.

    :raises ConfigurationError: it is one of Quart's, say.
    """
    if not isinstance(app, Flask):
        kind = type(app)
        raise ConfigurationError(
            f"'app' is a '{kind.__module__.partition('.')[0]}.{kind.__name__}', and no Flask app."
            " Supported are Flask apps, with views that are coroutines too (install"
            " 'Flask[async]'); Quart is not."
        )


#: What to do where there is none.
NO_DATABASE = (
    "Flask-SQLAlchemy is not set up on this app. Call 'db.init_app(app)'. Flask-SQLAlchemy-Lite"
    " will do as well; a session that the app has made itself will not."
)
