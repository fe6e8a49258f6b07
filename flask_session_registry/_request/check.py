"""The session check: whether the session of this request is still active.

It runs before Flask-Login looks at the session or at the "remember me" cookie, in each request that
asks for the user. When unsure, it refuses.
"""

from __future__ import annotations

import datetime as dt
import typing as t
import uuid

from flask import Flask, request, session
from flask.sessions import SessionMixin
from flask_login import current_user
from werkzeug.wrappers import Request

from .. import _clock as clock
from .._app import Registry, checked_registry_on
from .._compat import flask_login
from .._compat.flask import request_context, unwrap, within_request
from .._diagnosis import report
from .._records.base import ROTATED, UNAVAILABLE, LoadedSession
from . import refusal, remember_cookies, store_keys
from .context import RequestContext, ensure_context, find_context, is_in_request
from .current_session import CurrentSession
from .marker import MARKER, OTHER, Marker, parse_marker
from .opened import session_at_the_beginning
from .values import LEFT_ALONE, UNKNOWN, UNREGISTERED, CheckResult, ScheduledEnd

_NOTHING = dt.timedelta(0)


def check(app: Flask) -> None:
    """Accept the session of this request, or make the request anonymous.

    :raises Unavailable: the records can't be read. The browser keeps its cookies. Not raised once
        the response is complete: nothing would turn the error into another response.
    """
    registry = checked_registry_on(app)
    found = request_context()
    if found is None or found.app is not app:
        # Within the context of another app than the request's: the session isn't this app's.
        return
    browser = found.session
    claimed, carried = browser.get(flask_login.USER_ID), browser.get(MARKER)
    context = ensure_context(registry, found.request)
    if claimed is None:
        context.note_missing_entry(store_keys.missing_store_key(app, browser))
        if not _offers_remember_cookie(app):
            return
    elif context.is_known(carried):
        return
    try:
        if claimed is None:
            result = _check_remembered(app, registry, browser)
        else:
            result = _check_session(app, registry, browser, carried, claimed)
    except UNAVAILABLE as error:
        _fail(app, registry, context, error)
        return
    context.apply(result, browser)
    if result.reason is not None:
        _refuse(app, registry, context, result.reason, result.id)
    elif claimed is not None:
        _hide_cookie_of_another_user(app, found.request, str(claimed))


def current(registry: Registry) -> CurrentSession | None:
    """Return the user session of this request, after checking it if that hasn't been done."""
    if not is_in_request(registry):
        return None
    _ask_for_user()
    context = find_context(registry)
    return context.current if context else None


def reason_of_refusal(registry: Registry) -> str | None:
    """Return why the session of this request was refused; ``None`` if there was none to refuse."""
    if not is_in_request(registry):
        return None
    _ask_for_user()
    context = ensure_context(registry)
    try:
        return refusal.complete_reason(registry, context)
    except UNAVAILABLE as error:
        report("Could not find out why a session is gone.", error)
        registry.users.roll_back()
        return context.rejected


def current_before(registry: Registry, app: Flask) -> CurrentSession | None:
    """Return the user session of this request, where Flask-Login has already overwritten it.

    If it hasn't been checked yet, it is found by the marker in the session; if a view has cleared
    that, in the session as it was at the beginning; else by the "remember me" cookie.
    """
    context = ensure_context(registry)
    if context.current is not None or context.login is not None or context.rejected:
        return context.current
    browser = unwrap(session)
    carried, claimed = browser.get(MARKER), None
    if carried is None and app.config["SESSION_COOKIE_NAME"] in request.cookies:
        opened = session_at_the_beginning(registry, app)
        carried, claimed = opened.get(MARKER), opened.get(flask_login.USER_ID)
    result = None
    if carried is not None:
        result = _check_session(app, registry, browser, carried, None)
    elif claimed is not None:
        result = _check_session(app, registry, browser, None, claimed)
    elif remember_cookies.is_sent(app):
        result = _check_remembered(app, registry, browser)
    if result is not None:
        context.apply(result, browser)
    return context.current


