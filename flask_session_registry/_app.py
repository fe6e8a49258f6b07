"""The services of one app: what the other modules reach through ``get_registry()``."""

from __future__ import annotations

import datetime as dt
import functools
import typing as t

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask import Flask, current_app, has_app_context

from . import _clock as clock
from ._compat.flask import unwrap
from ._config import Settings
from ._log import OnceLogger
from ._ops.prune_schedule import PruneSchedule
from ._records.base import Limit
from ._records.expiry import Expiry
from ._records.protocols import Records
from ._records.redis import RedisRecords
from ._records.sql import SQLRecords
from ._records.users import Users
from ._request import store_keys
from ._request.cookieless_logins import CookielessLogins
from ._web.i18n import Texts
from .errors import NotInstalledError, UserError

if t.TYPE_CHECKING:
    from ._adoption.hooks import NoAdoption
    from ._compat.databases import Database
    from ._records.redis import RedisClient
    from ._revocation.password_history import Credentials
    from ._setup import Setup
    from ._store.backends import Entries
    from ._web.geoip import GeoIPDatabase

_EXTENSION = "session_registry"
_REGISTRY = "session_registry.app"


class Registry:
    """What the registry knows of one app. It never keeps the app itself.

    :class:`~flask_session_registry._setup.Setup` fills it in.
    """

    setup: Setup
    #: The database extension; ``None`` until it is set up.
    database: t.Any = None
    #: Set once the user model is known.
    credentials: Credentials
    #: Whether the user model was passed to :class:`SessionRegistry`.
    has_given_user_model: bool
    #: The mapped class of user sessions; ``None`` if they are kept in Redis.
    session_model: type[t.Any] | None = None
    #: The Redis that user sessions are kept in; ``None`` if they are kept in SQL.
    redis: RedisClient | None
    #: What locates IP addresses, if anything does.
    geoip: GeoIPDatabase | None
    #: What becomes of sessions from before the installation.
    adoption: NoAdoption
    #: The entries of the session store.
    entries: Entries
    #: Whether debug mode has looked for the tables, at the first request.
    tables_were_checked = False

    def __init__(self, app: Flask) -> None:
        self.settings = Settings(app.config)
        self.interface = app.session_interface
        self.texts = Texts(self.settings.texts)
        self.prune_schedule = PruneSchedule(self.settings.auto_prune)
        #: The names under which a request keeps its context, and its beginning.
        self.context_key = f"_session_registry_{id(self)}"
        self.beginning_key = f"{self.context_key}_beginning"
        self.log_once = OnceLogger()
        self.cookieless_logins = CookielessLogins()

    def manage_store_keys(self) -> None:
        """Take over how the session interface names its entries, once setup has found no fault."""
        store_keys.configure_store_keys(self.interface, hashed=self.settings.hash_session_ids)
        #: Whether a session will be written at the end of the request, or could be.
        self.is_written = store_keys.defer_refreshes(self.interface, may_defer=_touches_often)

    @property
    def is_complete(self) -> bool:
        """Whether the user model is known, and the tables are defined."""
        return hasattr(self, "credentials")

    # -- services ------------------------------------------------------------------------------

    @functools.cached_property
    def users(self) -> Users:
        # Only when first used: by then every model is imported.
        return Users(t.cast("Database", self.database), self.credentials)

    @functools.cached_property
    def records(self) -> Records:
        if self.redis is not None:
            return RedisRecords(
                self.users,
                self.redis,
                expiry=lambda: self.expiry(unwrap(current_app)),
                retention=self.settings.retention,
                loads_beginning=self.settings.absolute_timeout is not None,
            )
        return SQLRecords(
            self.users,
            t.cast("type[t.Any]", self.session_model),
            self.credentials,
            loads_beginning=self.settings.absolute_timeout is not None,
        )

    @property
    def sql_records(self) -> SQLRecords:
        """The records, where they must be in SQL."""
        return t.cast(SQLRecords, self.records)

    @property
    def db_session(self) -> sa_orm.Session:
        """The app's database session."""
        return t.cast("Database", self.database).session

    # -- rules ---------------------------------------------------------------------------------

    def expiry(self, app: Flask) -> Expiry:
        """Return the rule by which user sessions have expired by now."""
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
        """The number of active sessions a user may have, if there is a limit."""
        maximum = self.settings.max_sessions
        if maximum is None:
            return None
        return Limit(maximum, rejects=self.settings.max_sessions_action == "reject")

    @property
    def retention(self) -> dt.timedelta | None:
        """How long the row of an ended session is kept; ``None``: forever."""
        return None if self.adoption.keeps_ended_rows else self.settings.retention

    # -- users ---------------------------------------------------------------------------------

    def leaves_alone(self, user: object) -> bool:
        """Return whether the registry isn't set up for this kind of user.

        An unmapped class could stand for one of its users, unless the user model was passed.
        """
        is_known = isinstance(user, self.credentials.user_model)
        is_mapped = sa.inspect(user, raiseerr=False) is not None
        return not is_known and (self.has_given_user_model or is_mapped)

    def user_id_of(self, user: object) -> t.Any:
        """Return the primary key of a saved user.

        :raises UserError: not a user of this app, or not saved.
        """
        user = unwrap(user)
        model = self.credentials.user_model
        if not isinstance(user, model):
            raise UserError(f"A '{model.__name__}' was expected, not a '{type(user).__name__}'.")
        identity = sa.inspect(user, raiseerr=True).identity
        if identity is not None:
            return identity[0]
        saved = self.users.with_key_of(user) if self.users.is_transient(user) else None
        if saved is None:
            raise UserError(f"This '{model.__name__}' is not in the database yet. Flush it first.")
        return sa.inspect(saved, raiseerr=True).identity[0]

    def session_of(self, user: object) -> sa_orm.Session:
        """Return the database session that an instance belongs to, else the app's."""
        return sa_orm.object_session(unwrap(user)) or self.db_session


def _touches_often(app: Flask) -> bool:
    """Return whether sessions last as long as they should if only a touch prolongs them."""
    registry = registry_on(app)
    interval = registry.settings.touch_interval if registry else None
    return interval is not None and interval * 10 <= app.permanent_session_lifetime


def _sum(one: dt.timedelta, other: dt.timedelta) -> dt.timedelta:
    return one + min(other, dt.timedelta.max - one)


def install(app: Flask, extension: object, registry: Registry) -> None:
    """Make the registry known to the app."""
    app.extensions[_EXTENSION] = extension
    app.extensions[_REGISTRY] = registry


def find_registry() -> Registry | None:
    """Return the registry on the current app; ``None`` if there is none, or it isn't complete."""
    return registry_on(unwrap(current_app)) if has_app_context() else None


def registry_on(app: Flask) -> Registry | None:
    """Return the registry on an app; ``None`` if there is none, or it isn't complete."""
    registry: Registry | None = app.extensions.get(_REGISTRY)
    return registry if registry and registry.is_complete else None


def get_registry() -> Registry:
    """Return the registry on the current app, checked.

    :raises NotInstalledError: ``init_app`` was not called.
    :raises ConfigurationError: the app is misconfigured.
    """
    return checked_registry_on(unwrap(current_app))


def checked_registry_on(app: Flask) -> Registry:
    """Return the registry on an app, checked.

    :raises NotInstalledError: ``init_app`` was not called.
    :raises ConfigurationError: the app is misconfigured.
    """
    registry: Registry | None = app.extensions.get(_REGISTRY)
    if registry is None:
        raise NotInstalledError(
            "'SessionRegistry' is not set up on this app. Call 'init_app(app)' first."
        )
    registry.setup.check(app)
    return registry
