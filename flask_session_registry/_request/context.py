"""The state of one request. Only its methods change it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import typing as t
import uuid
from collections.abc import Iterable, Iterator

from .._app import registry_on
from .._compat.flask import current_request_context, request_context
from .marker import MARKER
from .values import SessionKeys

if t.TYPE_CHECKING:
    from flask.sessions import SessionMixin
    from werkzeug.wrappers import Request

    from .._adoption.adoption import AdoptionState
    from .._app import Registry
    from .._compat.flask import RequestContext as FlaskContext
    from .._records.base import End
    from .._revocation.commit_hooks import Pending
    from .._store.purge import EndedSession
    from .current_session import CurrentSession
    from .values import CheckResult, Login, Rehash, ScheduledEnd


#: The attributes of a context whose request has only been checked, and accepted.
_AS_CHECKED = {"_compared_at", "pending", "rehashes", "current"}


class RequestContext:
    """Everything that the registry remembers until the request ends. Others only read it.

    Initial values are in the class: there is one of these for each request that is checked.

    :param began: when the request began, on the monotonic clock; now, if unknown.
    """

    #: The user session that the check has accepted, or that a login has opened.
    current: CurrentSession | None = None
    #: The login of this request, until its row is written.
    login: Login | None = None
    #: What is known of a session from before the installation.
    adoption: AdoptionState | None = None
    #: The store key that the browser's cookie names, if there is no such entry.
    missing_store_key: str | None = None
    #: Why the session of this request was refused.
    rejected: str | None = None
    #: The id of the refused user session, if known.
    rejected_id: uuid.UUID | None = None
    #: Whether the session was refused although its browser is, or will be, signed in.
    is_superseded = False
    #: Whether the records couldn't be used: nothing is written, no cookie is changed.
    is_unavailable = False
    #: Whether the session was emptied, while the browser keeps what it holds.
    discards_session = False
    #: Whether the "remember me" cookie was refused, and is cleared in the browser.
    clears_remember_cookie = False
    #: The reason that a password change in this request gives; ``None`` as configured.
    watch_reason: str | None = None
    #: The refused user session that is to end after the response.
    to_end: ScheduledEnd | None = None
    #: The user sessions that this request has ended, and whose rows are kept.
    ended: tuple[EndedSession, ...] = ()
    #: Further user sessions that a login has ended, and whose rows are to be deleted.
    forgotten: tuple[EndedSession, ...] = ()
    #: The store keys that sessions of this request have left behind.
    left_behind: tuple[str, ...] = ()
    _recorded: uuid.UUID | None = None

    def __init__(self, began: float | None) -> None:
        self._compared_at = time.monotonic() if began is None else began
        # Lists, because threads that a view starts may append to them.
        #: The work of this request that follows commits, done or not.
        self.pending: list[Pending] = []
        #: New hashes of the same password that this request has stored.
        self.rehashes: list[Rehash] = []

    @property
    def age(self) -> float:
        """The seconds since the session of this request was last compared with its row.

        At first since the request began: the check may see the database as it was then.
        """
        return time.monotonic() - self._compared_at

    @property
    def has_deferred_work(self) -> bool:
        """Whether anything of this request is to be ended, purged or deleted after the response."""
        return bool(self.ended or self.left_behind or self.to_end or self.forgotten)

    @property
    def is_as_checked(self) -> bool:
        """Whether nothing has happened since the check accepted the session.

        Whatever happens sets another attribute, or waits for a commit.
        """
        return vars(self).keys() == _AS_CHECKED and not self.pending

    def is_known(self, carried: object) -> bool:
        """Return whether this very session was accepted, or opened, earlier in this request."""
        current, login = self.current, self.login
        return (current is not None and current.marker == carried) or (
            login is not None and login.marker == carried
        )

    # -- the check -----------------------------------------------------------------------------

    def apply(self, result: CheckResult, browser: SessionMixin) -> None:
        """Take over the result of a check. A refusal follows by :meth:`refuse`.

        :param browser: ``flask.session``.
        """
        if result.session is not None:
            self.current = result.session
        if result.reason is not None:
            self.is_superseded = result.is_superseded
            self.to_end = result.to_end or self.to_end
        if result.marker is not None:
            browser[MARKER] = result.marker
        if result.adoption is not None:
            self.adoption = result.adoption

    def note_missing_entry(self, store_key: str | None) -> None:
        """Set :attr:`missing_store_key`."""
        self.missing_store_key = store_key

    def refuse(self, reason: str, id: uuid.UUID | None, *, clears_remember_cookie: bool) -> None:
        """Refuse the session that the browser came with."""
        self.rejected, self.rejected_id = reason, id
        self.clears_remember_cookie = clears_remember_cookie

    def explain_refusal(self, end: End, id: uuid.UUID | None, *, is_superseded: bool) -> None:
        """Note how a session ended, if its entry is missing."""
        self.rejected, self.rejected_id = end.reason, id
        self.is_superseded = is_superseded

    def supersede(self, reason: str, id: uuid.UUID) -> None:
        """Refuse the session because its browser is, or will be, signed in by another one."""
        self.rejected, self.rejected_id, self.is_superseded = reason, id, True

    def mark_unavailable(self) -> None:
        """Write nothing and change no cookie: the records couldn't be used."""
        self.is_unavailable = True

    # -- the session ---------------------------------------------------------------------------

    def note_comparison(self) -> None:
        """Note that the current user session is as its row is now, committed."""
        self._compared_at = time.monotonic()

    def drop_current(self) -> None:
        """Forget the current user session: it has ended, or belongs to another request."""
        self.current = None

    def discard_session(self) -> None:
        """Note that the session was emptied, while the browser keeps what it holds."""
        self.discards_session = True

    def end_current(self) -> None:
        """Forget the current user session, which this request has ended."""
        assert self.current is not None  # noqa: S101 -- callers have made sure
        self.ended += (SessionKeys(self.current.id, self.current.keys),)
        self.current = None

    def leave_behind(self, store_key: str | None, *, except_key: str | None) -> None:
        """Note the key of a store entry to delete, unless it is the one in use."""
        if store_key not in (None, except_key, *self.left_behind):
            self.left_behind += (t.cast(str, store_key),)

    def clear_remember_cookie(self, clears: bool = True) -> None:
        """Clear the "remember me" cookie in the browser, or leave it alone after all."""
        self.clears_remember_cookie = clears

    # -- logins --------------------------------------------------------------------------------

    def begin_login(self, login: Login) -> None:
        """Note a login, whose row is written at the end of the request."""
        self.login = login

    def assign_id(self, login: Login, id: uuid.UUID, user_key: object) -> Login:
        """Give a login the id of its row, and its user's key; return the login."""
        self.login = dataclasses.replace(login, id=id, user_key=user_key)
        return self.login

    def detach_login(self) -> None:
        """Let a login no longer depend on the session from before."""
        if self.login is not None:
            self.login = dataclasses.replace(self.login, replaces=None)

    def drop_login(self) -> None:
        """Undo a login: the session that it depends on has ended or been rotated."""
        self.login = None

    def finish_login(
        self,
        current: CurrentSession,
        *,
        ended: Iterable[EndedSession],
        forgotten: Iterable[EndedSession],
    ) -> None:
        """Make the session of a login, whose row has been written, the current one.

        :param ended: the sessions that the login has ended, and whose rows are kept.
        :param forgotten: further sessions that it has ended, and whose rows are to be deleted.
        """
        self.login, self.current, self._recorded = None, current, current.id
        self.ended += (*ended,)
        self.forgotten += (*forgotten,)

    def take_recorded_login(self) -> uuid.UUID | None:
        """Return the id of the user session that a login has opened, the first time only."""
        recorded, self._recorded = self._recorded, None
        return recorded

    # -- transactions --------------------------------------------------------------------------

    def await_commit(self, pending: Pending) -> None:
        """Note what follows a commit, so that it isn't left uncommitted unnoticed."""
        self.pending.append(pending)

    def record_rehash(self, user_id: t.Any, before: str | None, after: str | None) -> None:
        """Note a new hash of the same password, by its fingerprints."""
        self.rehashes.append((user_id, before, after))

    @contextlib.contextmanager
    def watching_password(self, reason: str) -> Iterator[None]:
        """Give password changes within the block this reason."""
        before, self.watch_reason = self.watch_reason, reason
        try:
            yield
        finally:
            self.watch_reason = before


