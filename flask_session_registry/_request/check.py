"""Is this request's session still good?

Asked before Flask-Login looks at the session or at the "remember me" cookie, in each request that
asks who the user is. When unsure: no.
"""

from __future__ import annotations

import datetime as dt
import typing as t
import uuid

from flask import Flask, current_app, request, session
from flask_login import UserMixin, current_user
from werkzeug.exceptions import ServiceUnavailable

from .. import _clock as clock
from .. import signals
from .._app import Registry, checked_registry_on, unwrap
from .._compat import flask_login
from .._compat.flask import request_context, within_request
from .._diagnosis import diagnose, report
from .._log import log
from .._records.base import UNAVAILABLE, End, Records
from .._records.expiry import Expiry
from .._records.sql.transactions import LOCK_TIMEOUT
from . import remember_cookies, store_keys
from .context import MARKER, OTHER, Current, RequestState, read_marker

if t.TYPE_CHECKING:
    from werkzeug.wrappers import Request

#: For so long after a session got another id, or another login took its place, the browser may have
#: requests under way with the old one.
OVERLAP = dt.timedelta(seconds=10)

_NOTHING = dt.timedelta(0)

#: Where a request keeps whether its answer is complete.
_ANSWERED = "_session_registry_answered"

#: What the browser itself has ended a session by. It may be signed in again by now.
BY_THE_BROWSER = ("replaced", "logged_out")


class Unavailable(ServiceUnavailable):
    """The answer where it can't be said whether a session is valid."""


def check(app: Flask) -> None:
    """Let the session of this request pass, or turn the request into an anonymous one.

    :raises Unavailable: the database can't be asked. The browser keeps its cookies. Not raised
        once the answer is complete: nothing would turn the error into another answer.
    """
    registry = checked_registry_on(app)
    context = request_context()
    if context is None or context.app is not app:
        # Within the context of another app than the request's: the session is not this app's.
        return
    browser = context.session
    claimed = browser.get(flask_login.USER_ID)
    state = registry.state_of(context.request)
    if claimed is None:
        state.missing_store_key = store_keys.missing_store_key(app, browser)
        if not remember_cookies.is_sent(app):
            return
        if not remember_cookies.is_ours(app):
            # Of another app on this host, say: nothing of ours is refused.
            remember_cookies.hide(app)
            return
    carried = browser.get(MARKER)
    if claimed is not None and state.is_known(carried):
        return
    try:
        if claimed is not None:
            reason, id = _check_session(app, registry, state, carried, claimed)
        else:
            reason, id = _check_remembered(app, registry, state)
    except UNAVAILABLE as error:
        report("The user sessions could not be read.", error)
        registry.users.roll_back()
        state.is_unavailable = True
        make_anonymous(app, state)
        if is_answered():
            return
        raise unavailable("Your session could not be checked.", error) from None
    if reason is not None:
        _refuse(app, registry, state, reason, id)
    elif claimed is not None and remember_cookies.names_another_user(app, str(claimed)):
        # Flask-Login would turn to it if the app's user loader finds nobody for the session.
        remember_cookies.hide(app)


def unavailable(problem: str, error: BaseException) -> Unavailable:
    """The answer where neither yes nor no can be said: what holds a row has then let it go.

    A developer, in debug mode or in a test, is told instead of what to do about a missing table.
    """
    advice = "Please try again in a moment."
    if current_app.debug or current_app.testing:
        diagnosis = diagnose(error)
        if diagnosis.is_about_table:
            advice = str(diagnosis)
    return Unavailable(f"{problem} {advice}", retry_after=LOCK_TIMEOUT)


def note_answer(request: Request) -> None:
    """Note that the answer to this request is complete."""
    vars(request)[_ANSWERED] = True


def is_answered() -> bool:
    """Whether the answer to the current request, if there is one, is complete."""
    context = request_context()
    return context is not None and _ANSWERED in vars(context.request)


def current(registry: Registry) -> Current | None:
    """The user session of this request, after asking for it if nobody has yet."""
    if not registry.is_in_request:
        return None
    with within_request():
        current_user._get_current_object()
    state = registry.known_state
    return state.current if state else None


