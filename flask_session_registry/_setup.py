"""Sets the registry up on an app.

It validates the app, opens the session store, the Redis of the records and the GeoIP database,
finds the user model, and defines the tables.
"""

from __future__ import annotations

import threading
import typing as t
import uuid
import weakref
from collections.abc import Callable

import sqlalchemy as sa
from flask import Flask, appcontext_pushed, g
from flask.globals import app_ctx

from ._adoption.adoption import adoption_for
from ._app import Registry
from ._compat import clients, flask_session
from ._compat.databases import NO_DATABASE, database_of
from ._compat.flask import begins_request, is_of_command, unwrap
from ._log import log
from ._records.redis import RedisClient
from ._records.users import kind_of
from ._revocation.password_columns import password_attributes
from ._revocation.password_history import Credentials
from ._store.backends import Entries, store_of
from ._user_model import find_user_model, is_user_class, topmost_user_class
from .errors import ConfigurationError
from .models import UserSessionMixin, define_user_session

if t.TYPE_CHECKING:
    from ._web.geoip import GeoIPDatabase

#: Marks an app context in which something was missing when it was pushed.
_LOOKS_AGAIN = "_session_registry_looks_again"

#: The first requests may come at once, and a table can be defined only once.
_defining = threading.RLock()


class NoUserModelError(ConfigurationError):
    """No user model is mapped yet."""


