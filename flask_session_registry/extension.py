"""The extension: its set-up, and the verbs of an app."""

from __future__ import annotations

import contextlib
import functools
import typing as t
from collections.abc import Callable

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask import Blueprint, Flask, Response, current_app, request
from flask_login import user_accessed
from werkzeug.exceptions import Conflict

from ._app import Registry, get_registry, install, unwrap
from ._compat.databases import check_app
from ._compat.flask import (
    handle_wherever_raised,
    request_context,
    response_to,
    set_error_handler,
    surround_requests,
)
from ._diagnosis import check_records, explaining_table
from ._log import log
from ._ops import maintenance
from ._ops.cli import commands
from ._ops.maintenance import PruneResult
from ._records.base import as_id
from ._records.redis import RedisUserSession
from ._request import check as session_check
from ._request import credential_check, persistence
from ._request.sync import sync_current
from ._revocation import password_watch
from ._revocation import revoke as revocation
from ._setup import Setup
from ._store.purge import LONG_TIMEOUT, Purge
from .errors import ConfigurationError, SessionRegistryError, StaleRequestError
from .models import UserSessionRecord

_View = t.TypeVar("_View", bound=Callable[..., t.Any])


class SessionRegistry:
    """Knows where each user is signed in, and ends it, for certain, when a password changes.

    ::

        sessions = SessionRegistry()

        def create_app():
            ...
            db.init_app(app); login_manager.init_app(app); Session(app); Migrate(app, db)
            sessions.init_app(app)

    :param app: calls :meth:`init_app`.
    :param db: the app's Flask-SQLAlchemy, if it can't be found in ``app.extensions``.
    :param user_model: the class of those who sign in. By default the one mapped class that is a
        Flask-Login user; its subclasses count as it.
    :param session_model: a class of your own, built on :class:`UserSessionMixin`. By default the
        table ``user_sessions`` is defined beside the table of the users.
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
        """Set the registry up on an app. One registry may serve several apps.

        ``Session(app)`` comes before it. Flask-SQLAlchemy, Flask-Login, Flask-Migrate and the user
        model may come before or after.

        :raises ConfigurationError: a wrong setting, several user models, a table of that name, or
            Flask-Session not set up yet. What can only be seen later is raised at the first
            request.
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
        user_accessed.connect(session_check.check, app)
        persistence.connect(app)
        _follow_requests(app, registry)
        _answer_stale_changes(app, registry)
        handle_wherever_raised(app, session_check.Unavailable)
        for command in commands:
            app.cli.add_command(command)
        registry.setup.complete_when_possible(app)

    # -- where a user is signed in -------------------------------------------------------------

    @property
    def UserSession(self) -> type[t.Any]:
        """The class of user sessions of the current app: mapped, unless they are in Redis."""
        return get_registry().session_model or RedisUserSession

    @property
    def current(self) -> UserSessionRecord | None:
        """The user session of this request; ``None`` where nobody is signed in by a session.

        In the request of a login it is ``None`` too: the row is written when the view is done.
        """
        registry = get_registry()
        current = session_check.current(registry)
        if current is None:
            return None
        session = registry.db_session
        if current.row[0] is not session.get_transaction():
            # Or an app that does not let commits expire its instances would see the old values.
            current.forget_row()
        row: UserSessionRecord | None = registry.records.get(current.id)
        current.row = session.get_transaction(), row
        return row

    @property
    def rejected(self) -> str | None:
        """Why the session of this request was refused, or ``None``.

        ``"password_changed"``, ``"logged_out"``, ``"replaced"``, or the reason that a revocation
        gave, even if the entry is gone from the store by now; ``"id_changed"``: ``get_id()`` says
        something else of the user; ``"rotated"``: a session id from before a rotation;
        ``"inactive"``: the user is not active; ``"unregistered"``: it never had a user session;
        ``"unknown"``: it has none now; ``"expired"``: see the timeouts; ``"max_sessions"``: the
        user has signed in elsewhere too often since.
        """
        registry = get_registry()
        return session_check.reason_of_refusal(registry)

    @explaining_table()
    def active(self, user: t.Any) -> list[UserSessionRecord]:
        """The user's active sessions, most recently seen first.

        :raises UserError: ``user`` is no user, or not saved.
        """
        registry = get_registry()
        user_id = registry.user_id_of(user)
        return registry.records.active(
            registry.session_of(user),
            user_id,
            expiry=registry.expiry(unwrap(current_app)),
        )

    @property
    def blueprint(self) -> Blueprint:
        """The page on which a user sees where they are signed in, and ends it.

        ::

            app.register_blueprint(sessions.blueprint, url_prefix="/account/sessions")

        Its endpoint is ``session_registry.index``. To a request that accepts JSON rather than HTML
        it answers in JSON. Ending a session needs a password that was given within ``REAUTH_AGE``,
        else the app's ``refresh_view`` is asked for it (OWASP ASVS 5.0, 7.5.2).

        :raises ConfigurationError: Flask-WTF or ua-parser is not installed.
        """
        try:
            from ._web.views import blueprint
        except ImportError as error:
            raise ConfigurationError(
                f"The page needs a package that is not installed ({error.name}). Install"
                " 'Flask-Session-Registry[web]'."
            ) from error
        return blueprint

    # -- ending it -----------------------------------------------------------------------------

    def revoke_all(
        self,
        user: t.Any,
        except_current: bool = False,
        *,
        reason: str = "revoked",
        session: sa_orm.Session | sa_orm.scoped_session[t.Any] | None = None,
    ) -> int:
        """End all sessions of a user, when the transaction commits that this joins.

        It does not commit. A rollback, of a savepoint too, takes it back.

        :param except_current: spare the session of this request. Where there is none, or it is
            another user's, all end.
        :param reason: kept in the rows and sent with the signal; 1 to 64 characters.
        :param session: whose transaction to join; by default that of the session ``user`` belongs
            to, else ``db.session``.
        :returns: how many it ended; what the same transaction ended before is not counted again. If
            the records are in no table, two transactions at the same moment may count the same
            sessions; the signal ``session_revoked`` names each once.
        :raises UserError: ``user`` is no user, or not saved.
        :raises ValueError: a reason that does not fit.
        """
        registry = get_registry()
        user_id = registry.user_id_of(user)
        except_id = session_check.current(registry) if except_current else None
        return revocation.revoke_users(
            registry,
            unwrap(current_app),
            [user_id],
            reason=reason,
            session=_plain(session) or registry.session_of(user),
            except_id=except_id.id if except_id is not None else None,
        ).count

    def revoke(
        self, user_session_or_id: t.Any, *, user: t.Any = None, reason: str = "revoked"
    ) -> bool:
        """End one session, when the transaction commits that this joins. It does not commit.

        :param user_session_or_id: a user session, or its id as a UUID or as text.
        :param user: whose it must be. Somebody else's is treated as an unknown one.
        :returns: whether it ended; ``False`` if it is unknown, no UUID, or had ended already. If
            the records are in no table, two transactions that end it at the same moment may both
            get ``True``; the signal ``session_revoked`` is sent for one of them.
        :raises UserError: ``user`` is no user, or not saved.
        :raises ValueError: a reason that does not fit.
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
        """Decorate the view that changes the password.

        When a commit in it changes the signed-in user's password, the user's other sessions end in
        that same commit; this one goes on under a new id. If the view raises, what it has not
        committed is rolled back. Does for this view what ``REVOKE_ON_PASSWORD_CHANGE`` does
        everywhere. OWASP ASVS 5.0, 7.4.3.

        :param reason: kept in the rows and sent with the signal; 1 to 64 characters.
        :raises ValueError: a reason that does not fit.
        """
        revocation.check_reason(reason)
        if view is None:
            return functools.partial(password_watch.watch_password, reason=reason)
        return password_watch.watch_password(view, reason)

    def same_credentials(self, user: t.Any) -> contextlib.AbstractContextManager[None]:
        """Within it, a new password hash of this user is one of the *same* password.

        For a rehash at login, or a new algorithm: nobody is signed out. The change is flushed at
        the end of the block, if the block has not committed it.

        :raises UserError: ``user`` is no user, or not saved.
        """
        return password_watch.same_credentials(get_registry(), user)

    def credentials_checked(self, user: t.Any) -> contextlib.AbstractContextManager[None]:
        """Within it, the password of a user is checked who is signed in later.

        For a check that the registry can't see: of a hash that was not loaded with the user who is
        passed to ``login_user``, or in the first of several steps. The login that follows, in this
        request or in a later one of this browser, does not stand if the password has been changed
        since the block began. ::

            with sessions.credentials_checked(user):
                if not check_password_hash(stored_hash, form.password.data):
                    return "Wrong password.", 403

        A block that raises leaves no trace, and one for another user takes its place.

        :param user: the user, or their primary key.
        :raises UserError: ``user`` is not saved.
        :raises RuntimeError: there is no request.
        """
        registry = get_registry()
        if not registry.is_in_request:
            raise RuntimeError("'credentials_checked()' is for a login, and there is no request.")
        is_instance = sa.inspect(unwrap(user), raiseerr=False) is not None
        user_id = registry.user_id_of(user) if is_instance else user
        session = t.cast(t.Any, request_context()).session
        return credential_check.credentials_checked(unwrap(current_app), registry, session, user_id)

    def rotate(self) -> None:
        """Give this request's session a new id; the old one is dead when the request has ended.

        For a gain of privilege. Does nothing where nobody is signed in by a session, nor in the
        request of a login, which rotates by itself, as ``confirm_login()`` does (OWASP ASVS 5.0,
        7.2.4).

        :raises RuntimeError: there is no request.
        """
        registry = get_registry()
        if not registry.is_in_request:
            raise RuntimeError("'rotate()' works on the session of a request, and there is none.")
        persistence.rotate(unwrap(current_app), registry)

    # -- housekeeping --------------------------------------------------------------------------

    @explaining_table()
    def prune(self, limit: int | None = None) -> PruneResult:
        """End what has expired, purge what is pending, forget what is old.

        Ended sessions whose entries could not be deleted from the session store, because it was
        down or the process died, are purged now; what a rotation has left behind there, too. Rows
        that ended longer ago than ``RETENTION`` are deleted, after their entries once more.

        It works in batches, each in a short transaction of its own, and may be run twice, or in
        two processes at once. A store that is down ends it early, and is told by the signal
        ``purge_failed``. Sessions of users whose rows somebody else is writing are left for the
        next time.

        :param limit: how many user sessions at most, of each kind; by default, all.
        :returns: how many ended, were purged, and were forgotten.
        :raises ValueError: a limit below one.
        :raises SessionRegistryError: ``db.session`` has an open transaction, which would hold what
            this waits for.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"'limit' is {limit!r}. It must be above zero, or None.")
        registry = get_registry()
        if registry.users.is_in_transaction:
            raise SessionRegistryError(
                "'prune()' works in transactions of its own, and 'db.session' has one open. Commit"
                " or roll back first."
            )
        app = unwrap(current_app)
        purge = Purge(registry, app, timeout=LONG_TIMEOUT)
        return maintenance.prune(registry, app, limit=limit, purge=purge)