def reason_of_refusal(registry: Registry) -> str | None:
    """Why the session that this browser came with does not stand; ``None`` if it came with none.

    Where the entry is gone from the store, nothing in the session says which one it was; the row
    still knows the key that it had.
    """
    if not registry.is_in_request:
        return None
    with within_request():
        current_user._get_current_object()
    state = registry.state
    try:
        return complete_reason(registry, state)
    except UNAVAILABLE as error:
        report("It could not be asked why a session is gone.", error)
        registry.users.roll_back()
        return state.rejected


def complete_reason(registry: Registry, state: RequestState) -> str | None:
    """The same, where it is known that somebody has asked for the user."""
    if state.missing_store_key is not None and state.rejected in (None, "unknown"):
        end, id = registry.records.find_end_by_store_key(state.missing_store_key)
        if end is not None:
            state.rejected, state.rejected_id = end.reason, id
            state.is_superseded = is_superseded(end)
    return state.rejected


def current_before(registry: Registry, app: Flask) -> Current | None:
    """The user session of this request, when Flask-Login has written over it already.

    If nobody has asked for it yet: by the marker in the session; if a view has cleared that, in
    the session as it was at the beginning; else by the "remember me" cookie.
    """
    state = registry.state
    if state.current is not None or state.login is not None or state.rejected:
        return state.current
    carried, claimed = unwrap(session).get(MARKER), None
    if carried is None and app.config["SESSION_COOKIE_NAME"] in request.cookies:
        opened = session_at_the_beginning(registry, app) or {}
        carried, claimed = opened.get(MARKER), opened.get(flask_login.USER_ID)
    if carried is not None:
        _check_session(app, registry, state, carried, None)
    elif claimed is not None:
        registry.adoption.check_unregistered(app, state, claimed)
    elif remember_cookies.is_sent(app):
        _check_remembered(app, registry, state)
    return state.current


def session_at_the_beginning(registry: Registry, app: Flask) -> dict[str, t.Any] | None:
    """What the browser's cookie stands for, whatever this request has done to it since."""
    # A store in SQL asks the app's session, which may hold what is not finished.
    with registry.db_session.no_autoflush:
        opened = app.session_interface.open_session(app, unwrap(request))
    # One that somebody else manages, for a web socket, has gone through other requests since.
    return dict(opened) if opened is not None and type(opened) is type(unwrap(session)) else None


def make_anonymous(app: Flask, state: RequestState | None) -> None:
    """Let the rest of this request see no session and no "remember me" cookie.

    In memory: what the browser holds stays until an answer says otherwise.
    """
    store_keys.discard(app.session_interface, session)
    remember_cookies.hide(app)
    if state is not None:
        state.discards_session = True


#: Why a session is refused, ``None`` if it isn't; and its id, if it names one.
Verdict = tuple["str | None", "uuid.UUID | None"]


def _check_session(
    app: Flask,
    registry: Registry,
    state: RequestState,
    carried: object,
    claimed: str | None,
) -> Verdict:
    if carried is None:
        return registry.adoption.check_unregistered(app, state, t.cast(str, claimed))
    if carried == OTHER:
        is_others = claimed is None or is_left_alone(app, registry, claimed)
        return (None if is_others else "unregistered"), None
    marker = read_marker(carried)
    if marker is None:
        return "unknown", None
    return check_row(app, registry, state, marker, claimed), marker[0]


def is_left_alone(app: Flask, registry: Registry, claimed: str) -> bool:
    """Whether this is a user of a kind that the registry is not set up for."""
    user = flask_login.load_user(app, claimed)
    return user is not None and registry.leaves_alone(unwrap(user))


def _check_remembered(app: Flask, registry: Registry, state: RequestState) -> Verdict:
    claimed, binding_cookie = (
        remember_cookies.claimed_user(app),
        remember_cookies.binding_cookie(app),
    )
    if binding_cookie is None and claimed is not None and is_left_alone(app, registry, claimed):
        return None, None
    if claimed is not None:
        verdict = registry.adoption.check_remembered(app, state, claimed)
        if verdict is not None:
            return verdict
    if binding_cookie is None or claimed is None:
        return "unknown", None
    marker = (binding_cookie.id, binding_cookie.generation)
    reason = check_row(app, registry, state, marker, claimed, is_remembered=True)
    return reason, binding_cookie.id