class Setup:
    """Completes the registry of one app, as soon as everything it needs is there.

    Other extensions may be set up after the registry, and user models imported later. In order:

    1. The constructor validates and opens what is there, and completes the registry if possible.
    2. :meth:`complete_when_possible` waits for a mapped user model, and for app contexts.
    3. :meth:`_check_pushed_context` checks the app in each new context, until nothing is wrong.
    4. :meth:`check_popped_context` does so again at the end of a context, if something was missing.
    5. :meth:`check` does so at each request and call, until nothing is wrong.

    :param db: the database extension, if it was passed.
    :param user_model: the user model, if it was passed.
    :param session_model: the class of user sessions, if it was passed.
    :param on_complete: called once the user model is known.
    :raises ConfigurationError: the app is misconfigured, and that can be seen already.
    """

    def __init__(
        self,
        app: Flask,
        registry: Registry,
        db: t.Any,
        user_model: type[t.Any] | None,
        session_model: type[t.Any] | None,
        on_complete: Callable[[Registry], None],
    ) -> None:
        self._registry = registry
        self._given_db = db
        self._user_model = user_model
        self._session_model = session_model
        self._on_complete = on_complete
        self._is_ready = False
        _check_session_type(app)
        _check_models(user_model, session_model)
        registry.adoption = adoption_for(registry)
        registry.has_given_user_model = user_model is not None
        registry.database = database_of(app, db)
        registry.geoip = geoip_of(registry.settings.geoip_database)
        registry.entries = entries_of(app)
        registry.redis = self._redis_of(app)
        self._find_and_complete(app)

    def _redis_of(self, app: Flask) -> RedisClient | None:
        """Return the Redis that the records are kept in; ``None`` if they are kept in SQL."""
        settings = self._registry.settings
        if settings.records == "sql":
            return None
        if self._session_model is not None:
            raise ConfigurationError(
                "'session_model' is for user sessions in a table, and 'SESSION_REGISTRY_RECORDS'"
                " says that they are kept elsewhere. Remove one of the two."
            )
        client = settings.redis
        if client is None and flask_session.is_kind(app.session_interface, "RedisSessionInterface"):
            client = flask_session.client_of(app.session_interface)
        _check_redis(client)
        return RedisClient(client, settings.redis_prefix)

    # -- when the user model appears -----------------------------------------------------------

    def complete_when_possible(self, app: Flask) -> None:
        """Complete the registry when the user model is mapped, or when the app is first used."""
        appcontext_pushed.connect(self._check_pushed_context, app)
        if not self._registry.is_complete:
            self._complete_when_mapped()

    def _check_pushed_context(self, app: Flask) -> None:
        """Check the app when a context is pushed: what is missing by then won't come any more.

        Only the user model may still be imported within that context: see
        :meth:`check_popped_context`. Nothing is raised where a request begins, which can respond
        with the error a moment later, or a command, which may be the one that diagnoses it.

        :raises ConfigurationError: the app is misconfigured.
        """
        had_db = self._registry.database is not None
        try:
            self._check_now(app)
        except NoUserModelError:
            setattr(g, _LOOKS_AGAIN, True)
            if not had_db:
                self._complete_when_mapped()
        except ConfigurationError as error:
            context = unwrap(app_ctx)
            if is_of_command():
                setattr(g, _LOOKS_AGAIN, True)
            elif not begins_request(context):
                # Otherwise it would stay: the caller that pushes it never gets to pop it.
                context.pop(error)
                raise
        else:
            appcontext_pushed.disconnect(self._check_pushed_context, app)

    def check_popped_context(self, app: Flask, kept: dict[str, t.Any]) -> None:
        """Check again at the end of an app context in which something was missing.

        :param kept: the attributes of its ``g``.
        :raises ConfigurationError: it is still missing, or misconfigured; unless this is a
            command, which has done what it could.
        """
        if not kept.pop(_LOOKS_AGAIN, False):
            return
        try:
            self._check_now(app)
        except ConfigurationError as error:
            if not is_of_command():
                raise
            log.error("%s", error)

    def _complete_when_mapped(self) -> None:
        if self._registry.database is None:
            return
        reference = weakref.ref(self)

        def mapped(_: object, cls: type) -> None:
            setup = reference()
            if setup is not None and is_user_class(cls):
                setup._complete()

        observed = self._registry.database.observed
        sa.event.listen(observed, "after_mapper_constructed", mapped, propagate=True)

    # -- the check of an app -------------------------------------------------------------------

    def check(self, app: Flask) -> None:
        """Raise if the app is misconfigured; costs next to nothing once it isn't.

        :raises ConfigurationError: something is missing, or came in the wrong order.
        """
        if not self._is_ready or app.session_interface is not self._registry.interface:
            self._check_now(app)
            self._is_ready = True

    def _check_now(self, app: Flask) -> None:
        if app.session_interface is not self._registry.interface:
            raise ConfigurationError(
                "The session interface of this app was set after 'SessionRegistry'. Move"
                " 'Session(app)' before its 'init_app'."
            )
        if not hasattr(app, "login_manager"):
            raise ConfigurationError(
                "Flask-Login is not set up on this app. Call 'login_manager.init_app(app)'."
            )
        if "sqlalchemy" not in app.extensions:
            raise ConfigurationError(NO_DATABASE)
        if not self._find_and_complete(app):
            raise NoUserModelError(
                "No mapped class is a Flask-Login user. Import your user model before the app is"
                " first used and let it inherit from 'UserMixin', or pass it:"
                " 'SessionRegistry(user_model=…)'."
            )
        if self._user_model is None and self._registry.database is not None:
            # Search again: another user model may have been imported since.
            find_user_model(self._registry.database)
        # Search again: a column, or a subclass of the user model, may have been added since.
        self._password_attributes(self._registry.credentials.user_model)

    # -- the models ----------------------------------------------------------------------------

    def _find_and_complete(self, app: Flask) -> bool:
        """Find the user model and define the tables; return whether that was possible.

        :raises ConfigurationError: what is there can't be used.
        """
        registry = self._registry
        registry.database = registry.database or database_of(app, self._given_db)
        return self._complete()

    def _complete(self) -> bool:
        if self._registry.is_complete:
            return True
        with _defining:
            return self._registry.is_complete or self._complete_now()

    def _complete_now(self) -> bool:
        registry = self._registry
        if registry.database is None:
            return False
        user_model = self._user_model or find_user_model(registry.database)
        if user_model is None or sa.inspect(user_model, raiseerr=False) is None:
            return False
        user_model = self._broadest(user_model)
        credentials = Credentials(user_model, self._password_attributes(user_model))
        if registry.redis is None:
            registry.session_model = self._session_model_for(user_model)
        else:
            _check_key(credentials)
        # This comes last: from here on, the registry is complete.
        registry.credentials = credentials
        self._on_complete(registry)
        return True

    def _session_model_for(self, user_model: type[t.Any]) -> type[t.Any]:
        registry = self._registry
        assert registry.database is not None  # noqa: S101 -- the user model was found in it
        session_model = self._session_model or define_user_session(registry.database, user_model)
        if not hasattr(session_model, "user_id"):
            raise ConfigurationError(
                f"'{session_model.__name__}' has no 'user_id'. Declare it, with its foreign key to"
                f" '{user_model.__name__}'."
            )
        return session_model

    def _broadest(self, user_model: type[t.Any]) -> type[t.Any]:
        """Return the topmost user class that this one inherits from, if it has a password too."""
        topmost = topmost_user_class(user_model)
        if topmost is user_model or self._user_model is None:
            return topmost
        try:
            self._password_attributes(topmost)
        except ConfigurationError:
            return user_model
        return topmost

    def _password_attributes(self, user_model: type[t.Any]) -> tuple[str, ...]:
        settings = self._registry.settings
        return password_attributes(
            user_model,
            settings.password_attribute,
            search=not settings.password_attribute_is_set,
        )