def _follow_requests(app: Flask, registry: Registry) -> None:
    """Take part in each request of an app.

    By plain functions: of each, Flask finds out in each request whether it must be awaited, and of
    a method or a partial that takes longer.
    """

    def begin(_: str | None, __: dict[str, t.Any] | None) -> None:
        current = unwrap(request)
        registry.begin_request(app, current)
        if app.debug and not registry.was_looked_at:
            _look(registry)
        persistence.set_user_aside(current)

    def finish(response: Response) -> Response:
        response = persistence.finish(response, app, registry)
        session_check.note_answer(unwrap(request))
        return response

    def end(_: BaseException | None) -> None:
        current = unwrap(request)
        persistence.restore_user(current)
        registry.end_request(current)

    def run_deferred(error: BaseException | None) -> None:
        persistence.run_deferred(app)
        if error is None:
            registry.setup.app_was_used(app)

    surround_requests(app, begin=begin, finish=finish, end=end, end_of_context=run_deferred)


def _look(registry: Registry) -> None:
    """Tell a developer at once if the table is missing, and not when somebody signs in.

    Once in the life of a process, and in debug mode only: elsewhere a request that does not ask for
    the user has nothing to do with the database, nor waits for one that is down.
    """
    if not registry.users.is_in_transaction:
        registry.was_looked_at = True
        diagnosis = check_records(registry)
        if diagnosis is not None:
            log.error("%s", diagnosis)


def _answer_stale_changes(app: Flask, registry: Registry) -> None:
    """Answer a refused change of a password as the app answers conflicts (409)."""

    def refuse(error: StaleRequestError) -> Response:
        # Or the error page could not ask the database anything.
        registry.users.roll_back()
        current = session_check.current(registry)
        if current is not None:
            # If it was changed in this very browser, the answer must not bring its old cookie back.
            sync_current(registry, [current.user_id])
        return response_to(app, Conflict(error.description))

    set_error_handler(app, StaleRequestError, refuse)


def _plain(
    session: sa_orm.Session | sa_orm.scoped_session[t.Any] | None,
) -> sa_orm.Session | None:
    return session() if isinstance(session, sa_orm.scoped_session) else session


def _session_of(row: t.Any) -> sa_orm.Session | None:
    is_mapped = sa.inspect(row, raiseerr=False) is not None
    return sa_orm.object_session(row) if is_mapped else None