def check_row(
    app: Flask,
    registry: Registry,
    state: RequestState,
    marker: tuple[uuid.UUID, int],
    claimed: str | None,
    *,
    is_remembered: bool = False,
) -> str | None:
    """Compare what the browser carries with the row; why not, or ``None`` if it stands."""
    id, generation = marker
    is_usual = flask_login.has_usual_ids(app)
    row = registry.records.load(id, claimed if is_usual else None)
    if row is None:
        end = registry.records.find_end(id)
        if end is None:
            return "unknown"
        state.is_superseded = is_superseded(end)
        return end.reason
    user, row_generation, credential, last_seen_at, store_id, created_at, password = row
    if credential != registry.credentials.fingerprint(password):
        # Elsewhere than in a table, between the commit of a new password and what follows it, also
        # the session that it was changed in has an earlier one.
        state.is_superseded = registry.records.updates_after_commit
        return "password_changed"
    if row_generation != generation:
        # A late request with the id from before a rotation comes from a browser that is signed in.
        state.is_superseded = True
        return "rotated"
    keys = () if store_id is None else (store_id,)
    if claimed is not None and flask_login.get_id(app, user) != str(claimed):
        if is_remembered:
            return "unknown"
        if is_usual and type(user).get_id is UserMixin.get_id:
            # Of a key that nobody changes: the session was written by hand.
            _tell_developer(app, registry)
            return "unknown"
        state.to_end = (id, keys, "id_changed")
        return "id_changed"
    if not user.is_active:
        state.to_end = (id, keys, "inactive")
        return "inactive"
    last_seen_at = clock.as_utc(last_seen_at)
    interval = registry.settings.touch_interval
    age = clock.now() - last_seen_at
    # From a clock that was ahead: a touch corrects that, or no timeout would count for as long.
    is_touch_due = age < _NOTHING or (interval is not None and age >= interval)
    # What was seen a moment ago can have expired by its age only.
    if (is_touch_due or interval is None or created_at is not None) and _has_expired(
        registry.records, registry.expiry(app), id, last_seen_at, created_at, is_remembered
    ):
        state.to_end = (id, keys, "expired")
        return "expired"
    state.current = Current(
        id=id,
        generation=generation,
        user=user,
        session_id=store_keys.session_id(unwrap(session)),
        store_id=store_id,
        is_touch_due=is_touch_due,
        held=[(generation, credential)],
    )
    return None


def is_superseded(end: End) -> bool:
    """Whether a request may come from before the browser itself ended its session."""
    return end.reason in BY_THE_BROWSER and clock.is_within(OVERLAP, of=end.at)


def _has_expired(
    records: Records,
    expiry: Expiry,
    id: uuid.UUID,
    last_seen_at: dt.datetime,
    created_at: dt.datetime | None,
    is_remembered: bool,
) -> bool:
    if created_at is not None:
        created_at = clock.as_utc(created_at)
    if expiry.has_timed_out(last_seen_at, created_at):
        return True
    return (
        last_seen_at <= expiry.unseen_since
        and not is_remembered
        and not records.can_be_restored(id, expiry.now)
    )


def _tell_developer(app: Flask, registry: Registry) -> None:
    """Log once why nobody is signed in by a session that a test, say, has written by hand."""
    if (app.testing or app.debug) and registry.is_first_time("written by hand"):
        log.warning(
            "A session was refused because no 'login_user()' has recorded that its user signed in."
            " In tests, let 'app.test_client_class' be 'SessionRegistryClient' of"
            " 'flask_session_registry.testing': it signs in whom you pass as 'user', and whom"
            " 'session_transaction()' writes into '_user_id'; Flask-Login's 'FlaskLoginClient' does"
            " not.%s",
            registry.adoption.advice,
        )


def _refuse(
    app: Flask,
    registry: Registry,
    state: RequestState,
    reason: str,
    id: uuid.UUID | None,
) -> None:
    state.rejected, state.rejected_id = reason, id
    if reason == "unregistered":
        _tell_developer(app, registry)
    state.clears_remember_cookie = not state.is_superseded and remember_cookies.is_ours(app)
    browser = unwrap(session)
    written: dict[str, t.Any] = {}
    if browser.modified:
        # The token of a form, say: without it nobody could sign in over a dead session.
        opened = session_at_the_beginning(registry, app) or {}
        # If the entry is gone, nothing says what was there before: a web socket keeps its session.
        if flask_login.USER_ID in opened or flask_login.USER_ID not in browser:
            written = store_keys.written_since(opened, browser)
    make_anonymous(app, state)
    if written:
        browser.update(written)
    signals.send(signals.session_rejected, app, user_session_id=id, reason=reason)
