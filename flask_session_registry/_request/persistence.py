"""What the request did to its session, taken down in the rows at its end."""

from __future__ import annotations

import dataclasses
import time
import typing as t
import uuid

import sqlalchemy as sa
from flask import Flask, Response, g, request, session
from flask_login import (
    user_loaded_from_cookie,
    user_logged_in,
    user_logged_out,
    user_login_confirmed,
)
from werkzeug.exceptions import Forbidden, HTTPException, ServiceUnavailable
from werkzeug.local import LocalProxy

from .. import _clock as clock
from .. import signals
from .._app import Registry, get_registry, registry_on, unwrap
from .._compat import flask_login
from .._compat.flask import PERMANENT, is_before_request, response_to, within_request
from .._diagnosis import report
from .._log import log
from .._ops.maintenance import prune
from .._records.base import (
    BATCH,
    UNAVAILABLE,
    LimitReachedError,
    Replaced,
    StoreEntry,
    SupersededError,
)
from .._revocation.fingerprint import CheckedCredential
from .._store.purge import Purge
from ..errors import UserError
from . import check as session_check
from . import credential_check, device_cookie, remember_cookies, store_keys
from .client_info import client_info
from .context import MARKER, OTHER, Current, Login, RequestState
from .sync import sync_current

if t.TYPE_CHECKING:
    from werkzeug.wrappers import Request

#: A request that took longer than this looks once more before its session is written, in seconds.
#: From its beginning, not from the check, which may see the database as it was at the beginning.
LATE = 0.1

#: How many sessions of a user that have never come back are left, of those that began before a view
#: was called, by requests without any cookie, from one address with one user agent. Each process
#: looks as often.
_NEVER_RESUMED = 50

_DEFERRED = "_session_registry_later"

_OUTER_USER = "_session_registry_outer_user"


@dataclasses.dataclass
class DeferredWork:
    """What can wait until the app's database session is gone."""

    registry: Registry
    ended: list[tuple[uuid.UUID, tuple[str, ...]]] = dataclasses.field(repr=False)
    left_behind: list[str] = dataclasses.field(repr=False)
    to_end: tuple[uuid.UUID, tuple[str, ...], str] | None = dataclasses.field(repr=False)
    touched: tuple[uuid.UUID, dict[str, t.Any]] | None = dataclasses.field(default=None, repr=False)
    #: Ended sessions of which nothing is to be kept.
    forgotten: list[tuple[uuid.UUID, tuple[str, ...]]] = dataclasses.field(
        default_factory=list, repr=False
    )
    prunes: bool = False

    def run(self, app: Flask) -> None:
        records = self.registry.records
        purge = Purge(self.registry, app)
        if self.to_end is not None:
            id, keys, reason = self.to_end
            if records.end(id, reason):
                self.ended.append((id, keys))
        purge.purge(self.ended)
        if self.forgotten and purge.delete_of(self.forgotten):
            records.forget([id for id, _ in self.forgotten])
        purge.delete(self.left_behind)
        if self.touched:
            records.touch(*self.touched)
        if self.prunes:
            prune(self.registry, app, limit=BATCH, scan_limit=BATCH)


def connect(app: Flask) -> None:
    """Listen to Flask-Login on this app."""
    user_logged_in.connect(_logged_in, app)
    user_logged_out.connect(_logged_out, app)
    user_loaded_from_cookie.connect(_returned, app)
    user_login_confirmed.connect(_confirmed, app)


# -- during the request ------------------------------------------------------------------------


def set_user_aside(request: Request) -> None:
    """Begin a request without the user of another one.

    Requests share an app context that was pushed before them: at import, by a test, or by a request
    that makes another one. Flask-Login keeps the user there.
    """
    vars(request)[_OUTER_USER] = flask_login.take_cached_user()


def restore_user(request: Request) -> None:
    """Leave the app context as this request has found it."""
    kept = vars(request)
    if _OUTER_USER in kept:
        user = kept.pop(_OUTER_USER)
        flask_login.take_cached_user()
        if user is not None:
            flask_login.cache_user(user)