# -- access --------------------------------------------------------------------------------------


def ensure_context(registry: Registry, request: Request | None = None) -> RequestContext:
    """Return the context of a request, which is created if there is none yet.

    It is kept with the request itself. An app context, and ``g``, may outlive many requests; so may
    a WSGI environment: that of a web socket lives as long as the socket.

    :param request: by default the current request. There must be one.
    """
    if request is None:
        request = current_request_context().request
    kept = vars(request)
    context: RequestContext | None = kept.get(registry.context_key)
    if context is None:
        beginning: _Beginning | None = kept.get(registry.beginning_key)
        context = RequestContext(None if beginning is None else beginning.at)
        kept[registry.context_key] = context
    return context


def find_context(registry: Registry, request: Request | None = None) -> RequestContext | None:
    """Return the context of a request; ``None`` if there is none.

    :param request: by default the current request, if there is one.
    """
    if request is None:
        found = request_context()
        if found is None:
            return None
        request = found.request
    context: RequestContext | None = vars(request).get(registry.context_key)
    return context


def is_in_request(registry: Registry) -> bool:
    """Return whether there is a request, and it belongs to the app of this registry."""
    found = request_context()
    return found is not None and registry_on(found.app) is registry


class _Beginning(t.NamedTuple):
    """The beginning of a request."""

    #: When it was, on the monotonic clock.
    at: float
    #: Of Flask's context. Not the context itself: it would be in a cycle with its request.
    context_id: int
    #: Who was the user of the app context before. Requests share one that was pushed before them:
    #: at import, by a test, or by a request that makes another one. Flask-Login keeps the user
    #: there.
    outer_user: t.Any

    def __repr__(self) -> str:
        return f"{type(self).__name__}(at={self.at})"


def begin_request(registry: Registry, found: FlaskContext, outer_user: t.Any) -> None:
    """Note when a request begins, in which context of Flask's, and who was the user before."""
    beginning = _Beginning(time.monotonic(), id(found), outer_user)
    vars(found.request)[registry.beginning_key] = beginning


def end_request(registry: Registry, found: FlaskContext) -> _Beginning | None:
    """Let go of the context, and return the beginning; ``None`` if there was none.

    ``None`` also if the request goes on, and then the context is kept.
    ``copy_current_request_context`` copies Flask's context, with the same request. Such a copy may
    end before the request does, or after it.

    Werkzeug's requests are in a cycle with their environment, and freed some time later.
    """
    kept = vars(found.request)
    beginning: _Beginning | None = kept.get(registry.beginning_key)
    if beginning is not None:
        if beginning.context_id != id(found):
            return None
        del kept[registry.beginning_key]
    kept.pop(registry.context_key, None)
    return beginning
