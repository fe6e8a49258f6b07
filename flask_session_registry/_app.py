"""The registry on one app: which classes, which settings, which store."""

from __future__ import annotations

import datetime as dt
import functools
import inspect
import random
import threading
import time
import typing as t
import uuid
import weakref
from collections.abc import Callable, Hashable

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask import Flask, appcontext_pushed, current_app, g, has_app_context
from flask.globals import app_ctx
from flask_session.base import ServerSideSessionInterface

from . import _clock as clock
from . import models
from ._compat.databases import NO_DATABASE, Database, database_of
from ._compat.flask import begins_request, is_of_command, request_context
from ._config import Settings
from ._log import log
from ._records.base import Limit
from ._records.expiry import Expiry
from ._records.redis.client import RedisHome
from ._records.redis.home import Home
from ._records.redis.records import RedisRecords
from ._records.sql.records import SQLRecords
from ._records.users import Users, kind_of
from ._request import store_keys
from ._request.context import RequestState
from ._revocation.fingerprint import Credentials, password_attributes
from ._store.backends import Entries, store_of
from ._web.i18n import Texts
from .errors import ConfigurationError, NotInstalledError, UserError

if t.TYPE_CHECKING:
    from werkzeug.wrappers import Request

    from ._web.geoip import GeoIPDatabase

#: Where the user sessions of an app are kept.
Records = SQLRecords | RedisRecords

_EXTENSION = "session_registry"
_REGISTRY = "session_registry.installation"

#: Says of an app context that something was missing when it was pushed.
_LOOKS_AGAIN = "_session_registry_looks_again"

#: How many clients that sign in without cookies a process remembers.
_MOST_CLIENTS = 10_000

#: The first requests may come at once, and a table can be defined only once.
_defining = threading.RLock()


class NoUserModelError(ConfigurationError):
    """No user model is mapped yet."""