def _logged_in(app: Flask, user: t.Any) -> None:
    """A login: its session goes on under a new id, and its row follows at the end."""
    try:
        begin_login(app, get_registry(), unwrap(user))
    except BaseException as error:
        # Flask-Login has signed the user in already.
        _sign_out(app)
        if isinstance(error, UNAVAILABLE):
            report("A login could not be prepared.", error)
            raise _unrecorded(error) from None
        raise


def begin_login(app: Flask, registry: Registry, user: t.Any) -> None:
    """Let the session of this request be that of a login, whose row follows at the end.

    :raises UserError: the user is not one who can be recorded.
    """
    before = session_check.current_before(registry, app)
    if isinstance(user, LocalProxy) and before is not None:
        # Of 'login_user(current_user)' Flask-Login makes a proxy that stands for itself.
        user = before.user
        flask_login.cache_user(user)
    state = registry.state
    had_marker = MARKER in session
    earlier = state.login
    if not isinstance(user, registry.credentials.user_model):
        _leave_alone(app, registry, user)
        return
    transient = registry.credentials.transient_password(user)
    user = _saved(registry, user)
    evidence = _evidence(app, registry, user, before)._replace(transient=transient)
    if had_marker and not _is_same_user(earlier.user if earlier else before and before.user, user):
        opened = session_check.session_at_the_beginning(registry, app) or {}
        # What was put there after an earlier login is that user's; and if the entry is gone by now,
        # nothing says what was there before.
        is_known = earlier is None and MARKER in opened
        written = store_keys.written_since(opened, session) if is_known else {}
        store_keys.keep_login_only(session, written)
    left = earlier.session_id if earlier else store_keys.session_id(session)
    # Not as the check knows it: nobody may have asked for the user before.
    lost = earlier.missing_store_key if earlier else store_keys.missing_store_key(app, session)
    state.login = Login(
        user=user,
        replaces=before,
        session_id=left,
        missing_store_key=lost,
        evidence=evidence,
        is_of_each_request=not request.cookies and is_before_request(),
    )
    store_keys.regenerate_id(app.session_interface, session)
    session[MARKER] = state.login.marker


def _saved(registry: Registry, user: t.Any) -> t.Any:
    """The user, or the one in the database whose key an instance was given by hand.

    Flask-Login needs nothing but ``get_id()``: an app may build its users.
    """
    users = registry.users
    if not users.is_transient(user):
        return user
    saved = users.with_key_of(user)
    if saved is None:
        raise UserError(
            f"The '{type(user).__name__}' that 'login_user' was given was made by hand, and its key"
            " is in no row of the database."
        )
    return saved


def _leave_alone(app: Flask, registry: Registry, user: t.Any) -> None:
    """A login of a user of another kind: as without the registry, but over no session of ours.

    :raises UserError: nobody has said that there are other kinds, and this may be one of ours in
        the clothes of another class.
    """
    kind, known = type(user).__name__, registry.credentials.user_model.__name__
    if not registry.leaves_alone(user):
        raise UserError(
            f"'login_user' was given a '{kind}'. The registry was set up for '{known}'. If that is"
            " another kind of user, which it is to leave alone, say for which one it is:"
            f" 'SessionRegistry(user_model={known})'."
        )
    if sa.inspect(user, raiseerr=False) is None and registry.is_first_time(f"left alone: {kind}"):
        log.warning(
            "A '%s' has signed in, which is not mapped and no '%s', for which the registry was set"
            " up: it is left alone, and no change of a password signs it out. If it stands for one"
            " of them, pass that one to 'login_user' instead.",
            kind,
            known,
        )
    if MARKER in session:
        opened = session_check.session_at_the_beginning(registry, app) or {}
        written = store_keys.written_since(opened, session) if MARKER in opened else {}
        is_again = (
            opened.get(MARKER) == OTHER
            and opened[flask_login.USER_ID] == session[flask_login.USER_ID]
        )
        if not is_again:
            store_keys.keep_login_only(session, written)
    store_keys.regenerate_id(app.session_interface, session)
    session[MARKER] = OTHER