def _ask_for_user() -> None:
    with within_request():
        current_user._get_current_object()


def _offers_remember_cookie(app: Flask) -> bool:
    """Return whether there is a "remember me" cookie of this app. Hide one of another app."""
    if not remember_cookies.is_sent(app):
        return False
    if remember_cookies.is_ours(app):
        return True
    # Not refused: it may be of another app on this host, for example.
    remember_cookies.hide(app)
    return False


def _hide_cookie_of_another_user(app: Flask, asked: Request, claimed: str) -> None:
    """Hide it from Flask-Login, which reads it if the user loader finds no user for the session."""
    if remember_cookies.names_another_user(app, asked, claimed):
        remember_cookies.hide(app)


def _fail(app: Flask, registry: Registry, context: RequestContext, error: BaseException) -> None:
    """Make the request anonymous, because its session could not be checked.

    :raises Unavailable: the response isn't complete yet.
    """
    report("Could not read the user sessions.", error)
    registry.users.roll_back()
    context.mark_unavailable()
    refusal.make_anonymous(app, context)
    if not refusal.is_answered():
        raise refusal.unavailable("Your session could not be checked.", error) from None


def _refuse(
    app: Flask, registry: Registry, context: RequestContext, reason: str, id: uuid.UUID | None
) -> None:
    if reason == "unregistered":
        _warn_developer(app, registry)
    refusal.refuse(app, registry, context, reason, id)


# -- what the browser carries --------------------------------------------------------------------


def _check_session(
    app: Flask, registry: Registry, browser: SessionMixin, carried: object, claimed: str | None
) -> CheckResult:
    """Check a session by its marker."""
    if carried is None:
        return registry.adoption.check_unregistered(app, t.cast(str, claimed))
    if carried == OTHER:
        is_others = claimed is None or is_left_alone(app, registry, claimed)
        return LEFT_ALONE if is_others else UNREGISTERED
    known = parse_marker(carried)
    return UNKNOWN if known is None else check_record(app, registry, browser, known, claimed)


def is_left_alone(app: Flask, registry: Registry, claimed: str) -> bool:
    """Return whether this is a user of a kind that the registry isn't set up for."""
    user = flask_login.load_user(app, claimed)
    return user is not None and registry.leaves_alone(unwrap(user))


def _check_remembered(app: Flask, registry: Registry, browser: SessionMixin) -> CheckResult:
    """Check a "remember me" cookie by its binding cookie."""
    claimed = remember_cookies.claimed_user(app)
    binding_cookie = remember_cookies.binding_cookie(app)
    if claimed is None:
        return UNKNOWN
    if binding_cookie is None and is_left_alone(app, registry, claimed):
        return LEFT_ALONE
    result = registry.adoption.check_remembered(app, claimed)
    if result is not None:
        return result
    if binding_cookie is None:
        return UNKNOWN
    return check_record(app, registry, browser, binding_cookie.known, claimed, is_remembered=True)


# -- what the record says ------------------------------------------------------------------------