class Registry:
    """What ``init_app`` was told, and what could be found out since.

    Other extensions may be set up after the registry, and user models imported later: so
    everything that depends on them is found when it is first needed.
    """

    credentials: Credentials
    #: The mapped class of user sessions; ``None``: they are in no table.
    session_model: type[t.Any] | None = None
    #: Whether somebody has looked, at the first request, if the table is there.
    was_looked_at = False

    def __init__(
        self,
        app: Flask,
        db: t.Any,
        user_model: type[t.Any] | None,
        session_model: type[t.Any] | None,
        *,
        on_complete: Callable[[Registry], None],
    ) -> None:
        self.settings = Settings(app.config)
        self.interface = app.session_interface
        self._given_db = db
        self._db = database_of(app, db)
        self._user_model = user_model
        self._session_model = session_model
        self._on_complete = on_complete
        #: Where a request keeps its state, and when it began.
        self._state_key = f"_session_registry_{id(self)}"
        self._began_key = f"{self._state_key}_began"
        self._is_ready = False
        self._prunes_at: float | None = None
        self._happened: set[str] = set()
        self._clients: dict[Hashable, int] = {}
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
        self.texts = Texts(self.settings.texts)
        self.geoip = _places_of(self.settings.geoip_database)
        self.entries = _entries_of(app)
        self.home = self._find_home()
        self.find_models(app)
        store_keys.choose_store_ids(self.interface, hashed=self.settings.hash_session_ids)
        #: Whether a session will be written at the end of the request, or could be.
        self.is_written = store_keys.hold_back_refreshes(self.interface, may_wait=_touches_often)

    def _find_home(self) -> Home | None:
        """Where user sessions are kept; ``None``: in a table.

        :raises ConfigurationError: there is no client for it, or one that can't be used.
        """
        kept = self.settings.records
        if kept == "sql":
            return None
        if self._session_model is not None:
            raise ConfigurationError(
                "'session_model' is for user sessions in a table, and 'SESSION_REGISTRY_RECORDS'"
                " says that they are kept elsewhere. Take out one of the two."
            )
        if kept != "redis":
            return t.cast(Home, kept)
        client = self.settings.redis
        if client is None and type(self.interface).__name__ == "RedisSessionInterface":
            client = t.cast(t.Any, self.interface).client
        if client is None:
            raise ConfigurationError(
                "'SESSION_REGISTRY_RECORDS' is 'redis', and there is no client. Give one in"
                " 'SESSION_REGISTRY_REDIS'."
            )
        if (
            not hasattr(client, "zscan")
            or inspect.iscoroutinefunction(client.get)
            or (hasattr(client, "command_stack") or "asyncio" in type(client).__module__)
        ):
            raise ConfigurationError(
                f"'SESSION_REGISTRY_REDIS' is a '{type(client).__name__}', which is no client of"
                " redis-py. Give a 'Redis' or a 'RedisCluster' that does not wait by 'await':"
                " 'redis.Redis.from_url(…)'."
            )
        if (
            getattr(client, "read_from_replicas", False)
            or getattr(client, "load_balancing_strategy", None)
            or not getattr(getattr(client, "connection_pool", None), "is_master", True)
        ):
            raise ConfigurationError(
                "The client in 'SESSION_REGISTRY_REDIS' reads from replicas, which may not know yet"
                " that a session has ended. Give one that reads from the primaries."
            )
        return RedisHome(client, self.settings.redis_prefix)

    def leaves_alone(self, user: object) -> bool:
        """Whether this is a user of a kind that the registry is not set up for.

        Not if it was told of no kind, and this is in no table: it may be one of its users, in
        another class.
        """
        is_known = isinstance(user, self.credentials.user_model)
        is_mapped = sa.inspect(user, raiseerr=False) is not None
        return not is_known and (self._user_model is not None or is_mapped)

    @property
    def is_complete(self) -> bool:
        """Whether the user model is known, and the table defined."""
        return hasattr(self, "credentials")

    @functools.cached_property
    def users(self) -> Users:
        # Only when first used: by then every model is imported.
        return Users(self.database, self.credentials)

    @functools.cached_property
    def records(self) -> Records:
        if self.home is not None:
            return RedisRecords(
                self.users,
                self.home,
                expiry=lambda: self.expiry(unwrap(current_app)),
                retention=self.settings.retention,
            )
        return SQLRecords(
            self.users,
            t.cast("type[t.Any]", self.session_model),
            self.credentials,
            loads_beginning=self.settings.absolute_timeout is not None,
        )

    @property
    def table(self) -> SQLRecords:
        """The same, where only a table will do."""
        return t.cast(SQLRecords, self.records)

    @property
    def database(self) -> Database:
        """The database extension of the app."""
        return t.cast(Database, self._db)

    @property
    def db_session(self) -> sa_orm.Session:
        """The app's database session."""
        return self.database.session

    def find_models(self, app: Flask) -> bool:
        """Find the user model and define the table, if that is possible by now.

        :raises ConfigurationError: what is there can't be used.
        """
        self._db = self._db or database_of(app, self._given_db)
        return self._define()

    def complete_when_possible(self, app: Flask) -> None:
        """Define the table as soon as the user model is there, and look whether all is well.

        When it is imported, or when the app is first used.
        """
        appcontext_pushed.connect(self._app_is_used, app)
        if not self.is_complete:
            self._define_with_user_model()

    def _app_is_used(self, app: Flask) -> None:
        """The first app context is pushed: what is missing now is missing for good.

        But for the user model, which may be imported within it: see :meth:`app_was_used`. Not where
        a request begins, which is told as soon as it can answer; nor where a command does, which
        may be the one that says what is wrong.

        :raises ConfigurationError: the app is put together wrongly.
        """
        had_db = self._db is not None
        try:
            self._look(app)
        except NoUserModelError:
            setattr(g, _LOOKS_AGAIN, True)
            if not had_db:
                self._define_with_user_model()
        except ConfigurationError as error:
            context = unwrap(app_ctx)
            if is_of_command():
                setattr(g, _LOOKS_AGAIN, True)
            elif not begins_request(context):
                # Or it would be left there, as whoever pushes it never pops it.
                context.pop(error)
                raise
        else:
            appcontext_pushed.disconnect(self._app_is_used, app)

    def app_was_used(self, app: Flask) -> None:
        """An app context ends, in which nothing has failed: is missing still what was before?

        :raises ConfigurationError: it is, or what came instead can't be used; unless this is a
            command, which has done what it could.
        """
        if not g.pop(_LOOKS_AGAIN, False):
            return
        try:
            self._look(app)
        except ConfigurationError as error:
            if not is_of_command():
                raise
            log.error("%s", error)

    def _define_with_user_model(self) -> None:
        if self._db is None:
            return
        reference = weakref.ref(self)

        def mapped(_: object, cls: type) -> None:
            registry = reference()
            if registry is not None and models.is_user_class(cls):
                registry._define()

        sa.event.listen(self._db.observed, "after_mapper_constructed", mapped, propagate=True)

    def _define(self) -> bool:
        if self.is_complete:
            return True
        with _defining:
            return self._define_alone()

    def _define_alone(self) -> bool:
        if self.is_complete:
            return True
        if self._db is None:
            return False
        user_model = self._user_model or models.find_user_model(self.database)
        if user_model is None or sa.inspect(user_model, raiseerr=False) is None:
            return False
        user_model = self._broadest(user_model)
        names = self._password_attributes(user_model)
        if self.home is not None:
            self.credentials = _without_table(Credentials(user_model, names))
            self._on_complete(self)
            return True
        session_model = self._session_model or models.define_user_session(self.database, user_model)
        if not hasattr(session_model, "user_id"):
            raise ConfigurationError(
                f"'{session_model.__name__}' has no 'user_id'. Declare it, with its foreign key to"
                f" '{user_model.__name__}'."
            )
        if self.settings.adopts and not sa.inspect(session_model).columns.user_id.nullable:
            raise ConfigurationError(
                f"'{session_model.__name__}.user_id' must not be null, and with"
                " 'SESSION_REGISTRY_UNREGISTERED' set to 'adopt' there are rows of nobody. Let it"
                " be null, as when a user is deleted."
            )
        self.session_model = session_model
        self.credentials = Credentials(user_model, names)
        self._on_complete(self)
        return True

    def _broadest(self, user_model: type[t.Any]) -> type[t.Any]:
        """The topmost user class that this one inherits from, if that has a password, too."""
        topmost = models.topmost_user_class(user_model)
        if topmost is user_model or self._user_model is None:
            return topmost
        try:
            self._password_attributes(topmost)
        except ConfigurationError:
            return user_model
        return topmost

    def _password_attributes(self, user_model: type[t.Any]) -> tuple[str, ...]:
        return password_attributes(
            user_model,
            self.settings.password_attribute,
            search=not self.settings.password_attribute_is_set,
        )

    def check(self, app: Flask) -> None:
        """Stop the app if it is put together wrongly; costs next to nothing once it is not.

        :raises ConfigurationError: something is missing, or came in the wrong order.
        """
        if not self._is_ready or app.session_interface is not self.interface:
            self._look(app)
            self._is_ready = True

    def _look(self, app: Flask) -> None:
        """Look whether everything is there, and came in the right order.

        :raises ConfigurationError: it is not so.
        """
        if app.session_interface is not self.interface:
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
        if not self.find_models(app):
            raise NoUserModelError(
                "No mapped class is a Flask-Login user. Import your user model before the app is"
                " first used and let it inherit from 'UserMixin', or pass it:"
                " 'SessionRegistry(user_model=…)'."
            )
        if self._user_model is None:
            # Once more: another one may have been imported since.
            models.find_user_model(self.database)
        # Likewise: a column, or a class that inherits from the user model.
        self._password_attributes(self.credentials.user_model)

    def expiry(self, app: Flask) -> Expiry:
        """The rule by which user sessions have expired by now."""
        settings = self.settings
        idle, absolute = settings.idle_timeout, settings.absolute_timeout
        unseen = app.permanent_session_lifetime, settings.touch_interval or dt.timedelta(0)
        return Expiry(
            now=clock.now(),
            unseen_since=clock.ago(_sum(*unseen)),
            idle_since=None if idle is None else clock.ago(idle),
            begun_by=None if absolute is None else clock.ago(absolute),
        )

    @functools.cached_property
    def limit(self) -> Limit | None:
        """How many active sessions a user may have."""
        most = self.settings.max_sessions
        if most is None:
            return None
        return Limit(most, rejects=self.settings.max_sessions_action == "reject")

    @property
    def retention(self) -> dt.timedelta | None:
        """How long the row of an ended session is kept; ``None``: for ever.

        As long as sessions are adopted, a row that has ended is what tells that one must not be.
        """
        return None if self.settings.adopts else self.settings.retention

    def is_first_time(self, event: str) -> bool:
        """Whether this has not happened before in this process, so that the log is told once."""
        is_first_time = event not in self._happened
        self._happened.add(event)
        return is_first_time

    def counts_to(self, number: int, client: Hashable) -> bool:
        """Whether a client has signed in so often, each time without a cookie, since the last time.

        As far as this process has seen, and remembers.
        """
        if len(self._clients) >= _MOST_CLIENTS and client not in self._clients:
            self._clients.clear()
        count = self._clients[client] = self._clients.get(client, 0) + 1
        if count < number:
            return False
        self._clients.pop(client, None)
        return True

    def is_prune_due(self) -> bool:
        """Whether it is time for this process to prune; if so, the next time is later."""
        if self.settings.auto_prune is None:
            return False
        interval, now = self.settings.auto_prune.total_seconds(), time.monotonic()
        if self._prunes_at is None:
            # Each process chooses for itself: not all at once, nor only those that live for long.
            self._prunes_at = now + random.uniform(0, interval)  # noqa: S311
        if now < self._prunes_at:
            return False
        self._prunes_at = now + interval
        return True

    def begin_request(self, app: Flask, request: Request) -> None:
        """The first thing in each request: stop if the app is put together wrongly."""
        self.check(app)
        vars(request)[self._began_key] = time.monotonic()

    def end_request(self, request: Request) -> None:
        """The last thing in each request: let go of what was known of it.

        Werkzeug's requests are in a cycle with their environment, and freed some time later.
        """
        vars(request).pop(self._state_key, None)

    @property
    def is_in_request(self) -> bool:
        """Whether there is a request, and it is one of this app."""
        context = request_context()
        return context is not None and self is context.app.extensions.get(_REGISTRY)

    @property
    def known_state(self) -> RequestState | None:
        """What is known of this request; ``None`` if nothing, or if there is no request."""
        context = request_context()
        return None if context is None else self.known_state_of(context.request)

    def known_state_of(self, request: Request) -> RequestState | None:
        """The same of this request."""
        return t.cast("RequestState | None", vars(request).get(self._state_key))

    @property
    def state(self) -> RequestState:
        """What is known of this request, of which there must be one.

        It is kept with the request itself. An app context may outlive many requests, and what is in
        ``g`` with it; and so may a WSGI environment: that of a web socket lives as long as this.
        """
        return self.state_of(t.cast(t.Any, request_context()).request)

    def state_of(self, request: Request) -> RequestState:
        """The same of this request; new if nothing is known yet."""
        kept = vars(request)
        state: RequestState | None = kept.get(self._state_key)
        if state is None:
            state = kept[self._state_key] = RequestState(kept.get(self._began_key))
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
        if identity is not None:
            return identity[0]
        saved = self.users.with_key_of(user) if self.users.is_made_by_hand(user) else None
        if saved is None:
            raise UserError(f"This '{model.__name__}' is not in the database yet. Flush it first.")
        return sa.inspect(saved, raiseerr=True).identity[0]

    def session_of(self, user: object) -> sa_orm.Session:
        """The database session that an instance belongs to, else the app's."""
        return sa_orm.object_session(unwrap(user)) or self.db_session