# -- the parts of an app -------------------------------------------------------------------------


def _check_session_type(app: Flask) -> None:
    if app.config.get("SESSION_TYPE") and not flask_session.owns(app.session_interface):
        raise ConfigurationError(
            "'SESSION_TYPE' is set, but Flask-Session is not set up on this app yet. Move"
            " 'Session(app)' before the 'init_app' of 'SessionRegistry'."
        )


def _check_models(user_model: object, session_model: object) -> None:
    if user_model is not None and not (isinstance(user_model, type) and is_user_class(user_model)):
        raise ConfigurationError(
            f"'user_model' is {user_model!r}, not a class of Flask-Login users. Let it inherit"
            " from 'UserMixin'."
        )
    if session_model is not None and not (
        isinstance(session_model, type) and issubclass(session_model, UserSessionMixin)
    ):
        raise ConfigurationError(
            f"'session_model' is {session_model!r}. Build it on 'UserSessionMixin'."
        )


def _check_redis(client: t.Any) -> None:
    if client is None:
        raise ConfigurationError(
            "'SESSION_REGISTRY_RECORDS' is 'redis', but no client is set. Set one in"
            " 'SESSION_REGISTRY_REDIS'."
        )
    if not clients.is_blocking_redis(client):
        raise ConfigurationError(
            f"'SESSION_REGISTRY_REDIS' is a '{type(client).__name__}', not a synchronous client of"
            " redis-py. Use a 'Redis' or a 'RedisCluster': 'redis.Redis.from_url(…)'."
        )
    if clients.reads_from_replicas(client):
        raise ConfigurationError(
            "The client in 'SESSION_REGISTRY_REDIS' reads from replicas, which might not know yet"
            " that a session has ended. Use one that reads from the primaries."
        )


def _check_key(credentials: Credentials) -> None:
    if kind_of(credentials.key) not in (int, str, uuid.UUID):
        raise ConfigurationError(
            f"The primary key of '{credentials.user_model.__name__}' is not an integer, text or a"
            " UUID, so user sessions can only be kept in SQL. Remove 'SESSION_REGISTRY_RECORDS'."
        )


def geoip_of(path: str | None) -> GeoIPDatabase | None:
    """Open the database that locates IP addresses, if the app has one.

    :raises ConfigurationError: the file can't be used.
    """
    if path is None:
        return None
    try:
        from ._web.geoip import GeoIPDatabase
    except ImportError:
        raise ConfigurationError(
            "'SESSION_REGISTRY_GEOIP_DATABASE' needs the package 'geoip2'. Install"
            " 'Flask-Session-Registry[geoip]'."
        ) from None
    try:
        return GeoIPDatabase(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"The file in 'SESSION_REGISTRY_GEOIP_DATABASE', {path!r}, is not a readable GeoIP2"
            f" database: {error}"
        ) from error


def entries_of(app: Flask) -> Entries:
    """Return the entries of the app's session store.

    :raises ConfigurationError: the store is of an unknown kind, or not the configured one.
    """
    interface = app.session_interface
    store = store_of(interface)
    if store is None:
        raise ConfigurationError(
            f"The session interface of this app, '{type(interface).__name__}', is neither Flask's"
            " nor Flask-Session's. Say how its entries are deleted: 'register_session_store'."
        )
    setting = f"SESSION_{str(app.config.get('SESSION_TYPE')).upper()}"
    client, used = app.config.get(setting), flask_session.client_of(interface)
    # Flask-Session ignores a client that it doesn't know, such as a Redis Cluster.
    if client is not None and used is not None and used is not client:
        raise ConfigurationError(
            f"Flask-Session does not use the client in '{setting}', but has created its own client"
            " for localhost. Set 'app.session_interface.client' to yours, between 'Session(app)'"
            " and the 'init_app' of 'SessionRegistry'."
        )
    return Entries(interface, store)
