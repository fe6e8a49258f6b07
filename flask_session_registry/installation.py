"""The registry on one app: which classes, which settings, which store."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import time
import typing as t
import weakref
from collections.abc import Callable

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask import (
    Flask,
    appcontext_pushed,
    current_app,
    has_app_context,
    has_request_context,
    request,
)
from flask.globals import request_ctx
from flask_session.base import ServerSideSessionInterface
from flask_sqlalchemy import SQLAlchemy

from . import clock, models, session_ids
from .config import Settings
from .credentials import Credentials, password_attributes
from .errors import ConfigurationError, NotInstalledError, UserError
from .records import Records
from .state import RequestState

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_EXTENSION = "session_registry"
_INSTALLATION = "session_registry.installation"


class Installation:
    """What ``init_app`` was told, and what could be found out since.

    Other extensions may be set up after the registry, and user models imported later: so
    everything that depends on them is found when it is first needed.
    """

    credentials: Credentials
    session_model: type[t.Any]

    def __init__(
        self,
        app: Flask,
        db: SQLAlchemy | None,
        user_model: type[t.Any] | None,
        session_model: type[t.Any] | None,
        *,
        on_complete: Callable[[Installation], None],
    ) -> None:
        self.settings = Settings(app.config)
        self.interface = app.session_interface
        self._db = db
        self._user_model = user_model
        self._session_model = session_model
        self._on_complete = on_complete
        self._environ_key = f"flask_session_registry.{id(self)}"
        self._began_key = f"{self._environ_key}.began"
        self._is_ready = False
        if app.config.get("SESSION_TYPE") and not isinstance(
            app.session_interface, ServerSideSessionInterface
        ):
            raise ConfigurationError(
                "'SESSION_TYPE' is set, but Flask-Session is not set up on this app yet. Move"
                " 'Session(app)' before the 'init_app' of 'SessionRegistry'."
            )
        if user_model is not None and not (
            isinstance(user_model, type) and models.is_user_class(user_model)
        ):
            raise ConfigurationError(
                f"'user_model' is {user_model!r}, which is no class of Flask-Login users. Let it"
                " inherit from 'UserMixin'."
            )
        if session_model is not None and not (
            isinstance(session_model, type) and issubclass(session_model, models.UserSessionMixin)
        ):
            raise ConfigurationError(
                f"'session_model' is {session_model!r}. Build it on 'UserSessionMixin'."
            )
        self.find_models(app)
        session_ids.choose_store_ids(self.interface, hashed=self.settings.hash_session_ids)

    @property
    def is_complete(self) -> bool:
        """Whether the user model is known, and the table defined."""
        return hasattr(self, "session_model")

    @functools.cached_property
    def records(self) -> Records:
        # Only when first used: by then every model is imported.
        return Records(t.cast(SQLAlchemy, self._db), self.session_model, self.credentials)

    def find_models(self, app: Flask) -> bool:
        """Find the user model and define the table, if that is possible by now.

        :raises ConfigurationError: what is there can't be used.
        """
        self._db = self._db or app.extensions.get("sqlalchemy")
        return self._define()

    def complete_when_possible(self, app: Flask) -> None:
        """Define the table as soon as the user model is there.

        When it is imported, or when the app is first used, by a command or a request.
        """
        appcontext_pushed.connect(self._app_is_used, app)
        self._define_with_user_model()

    def _app_is_used(self, app: Flask) -> None:
        # What is wrong is raised by 'check', where it can be shown.
        with contextlib.suppress(ConfigurationError):
            had_db = self._db is not None
            if self.find_models(app):
                appcontext_pushed.disconnect(self._app_is_used, app)
            elif not had_db:
                self._define_with_user_model()

    def _define_with_user_model(self) -> None:
        if self._db is None:
            return
        reference = weakref.ref(self)

        def mapped(_: object, cls: type) -> None:
            installation = reference()
            if installation is not None and models.is_user_class(cls):
                installation._define()

        sa.event.listen(self._db.Model, "after_mapper_constructed", mapped, propagate=True)

    def _define(self) -> bool:
        if self.is_complete:
            return True
        if self._db is None:
            return False
        user_model = self._user_model or models.find_user_model(self._db)
        if user_model is None or sa.inspect(user_model, raiseerr=False) is None:
            return False
        user_model = models.topmost_user_class(user_model)
        names = password_attributes(
            user_model,
            self.settings.password_attribute,
            search=not self.settings.password_attribute_is_set,
        )
        session_model = self._session_model or models.define_user_session(self._db, user_model)
        if not hasattr(session_model, "user_id"):
            raise ConfigurationError(
                f"'{session_model.__name__}' has no 'user_id'. Declare it, with its foreign key to"
                f" '{user_model.__name__}'."
            )
        self.credentials = Credentials(user_model, names)
        self.session_model = session_model
        self._on_complete(self)
        return True

    def check(self, app: Flask) -> None:
        """Stop the app if it is put together wrongly; costs next to nothing once it is not.

        :raises ConfigurationError: something is missing, or came in the wrong order.
        """
        if app.session_interface is not self.interface:
            raise ConfigurationError(
                "The session interface of this app was set after 'SessionRegistry'. Move"
                " 'Session(app)' before its 'init_app'."
            )
        if self._is_ready:
            return
        if not hasattr(app, "login_manager"):
            raise ConfigurationError(
                "Flask-Login is not set up on this app. Call 'login_manager.init_app(app)'."
            )
        if "sqlalchemy" not in app.extensions:
            raise ConfigurationError(
                "Flask-SQLAlchemy is not set up on this app. Call 'db.init_app(app)'."
            )
        if not self.find_models(app):
            raise ConfigurationError(
                "No mapped class is a Flask-Login user. Import your user model before the first"
                " request and let it inherit from 'UserMixin', or pass it:"
                " 'SessionRegistry(user_model=…)'."
            )
        if self._user_model is None:
            # Once more: another one may have been imported since.
            models.find_user_model(t.cast(SQLAlchemy, self._db))
        self._is_ready = True

    def expired_before(self, app: Flask) -> dt.datetime:
        """A session that was last seen before this has expired, unless it is remembered."""
        interval = self.settings.touch_interval or dt.timedelta(0)
        return clock.now() - app.permanent_session_lifetime - interval

    def begin_request(self, app: Flask) -> None:
        """The first thing in each request: stop if the app is put together wrongly."""
        self.check(app)
        request.environ[self._began_key] = time.monotonic()

    def request_age(self) -> float:
        """For how many seconds this request has been under way."""
        now = time.monotonic()
        return now - t.cast(float, request.environ.get(self._began_key, now))

    @property
    def is_in_request(self) -> bool:
        """Whether there is a request, and it is one of this app."""
        return has_request_context() and request_ctx.app.extensions.get(_INSTALLATION) is self

    @property
    def known_state(self) -> RequestState | None:
        """What is known of this request; ``None`` if nothing, or if there is no request."""
        if not has_request_context():
            return None
        return self.state_in(request.environ)

    def state_in(self, environ: WSGIEnvironment) -> RequestState | None:
        """What is known of the request with this environment."""
        return t.cast("RequestState | None", environ.get(self._environ_key))

    @property
    def state(self) -> RequestState:
        """What is known of this request, kept with it and not in ``g``.

        An app context may outlive many requests, and what is in ``g`` with it.
        """
        environ = request.environ
        state: RequestState | None = environ.get(self._environ_key)
        if state is None:
            state = environ[self._environ_key] = RequestState()
        return state

    def user_id_of(self, user: object) -> t.Any:
        """The primary key of a user who is saved.

        :raises UserError: it is no user of this app, or not saved.
        """
        user = unwrap(user)
        model = self.credentials.user_model
        if not isinstance(user, model):
            raise UserError(f"A '{model.__name__}' was expected, not a '{type(user).__name__}'.")
        identity = sa.inspect(user, raiseerr=True).identity
        if identity is None:
            raise UserError(f"This '{model.__name__}' is not in the database yet. Flush it first.")
        return identity[0]

    def session_of(self, user: object) -> sa_orm.Session:
        """The database session that an instance belongs to, else the app's."""
        return sa_orm.object_session(unwrap(user)) or self.records.db.session()


def unwrap(user: t.Any) -> t.Any:
    """The object behind a proxy such as ``current_user``."""
    return user._get_current_object() if hasattr(user, "_get_current_object") else user


def install(app: Flask, extension: object, installation: Installation) -> None:
    app.extensions[_EXTENSION] = extension
    app.extensions[_INSTALLATION] = installation


def find_installation() -> Installation | None:
    """The registry on the current app, as far as it is set up; ``None`` if there is none."""
    return installation_on(unwrap(current_app)) if has_app_context() else None


def installation_on(app: Flask) -> Installation | None:
    """The registry on an app, as far as it is set up; ``None`` if there is none."""
    installation: Installation | None = app.extensions.get(_INSTALLATION)
    return installation if installation and installation.is_complete else None


def get_installation() -> Installation:
    """The registry on the current app, checked.

    :raises NotInstalledError: ``init_app`` was not called.
    :raises ConfigurationError: the app is put together wrongly.
    """
    installation: Installation | None = current_app.extensions.get(_INSTALLATION)
    if installation is None:
        raise NotInstalledError(
            "'SessionRegistry' is not set up on this app. Call 'init_app(app)' first."
        )
    installation.check(unwrap(current_app))
    return installation