def _touches_often(app: Flask) -> bool:
    """Whether the sessions of an app last as long as they should if only a touch prolongs them."""
    registry = registry_on(app)
    interval = registry.settings.touch_interval if registry else None
    return interval is not None and interval * 10 <= app.permanent_session_lifetime


def _sum(one: dt.timedelta, other: dt.timedelta) -> dt.timedelta:
    return one + min(other, dt.timedelta.max - one)


def _without_table(credentials: Credentials) -> Credentials:
    """These, if users are named by a key that can be kept elsewhere.

    :raises ConfigurationError: it can't.
    """
    if kind_of(credentials.key) not in (int, str, uuid.UUID):
        raise ConfigurationError(
            f"The primary key of '{credentials.user_model.__name__}' is neither a whole number nor"
            " text nor a UUID, so that user sessions must be kept in SQL. Take out"
            " 'SESSION_REGISTRY_RECORDS'."
        )
    return credentials


def _places_of(database: str | None) -> GeoIPDatabase | None:
    """What says where an address is; ``None``: nothing does.

    :raises ConfigurationError: the file can't be used.
    """
    if database is None:
        return None
    try:
        from ._web.geoip import GeoIPDatabase
    except ImportError:
        raise ConfigurationError(
            "'SESSION_REGISTRY_GEOIP_DATABASE' needs the package 'geoip2'. Install"
            " 'Flask-Session-Registry[geoip]'."
        ) from None
    try:
        return GeoIPDatabase(database)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"The file in 'SESSION_REGISTRY_GEOIP_DATABASE', {database!r}, is no database of GeoIP2"
            f" that can be read: {error}"
        ) from error