def check_record(
    app: Flask,
    registry: Registry,
    browser: SessionMixin,
    known: Marker,
    claimed: str | None,
    *,
    is_remembered: bool = False,
) -> CheckResult:
    """Compare what the browser carries with the record.

    :param browser: ``flask.session``.
    """
    records = registry.records
    loaded = records.load(known.hex, known.user_key)
    if loaded is None:
        return _refuse_ended(registry, known.id)
    if loaded.fingerprint != registry.credentials.fingerprint(loaded.password):
        # If records are updated after the commit of a new password, the session that it was changed
        # in has the previous fingerprint, too, for a moment.
        return CheckResult(None, "password_changed", known.id, records.updates_after_commit)
    if loaded.generation != known.generation:
        # A late request with the id from before a rotation: its browser is signed in.
        return CheckResult(None, ROTATED, known.id, is_superseded=True)
    age = clock.now() - clock.as_utc(loaded.last_seen_at)
    interval = registry.settings.touch_interval
    # Negative if the clock that wrote it was ahead. A touch corrects that; otherwise all timeouts
    # would be longer.
    is_touch_due = age < _NOTHING or (interval is not None and age >= interval)
    fault = _find_fault(app, registry, known, loaded, claimed, is_touch_due, is_remembered)
    if fault is not None:
        return _refuse_fault(known.id, loaded.store_id, fault)
    return CheckResult(
        CurrentSession(
            known,
            loaded.user,
            session_id=store_keys.session_id(browser),
            store_id=loaded.store_id,
            held=[(known.generation, loaded.fingerprint)],
            is_touch_due=is_touch_due,
        )
    )


def _refuse_ended(registry: Registry, id: uuid.UUID) -> CheckResult:
    end = registry.records.find_end(id)
    if end is None:
        return CheckResult(None, "unknown", id)
    return CheckResult(None, end.reason, id, refusal.is_superseded(end))


def _refuse_fault(id: uuid.UUID, store_id: str | None, fault: str) -> CheckResult:
    if fault == "unknown":
        return CheckResult(None, fault, id)
    keys = () if store_id is None else (store_id,)
    return CheckResult(None, fault, id, to_end=ScheduledEnd(id, keys, fault))


def _find_fault(
    app: Flask,
    registry: Registry,
    known: Marker,
    loaded: LoadedSession,
    claimed: str | None,
    is_touch_due: bool,
    is_remembered: bool,
) -> str | None:
    """Return why an active session must be refused; ``None`` if there is no reason."""
    if claimed is not None and flask_login.get_id(app, loaded.user) != str(claimed):
        return _fault_of_id(app, registry, loaded.user, is_remembered=is_remembered)
    if not loaded.user.is_active:
        return "inactive"
    if (
        not is_touch_due
        and loaded.created_at is None
        and registry.settings.touch_interval is not None
    ):
        # A session seen a moment ago can have expired by its age only.
        return None
    return (
        "expired"
        if _has_expired(app, registry, known.id, loaded, is_remembered=is_remembered)
        else None
    )


def _fault_of_id(app: Flask, registry: Registry, user: t.Any, *, is_remembered: bool) -> str:
    """Return why a browser names a user whose ``get_id()`` returns something else."""
    if is_remembered:
        return "unknown"
    if flask_login.has_plain_id(app, user):
        # The id is a key that never changes: the session was written by hand.
        _warn_developer(app, registry)
        return "unknown"
    return "id_changed"


def _has_expired(
    app: Flask, registry: Registry, id: uuid.UUID, loaded: LoadedSession, *, is_remembered: bool
) -> bool:
    last_seen_at, created_at = clock.as_utc(loaded.last_seen_at), loaded.created_at
    if created_at is not None:
        created_at = clock.as_utc(created_at)
    expiry = registry.expiry(app)
    return expiry.has_timed_out(last_seen_at, created_at) or (
        last_seen_at <= expiry.unseen_since
        and not is_remembered
        and not registry.records.can_be_restored(id, expiry.now)
    )


def _warn_developer(app: Flask, registry: Registry) -> None:
    """Log once why a session written by hand, for example by a test, signs in no user."""
    if app.testing or app.debug:
        registry.log_once.warning(
            "written by hand",
            "A session was refused because no 'login_user()' has recorded that its user signed in."
            " In tests, set 'app.test_client_class' to 'SessionRegistryClient' from"
            " 'flask_session_registry.testing': it signs in the user passed as 'user', and the one"
            " that 'session_transaction()' writes into '_user_id'; Flask-Login's"
            " 'FlaskLoginClient' doesn't.%s",
            registry.adoption.advice,
        )