def _logged_out(app: Flask, **_: t.Any) -> None:
    """A logout by a view that got its user elsewhere than from this request's session."""
    registry = get_registry()
    try:
        session_check.current_before(registry, app)
    except UNAVAILABLE as error:
        report("A logout could not be prepared.", error)
        registry.state.is_unavailable = True
        raise _unrecorded(error) from None


def _evidence(
    app: Flask, registry: Registry, user: t.Any, before: Current | None
) -> CheckedCredential:
    """What is known of the credential that this login was checked against."""
    is_known = credential_check.take(app, session, user)
    if is_known is None and before is not None and _is_same_user(before.user, user):
        # Seen by the session check, before anything that the view has loaded.
        is_known = before.knows
    return registry.credentials.evidence(user, is_known=is_known)


def _is_same_user(one: t.Any, other: t.Any) -> bool:
    return one is not None and (
        one is other or sa.inspect(one).identity_key == sa.inspect(other).identity_key
    )


def _returned(app: Flask, **_: t.Any) -> None:
    """A "remember me" cookie has brought a session back: it goes on under a new id."""
    current = get_registry().state.current
    store_keys.regenerate_id(app.session_interface, session)
    if current is None:
        # One of another kind: from all others the check would have hidden the cookie.
        session[MARKER] = OTHER
        return
    current.is_restored = True
    session[MARKER] = current.marker


def _confirmed(app: Flask, **_: t.Any) -> None:
    """The password was given once more: that is a login, as to the session id."""
    current = rotate(app, get_registry())
    if flask_login.USER_ID in session:
        # A "remember me" cookie, which nobody had asked for yet, has made it stale again.
        session[flask_login.FRESH] = True
    if current is not None:
        current.is_confirmed = True


def rotate(app: Flask, registry: Registry) -> Current | None:
    """Let the session of this request go on under a new id; ``None``: there is none."""
    current = session_check.current(registry)
    if current is not None and not current.is_rotating:
        current.is_rotating = True
        with within_request():
            store_keys.regenerate_id(app.session_interface, unwrap(session))
    return current


# -- at the end of the request -----------------------------------------------------------------


def finish(response: Response, app: Flask, registry: Registry) -> Response:
    """Compare what the check accepted with what the session says now, and write it down.

    The last thing before Flask saves the session. Runs once more for the error page if that fails.
    """
    state = registry.known_state_of(unwrap(request))
    if state is None:
        return response
    if state.pending:
        _roll_back_uncommitted(registry, state)
    try:
        if state.registered is not None:
            _take_back(app, registry, state)
        elif not state.is_unavailable:
            _persist(app, registry, state, response)
    except (*UNAVAILABLE, UserError) as error:
        report("What became of a session could not be written down.", error)
        response = _refused(app, state, _unrecorded(error))
    except LimitReachedError:
        response = _refused(app, state, _too_many())
    except SupersededError:
        state.login = None
        remember_cookies.drop_change(app, response)
        drop(app, state)
    if state.is_unavailable or _must_not_be_written(registry, state):
        store_keys.discard(app.session_interface, session)
    return response


def _take_back(app: Flask, registry: Registry, state: RequestState) -> None:
    """The login that was written down: its session could not be saved, so nobody has it."""
    id, state.registered = t.cast(uuid.UUID, state.registered), None
    registry.users.release()
    registry.records.end(id, "not_saved")
    state.current = None
    _sign_out(app)


def _must_not_be_written(registry: Registry, state: RequestState) -> bool:
    """Whether what is in the session now would take away what the browser has been given."""
    browser = unwrap(session)
    if not browser.modified or state.current is not None or state.ended:
        return False
    if browser.get(MARKER) == OTHER:
        return False
    if (state.discards_session or state.missing_store_key) and not set(browser) - {PERMANENT}:
        # Nothing was written but by Flask-Login, or by an app that makes all sessions permanent.
        return True
    try:
        reason = session_check.complete_reason(registry, state)
        if reason != "rotated" or state.rejected_id is None:
            return reason in session_check.BY_THE_BROWSER and state.is_superseded
        # A late request with the id from before a rotation: this browser is signed in by now. After
        # that, it is one that has nothing but the old id, and must be able to sign in.
        return registry.records.was_rotated_within(state.rejected_id, session_check.OVERLAP)
    except UNAVAILABLE as error:
        report("It could not be asked whether a request is late.", error)
        registry.users.roll_back()
        # A visitor who was not refused has nothing to do with the table.
        return state.rejected is not None