def _entries_of(app: Flask) -> Entries:
    """The entries of the app's session store.

    :raises ConfigurationError: it is of an unknown kind, or not the one that was configured.
    """
    interface = app.session_interface
    store = store_of(interface)
    if store is None:
        raise ConfigurationError(
            f"The session interface of this app, '{type(interface).__name__}', is neither Flask's"
            " nor Flask-Session's. Say how its entries are deleted: 'register_session_store'."
        )
    setting = f"SESSION_{str(app.config.get('SESSION_TYPE')).upper()}"
    client = app.config.get(setting)
    # Flask-Session takes a client that it does not know, a Redis Cluster say, for none.
    if client is not None and getattr(interface, "client", client) is not client:
        raise ConfigurationError(
            f"Flask-Session does not use the client in '{setting}', but one for this machine that"
            " it has made itself. Set 'app.session_interface.client' to yours, between"
            " 'Session(app)' and the 'init_app' of 'SessionRegistry'."
        )
    return Entries(interface, store)


def unwrap(user: t.Any) -> t.Any:
    """The object behind a proxy such as ``current_user``."""
    return user._get_current_object() if hasattr(user, "_get_current_object") else user


def install(app: Flask, extension: object, registry: Registry) -> None:
    app.extensions[_EXTENSION] = extension
    app.extensions[_REGISTRY] = registry


def find_registry() -> Registry | None:
    """The registry on the current app, as far as it is set up; ``None`` if there is none."""
    return registry_on(unwrap(current_app)) if has_app_context() else None


def registry_on(app: Flask) -> Registry | None:
    """The registry on an app, as far as it is set up; ``None`` if there is none."""
    registry: Registry | None = app.extensions.get(_REGISTRY)
    return registry if registry and registry.is_complete else None


def get_registry() -> Registry:
    """The registry on the current app, checked.

    :raises NotInstalledError: ``init_app`` was not called.
    :raises ConfigurationError: the app is put together wrongly.
    """
    return checked_registry_on(unwrap(current_app))


def checked_registry_on(app: Flask) -> Registry:
    """The registry on an app, checked.

    :raises NotInstalledError: ``init_app`` was not called.
    :raises ConfigurationError: the app is put together wrongly.
    """
    registry: Registry | None = app.extensions.get(_REGISTRY)
    if registry is None:
        raise NotInstalledError(
            "'SessionRegistry' is not set up on this app. Call 'init_app(app)' first."
        )
    registry.check(app)
    return registry
