"""The extension: what an app sets up, and calls."""

from __future__ import annotations

import contextlib
import functools
import typing as t
from collections.abc import Callable

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask import Blueprint, Flask, current_app
from flask_login import user_accessed

from ._app import Registry, get_registry, install
from ._compat.databases import check_app
from ._compat.flask import handle_wherever_raised, request_context, unwrap
from ._diagnosis import explaining_table
from ._ops import maintenance
from ._ops.cli import commands
from ._ops.maintenance import PruneResult
from ._records.base import as_id
from ._records.redis import RedisUserSession
from ._request import auth_events, credential_check, refusal
from ._request import check as session_check
from ._request.context import is_in_request
from ._request.hooks import answer_stale_changes, follow_requests
from ._revocation import password_watch
from ._revocation import revoke as revocation
from ._setup import Setup
from ._store.purge import LONG_TIMEOUT, Purge
from .errors import ConfigurationError, SessionRegistryError
from .models import UserSessionRecord

_View = t.TypeVar("_View", bound=Callable[..., t.Any])


class SessionRegistry:
    """Records where each user is signed in; signs them out everywhere when the password changes.

    ::

        sessions = SessionRegistry()

        def create_app():
            ...
            db.init_app(app); login_manager.init_app(app); Session(app); Migrate(app, db)
            sessions.init_app(app)

    :param app: if given, :meth:`init_app` is called with it.
    :param db: the app's Flask-SQLAlchemy extension, if it isn't in ``app.extensions``.
    :param user_model: the class of users. By default the one mapped class that is a Flask-Login
        user; its subclasses are included.
    :param session_model: your own class of user sessions, built on :class:`UserSessionMixin`. By
        default the table ``user_sessions`` is defined, in the bind and schema of the users' table.
    """

    def __init__(
        self,
        app: Flask | None = None,
        db: t.Any = None,
        *,
        user_model: type[t.Any] | None = None,
        session_model: type[t.Any] | None = None,
    ) -> None:
        self._db = db
        self._user_model = user_model
        self._session_model = session_model
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, db: t.Any = None) -> None:
        """Set the registry up on an app. One registry can serve several apps.

        Call it after ``Session(app)``. Flask-SQLAlchemy, Flask-Login, Flask-Migrate and the user
        model may be set up before or after.

        :param db: overrides the ``db`` of the constructor.
        :raises ConfigurationError: a setting is invalid, there are several user models or another
            table of that name, or Flask-Session isn't set up yet. What only shows later is raised
            at the first request.
        """
        check_app(app)
        if "session_registry" in app.extensions:
            raise ConfigurationError(
                "A 'SessionRegistry' is set up on this app already. Use that one."
            )
        registry = Registry(app)
        registry.setup = Setup(
            app,
            registry,
            db or self._db,
            self._user_model,
            self._session_model,
            on_complete=password_watch.listen,
        )
        registry.manage_store_keys()
        install(app, self, registry)
        registry.adoption.prepare(app)
        # Not by a weak reference, which is resolved in each request.
        user_accessed.connect(session_check.check, app, weak=False)
        auth_events.connect(app)
        follow_requests(app, registry)
        answer_stale_changes(app, registry)
        handle_wherever_raised(app, refusal.Unavailable)
        for command in commands:
            app.cli.add_command(command)
        registry.setup.complete_when_possible(app)

    # -- where users are signed in -----------------------------------------------------------------

    @property
    def UserSession(self) -> type[t.Any]:
        """The class of user sessions of the current app; it is mapped if they are kept in SQL."""
        model = get_registry().session_model
        return RedisUserSession if model is None else model

    @property
    def current(self) -> UserSessionRecord | None:
        """The user session of this request; ``None`` if no user is signed in by a session.

        It is also ``None`` in the request of a login, whose row is written after the view.
        """
        registry = get_registry()
        current = session_check.current(registry)
        if current is None:
            return None
        session = registry.db_session
        # Otherwise, an app whose commits don't expire instances would see the old values.
        current.forget_row(unless_of=session.get_transaction())
        row: UserSessionRecord | None = registry.records.get(current.id)
        current.hold_row(row, session.get_transaction())
        return row

    @property
    def rejected(self) -> str | None:
        """Why the session of this request was refused; ``None`` if it wasn't.

        - ``"password_changed"``, ``"logged_out"``, ``"replaced"`` by another login, or the reason
          of a revocation, even if the store entry is gone by now;
        - ``"max_sessions"``: newer logins of the user have reached the limit;
        - ``"expired"``: a timeout has passed;
        - ``"rotated"``: it has an id from before a rotation;
        - ``"id_changed"``: ``get_id()`` returns another id for the user;
        - ``"inactive"``: the user is not active;
        - ``"unregistered"``: it never had a user session;
        - ``"unknown"``: it has no user session now.
        """
        return session_check.reason_of_refusal(get_registry())

    @explaining_table()
    def active(self, user: t.Any) -> list[UserSessionRecord]:
        """Return the user's active sessions, most recently seen first.

        :raises UserError: ``user`` is not a user of this app, or not saved.
        """
        registry = get_registry()
        user_id = registry.user_id_of(user)
        expiry = registry.expiry(unwrap(current_app))
        return registry.records.active(registry.session_of(user), user_id, expiry=expiry)

    def device_name(self, user_session: UserSessionRecord) -> str | None:
        """Return the name of the device that a session is on, such as ``"Firefox on Linux"``.

        It is in English, and derived from the user agent, which may be any text: escape it.
        ``None`` if the user agent names no device.

        :raises ConfigurationError: ua-parser is not installed.
        """
        try:
            from ._web.user_agents import device_of
        except ImportError as error:
            raise _web_is_missing("The name of a device", error) from error
        return device_of(user_session.user_agent).name

    @property
    def blueprint(self) -> Blueprint:
        """The page on which users see where they are signed in, and end these sessions.

        ::

            app.register_blueprint(sessions.blueprint, url_prefix="/account/sessions")

        Its endpoint is ``session_registry.index``. It responds in JSON to requests that prefer it
        to HTML. To end a session, the user must have given the password within ``REAUTH_AGE``;
        otherwise the app's ``refresh_view`` asks for it (OWASP ASVS 5.0, 7.5.2).

        :raises ConfigurationError: Flask-WTF or ua-parser is not installed.
        """
        try:
            from ._web.views import blueprint
        except ImportError as error:
            raise _web_is_missing("The page", error) from error
        return blueprint

    # -- ending sessions ---------------------------------------------------------------------------

    def revoke_all(
        self,
        user: t.Any,
        except_current: bool = False,
        *,
        reason: str = "revoked",
        session: sa_orm.Session | sa_orm.scoped_session[t.Any] | None = None,
    ) -> int:
        """End all sessions of a user, in the caller's transaction. It doesn't commit.

        They end when the transaction commits. A rollback, also to a savepoint, undoes it.

        :param except_current: spare the session of this request. If there is none, or it belongs
            to another user, all end.
        :param reason: recorded and sent with the signal; 1 to 64 characters.
        :param session: the database session whose transaction to join; by default the one that
            ``user`` belongs to, or else ``db.session``.
        :returns: how many sessions end; those that the same transaction has ended before are not
            counted again. If the records are in Redis, two simultaneous transactions may count the
            same sessions; the signal ``session_revoked`` names each once.
        :raises UserError: ``user`` is not a user of this app, or not saved.
        :raises ValueError: the reason is not text of that length.
        """
        registry = get_registry()
        user_id = registry.user_id_of(user)
        spared = session_check.current(registry) if except_current else None
        given: sa_orm.Session | None = (
            session() if isinstance(session, sa_orm.scoped_session) else session
        )
        return revocation.revoke_users(
            registry,
            unwrap(current_app),
            [user_id],
            reason=reason,
            session=given or registry.session_of(user),
            except_id=None if spared is None else spared.id,
        ).result.count

    def revoke(
        self, user_session_or_id: t.Any, *, user: t.Any = None, reason: str = "revoked"
    ) -> bool:
        """End one session, in the caller's transaction. It doesn't commit.

        It ends when the transaction commits.

        :param user_session_or_id: a user session, or its id as a UUID or as text.
        :param user: the user it must belong to; another user's session counts as unknown.
        :param reason: recorded and sent with the signal; 1 to 64 characters.
        :returns: whether it ends; ``False`` if it is unknown, not a UUID, or had ended before. If
            the records are in Redis, two simultaneous transactions may both get ``True``; the
            signal ``session_revoked`` is sent once.
        :raises UserError: ``user`` is not a user of this app, or not saved.
        :raises ValueError: the reason is not text of that length.
        """
        registry = get_registry()
        revocation.check_reason(reason)
        owner = None if user is None else registry.user_id_of(user)
        id = as_id(getattr(user_session_or_id, "id", user_session_or_id))
        if id is None:
            return False
        session = _session_of(user_session_or_id) or registry.db_session
        ending = revocation.revoke_one(
            registry, unwrap(current_app), id, user_id=owner, reason=reason, session=session
        )
        return ending is not None

    @t.overload
    def revoke_on_password_change(self, view: _View) -> _View: ...

    @t.overload
    def revoke_on_password_change(
        self, view: None = None, *, reason: str = ...
    ) -> Callable[[_View], _View]: ...

    def revoke_on_password_change(
        self, view: _View | None = None, *, reason: str = password_watch.PASSWORD_CHANGED
    ) -> _View | Callable[[_View], _View]:
        """Decorate the view that changes the password (OWASP ASVS 5.0, 7.4.3).

        When a commit in it changes the password of the signed-in user, their other sessions end in
        that same commit; this one goes on under a new id. If the view raises, uncommitted changes
        are rolled back. It does for this view what ``REVOKE_ON_PASSWORD_CHANGE`` does everywhere.

        :param reason: recorded and sent with the signal; 1 to 64 characters.
        :raises ValueError: the reason is not text of that length.
        """
        revocation.check_reason(reason)
        if view is None:
            return functools.partial(password_watch.watch_password, reason=reason)
        return password_watch.watch_password(view, reason)

    def same_credentials(self, user: t.Any) -> contextlib.AbstractContextManager[None]:
        """Treat a new password hash of this user, within the block, as the *same* password.

        For a rehash at login, or another algorithm: no session ends. The change is flushed at the
        end of the block, unless the block has committed it.

        :raises UserError: ``user`` is not a user of this app, or not saved.
        """
        return password_watch.same_credentials(get_registry(), user)

    def credentials_checked(self, user: t.Any) -> contextlib.AbstractContextManager[None]:
        """Check, within the block, the password of a user who is signed in later.

        Needed where the registry can't see that check: the hash wasn't loaded with the user passed
        to ``login_user``, or the login has several steps. The login that follows, in this request
        or in a later one of this browser, is refused if the password has been changed since the
        block began. ::

            with sessions.credentials_checked(user):
                if not check_password_hash(stored_hash, form.password.data):
                    return "Wrong password.", 403

        A block that raises has no effect. A block for another user replaces an earlier one.

        :param user: the user, or their primary key.
        :raises UserError: ``user`` is not saved.
        :raises RuntimeError: there is no request.
        """
        registry, context = get_registry(), request_context()
        if context is None or not is_in_request(registry):
            raise RuntimeError("'credentials_checked()' needs a request. Call it in a view.")
        is_instance = sa.inspect(unwrap(user), raiseerr=False) is not None
        user_id = registry.user_id_of(user) if is_instance else user
        return credential_check.credentials_checked(
            unwrap(current_app), registry, context.session, user_id
        )

    def rotate(self) -> None:
        """Give the session of this request a new id; the old one is invalid when the request ends.

        For a gain of privilege (OWASP ASVS 5.0, 7.2.4). It does nothing if no user is signed in by
        a session, or in the request of a login, which rotates by itself, as ``confirm_login()``
        does.

        :raises RuntimeError: there is no request.
        """
        registry = get_registry()
        if not is_in_request(registry):
            raise RuntimeError("'rotate()' needs a request. Call it in a view.")
        auth_events.rotate(unwrap(current_app), registry)

    # -- maintenance -------------------------------------------------------------------------------

    @explaining_table()
    def prune(self, limit: int | None = None) -> PruneResult:
        """End what has expired, purge what is pending, delete what is old.

        Purge ended sessions whose entries could not be deleted from the session store, because it
        was down or the process died, and store keys that rotations have left behind. Delete the
        records of sessions that ended longer ago than ``RETENTION``, after purging them again.

        It works in batches, each in a short transaction of its own, and may run repeatedly, or in
        several processes at once. If the store is down, it stops early and sends the signal
        ``purge_failed``. Sessions of users whose rows are locked are skipped until the next run.

        :param limit: the maximum number of user sessions, of each kind; by default, all.
        :returns: how many have ended, were purged, and were deleted.
        :raises ValueError: the limit is below one.
        :raises SessionRegistryError: ``db.session`` has an open transaction, which might hold locks
            that this waits for.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"'limit' is {limit!r}. It must be above zero, or None.")
        registry = get_registry()
        if registry.users.is_in_transaction:
            raise SessionRegistryError(
                "'prune()' uses its own transactions, and 'db.session' has one open. Commit or roll"
                " back first."
            )
        app = unwrap(current_app)
        purge = Purge(registry, app, timeout=LONG_TIMEOUT)
        return maintenance.prune(registry, app, limit=limit, purge=purge)


def _web_is_missing(what: str, error: ImportError) -> ConfigurationError:
    return ConfigurationError(
        f"{what} needs a package that is not installed ({error.name}). Install"
        " 'Flask-Session-Registry[web]'."
    )


def _session_of(row: t.Any) -> sa_orm.Session | None:
    is_mapped = sa.inspect(row, raiseerr=False) is not None
    return sa_orm.object_session(row) if is_mapped else None