def _roll_back_uncommitted(registry: Registry, state: RequestState) -> None:
    session = registry.db_session
    for pending in state.pending:
        if pending.is_open and pending.is_ours(session):
            is_done = registry.users.roll_back(pending.session)
            log.warning(
                "A revocation, or the change of a password, was not committed by the end of the"
                " request '%s' and %s: nobody was signed out. Commit the transaction in the view.",
                request.endpoint,
                "has been rolled back" if is_done else "is left to whoever holds its connection",
            )


def _persist(app: Flask, registry: Registry, state: RequestState, response: Response) -> None:
    change = remember_cookies.find_change(app, response)
    remember_until = registry.adoption.finish(app, state)
    browser = unwrap(session)
    carried = browser.get(MARKER) if flask_login.USER_ID in browser else None
    is_renewed = False
    if state.login is not None and state.login.marker == carried:
        _register(app, registry, state, state.login, change, response)
        state.clears_remember_cookie |= remember_cookies.is_ours(app)
    elif state.current is not None and state.current.marker != carried:
        _end(app, registry, state, state.current)
    elif state.current is not None:
        is_renewed = _continue_session(app, registry, state, state.current)
    elif carried is None and MARKER in browser:
        browser.pop(MARKER)
    current = state.current
    if carried == OTHER and change is not None:
        # The cookie of somebody whom the registry leaves alone; none of ours belongs to it.
        remember_cookies.leave_unbound(app, response, change)
        state.clears_remember_cookie, change = False, None
    elif change is not None and change.value and current is None:
        # What the browser has is as good as this, or better.
        remember_cookies.drop_change(app, response)
        change = None
    if change is not None:
        remember_cookies.bind(app, response, change, current)
    elif state.clears_remember_cookie:
        remember_cookies.clear(app, response)
    elif current is not None and (is_renewed or remember_until is not None):
        remember_cookies.reissue(app, response, current, until=remember_until)
    _schedule(registry, state, change)


def _register(
    app: Flask,
    registry: Registry,
    state: RequestState,
    login: Login,
    change: remember_cookies.RememberCookieChange | None,
    response: Response,
) -> None:
    interface, moment = app.session_interface, clock.now()
    key = store_keys.store_key(interface, store_keys.session_id(session))
    # Before the release: a user who is not committed has no identity afterwards.
    user_id = (sa.inspect(login.user).identity or (None,))[0]
    values = {
        "id": login.id,
        "generation": 0,
        "user_id": user_id,
        "store_id": key,
        "created_at": moment,
        "rotated_at": moment,
        "authenticated_at": moment,
        "remember_until": change.until if change and change.value else None,
        **client_info(moment),
    }
    # Once more: the view may have stored another hash of the same password since.
    known = registry.credentials.evidence(login.user, is_known=login.evidence.is_known)
    evidence = login.evidence._replace(stored=known.stored)
    before = login.replaces
    if user_id is not None:
        login.id = values["id"] = registry.records.assign_id(login.id, user_id)
        session[MARKER] = login.marker
    registry.users.release()
    evicted = None
    # Nobody asks for it where nobody is told, and no browser is given a cookie for nothing.
    is_told = signals.session_registered.has_receivers_for(app)
    is_new_device = False
    replaced: list[Replaced] = []
    ended: list[tuple[uuid.UUID, tuple[str, ...]]] = []
    find_never_resumed: list[StoreEntry] = []
    if before is not None:
        vouches = _is_same_user(before.user, login.user)
        replaced.append(Replaced(before.id, before.generation, vouches))
        ended.append((before.id, before.keys))
    if user_id is not None:
        if login.missing_store_key is not None:
            # Nobody can come back to it: it would only take a place, and be listed.
            lost = registry.records.find_by_store_key(login.missing_store_key, user_id)
            replaced += [Replaced(row.id, None, vouches=False) for row in lost]
            ended += [(row.id, row.keys) for row in lost]
        if login.is_of_each_request:
            find_never_resumed = _find_never_resumed(registry, values)
            replaced += [Replaced(row.id, None, vouches=False) for row in find_never_resumed]
        is_new_device = is_told and _is_new_device(app, registry, values)
        evicted = registry.records.add(
            values,
            evidence=evidence,
            replaces=replaced,
            limit=registry.limit,
            expiry=registry.expiry(app),
        )
    if evicted is None:
        raise UserError(
            "The user who signed in is not in the database. Commit before the request ends."
        )
    state.ended += [*ended, *((row.id, row.keys) for row in evicted)]
    state.forgotten += [(row.id, row.keys) for row in find_never_resumed]
    state.leave_behind(store_keys.store_key(interface, login.session_id), but=key)
    state.login = None
    state.registered = login.id
    state.current = Current(
        id=login.id,
        generation=0,
        user=login.user,
        session_id=store_keys.session_id(session),
        store_id=key,
        is_touch_due=False,
        held=[],
    )
    if is_told:
        device_cookie.add_user(app, response, user_id)
    signals.send(
        signals.session_registered,
        app,
        user_session_id=login.id,
        user_id=user_id,
        new_device=is_new_device,
    )
    if evicted:
        signals.send(
            signals.session_revoked,
            app,
            ids=tuple(row.id for row in evicted),
            user_id=user_id,
            reason="max_sessions",
        )


def _find_never_resumed(registry: Registry, login: dict[str, t.Any]) -> list[StoreEntry]:
    """The sessions that have to end because a client keeps no cookies, and signs in each time.

    By a header that a proxy sets, say: each of its requests would leave a row for a month.
    """
    client = (login["user_id"], login["ip_address"], login["user_agent"])
    if not registry.counts_to(_NEVER_RESUMED, client):
        return []
    found = registry.records.find_never_resumed(
        login["user_id"],
        ip_address=login["ip_address"],
        user_agent=login["user_agent"],
        skip=_NEVER_RESUMED - 1,
    )
    if found and registry.is_first_time("never back"):
        log.warning(
            "A user has signed in %d times from one address with one user agent, without any"
            " cookie, and never come back: the oldest of these sessions end. If 'login_user()' is"
            " called for each request, by what a proxy says of it, use Flask-Login's"
            " 'request_loader' instead.",
            _NEVER_RESUMED,
        )
    return found


def _is_new_device(app: Flask, registry: Registry, login: dict[str, t.Any]) -> bool:
    """Whether nothing says that this user has signed in with such a device before."""
    return not device_cookie.has_user(app, login["user_id"]) and not registry.records.was_seen(
        login["user_id"], ip_address=login["ip_address"], user_agent=login["user_agent"]
    )


def _end(app: Flask, registry: Registry, state: RequestState, current: Current) -> None:
    registry.users.release()
    registry.records.end(current.id, "logged_out")
    state.ended.append((current.id, current.keys))
    state.current = None
    state.clears_remember_cookie = remember_cookies.is_ours(app)
    if session.get(MARKER) == OTHER:
        return
    session.pop(MARKER, None)
    if session:
        # What stays is an anonymous session: the old entry goes with the ended row.
        store_keys.regenerate_id(app.session_interface, session)


def _continue_session(
    app: Flask, registry: Registry, state: RequestState, current: Current
) -> bool:
    """The session goes on; whether the browser needs a new "remember me" cookie."""
    interface, browser = app.session_interface, unwrap(session)
    if current.awaits_commit:
        registry.users.release()
        sync_current(registry, [current.user_id])
        if state.current is None:
            return False
    session_id = store_keys.session_id(browser)
    key = store_keys.store_key(interface, session_id)
    rotates = current.is_rotating or (
        session_id != current.session_id
        and not current.is_restored
        and not current.credentials_updated
    )
    if current.credentials_updated:
        _follow_user(app, registry, current)
    # The same id under another key than the row knows: of requests that came back in parallel by
    # "remember me" cookie each had its own, and the browser has kept this one.
    if rotates or key != current.store_id:
        becomes = current.generation + rotates
        registry.users.release()
        displaced = registry.records.rotate(
            current.id,
            user_id=current.user_id,
            generation=current.generation,
            becomes=becomes,
            store_id=key,
            is_confirmed=current.is_confirmed,
        )
        if displaced is None:
            return drop(app, state)
        for one in displaced:
            state.leave_behind(one, but=key)
        state.leave_behind(store_keys.store_key(interface, current.session_id), but=key)
        state.leave_behind(current.store_id, but=key)
        current.generation, current.session_id, current.store_id = becomes, session_id, key
        current.held.append((becomes, current.held[-1][1]))
        current.is_rotating = False
        session[MARKER] = current.marker
        return rotates or current.credentials_updated
    if not _is_still_its_own(app, registry, state, current):
        return drop(app, state)
    return current.credentials_updated


def _is_still_its_own(
    app: Flask, registry: Registry, state: RequestState, current: Current
) -> bool:
    """Whether the session may be written. Looks once more where an answer may be late."""
    is_slow = time.monotonic() - state.began > LATE
    if not is_slow and not current.is_touch_due:
        return True
    browser = unwrap(session)
    is_changed = registry.is_written(app, browser)
    if not is_changed and current.is_touch_due:
        store_keys.refresh(browser)
    if not (is_slow if is_changed else registry.is_written(app, browser)):
        return True
    # Prolonging a session can wait: it never blocks on a row that another transaction holds.
    generation = registry.records.current_generation(current.id, skip_locked=not is_changed)
    return generation == current.generation


def _follow_user(app: Flask, registry: Registry, current: Current) -> None:
    """``get_id()`` may have changed with the password."""
    # The commit may have been another session's, and this one know an older user.
    registry.users.release()
    row = registry.records.load(current.id, refresh=True)
    if row is not None:
        session[flask_login.USER_ID] = flask_login.get_id(app, row[0])


def drop(app: Flask, state: RequestState) -> bool:
    """The session has ended, or gone on under another id, while this request was under way."""
    state.current = None
    state.discards_session = True
    store_keys.discard(app.session_interface, session)
    return False


def _sign_out(app: Flask) -> None:
    """Take a login back, in memory."""
    flask_login.take_cached_user()
    registry = registry_on(app)
    session_check.make_anonymous(app, registry.known_state if registry else None)


def _unrecorded(error: BaseException) -> ServiceUnavailable:
    return session_check.unavailable("Your session could not be recorded.", error)


def _too_many() -> Forbidden:
    return Forbidden("You are signed in on too many devices. Sign out on one of them first.")


def _refused(app: Flask, state: RequestState, error: HTTPException) -> Response:
    """The answer of a request whose session was not written down: all stays as it was."""
    state.is_unavailable = True
    _sign_out(app)
    return response_to(app, error)


# -- after the response ------------------------------------------------------------------------


def _schedule(
    registry: Registry, state: RequestState, change: remember_cookies.RememberCookieChange | None
) -> None:
    current = state.current
    touched = None
    if current is not None and current.is_touch_due:
        current.is_touch_due = False
        values = client_info(clock.now())
        if change is not None and change.value:
            values["remember_until"] = change.until
        touched = (current.id, values)
    prunes = registry.prune_schedule.is_due()
    if touched or state.ended or state.left_behind or state.to_end or state.forgotten or prunes:
        later = DeferredWork(
            registry,
            state.ended,
            state.left_behind,
            state.to_end,
            touched,
            forgotten=state.forgotten,
            prunes=prunes,
        )
        g.setdefault(_DEFERRED, []).append(later)


def schedule_purge(store_id: str, *, registry: Registry) -> None:
    """Delete an entry once the app's database session is gone."""
    later = DeferredWork(registry, [], [store_id], None)
    g.setdefault(_DEFERRED, []).append(later)


def run_deferred(app: Flask) -> None:
    """Do what could wait, once the app's database session is gone. Nothing here decides."""
    for later in g.pop(_DEFERRED, ()):
        try:
            later.run(app)
        except Exception as error:
            report("Housekeeping after a request failed.", error)
