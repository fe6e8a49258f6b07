"""Lets the session of this request follow what a transaction has committed."""

from __future__ import annotations

import contextlib
import typing as t
import uuid
from collections.abc import Sequence

from flask import Flask, current_app
from flask import session as flask_session

from .. import signals
from .._app import Registry
from .._compat.flask import unwrap, within_request
from .._records.base import ROTATED, UNAVAILABLE, End, SurvivingSession
from .._store.purge import Purge
from ..errors import RecordsError
from . import refusal, remember_cookies, store_keys
from .context import RequestContext, ensure_context, is_in_request
from .current_session import CurrentSession
from .marker import MARKER, read_marker
from .values import SessionKeys

_REASON = "password_changed"


def sync_current(
    registry: Registry, user_ids: Sequence[t.Any], *, committed: SurvivingSession | None = None
) -> None:
    """Let the session of this request follow what was committed, in memory.

    Only what this request itself has done: a generation made by another request belongs to that
    one, and this request may come from a copy of its cookie.

    :param user_ids: the users whose sessions the transaction has written.
    :param committed: a session whose row is known to be what the transaction has made of it.
    """
    if is_in_request(registry):
        with within_request():
            _sync_current(registry, user_ids, committed)


def _sync_current(
    registry: Registry, user_ids: Sequence[t.Any], committed: SurvivingSession | None
) -> None:
    context = ensure_context(registry)
    current = context.current
    if current is None:
        _sync_unchecked(registry, context)
    elif current.user_id in user_ids:
        if committed is not None and committed.id == current.id:
            state: tuple[int, str | None] | None = committed.held[-1]
        else:
            state = _current_state(registry, current.id)
        if state is None:
            _follow_end(registry, context, current)
        elif state[0] == current.generation:
            current.note_commit()
        elif state in current.held:
            _follow_new_credentials(registry, context, current, state)
        else:
            _follow_rotation_elsewhere(context, current)


def _sync_unchecked(registry: Registry, context: RequestContext) -> None:
    """Keep a session that has ended from being written back, where no check has accepted it."""
    carried = unwrap(flask_session).get(MARKER)
    marker = None if context.is_known(carried) else read_marker(carried)
    if marker is not None and _current_state(registry, marker[0]) is None:
        _sign_out(context, marker[0], _find_end(registry, marker[0]))


def _follow_end(registry: Registry, context: RequestContext, current: CurrentSession) -> None:
    context.drop_current()
    end = _find_end(registry, current.id)
    if end is not None and end.revocation in _own_revocations(context):
        # A login of this request doesn't depend on what the request itself has ended.
        context.detach_login()
    if _is_carried(current):
        _sign_out(context, current.id, end)


def _follow_new_credentials(
    registry: Registry,
    context: RequestContext,
    current: CurrentSession,
    state: tuple[int, str | None],
) -> None:
    if refusal.is_answered():
        context.drop_current()
        _end_unreachable(registry, current)
        return
    is_carried = _is_carried(current)
    interface = unwrap(current_app).session_interface
    left = (store_keys.store_key(interface, current.session_id), current.store_id)
    current.update_credentials(*state)
    context.note_comparison()
    for key in left:
        context.leave_behind(key, except_key=current.store_id)
    if is_carried:
        browser = unwrap(flask_session)
        store_keys.set_session_id(browser, current.session_id)
        browser[MARKER] = current.marker


def _follow_rotation_elsewhere(context: RequestContext, current: CurrentSession) -> None:
    context.drop_current()
    if _is_carried(current):
        # The response to another request signs this browser in, or has done so.
        context.supersede(ROTATED, current.id)
        refusal.make_anonymous(unwrap(current_app), context)


def _end_unreachable(registry: Registry, current: CurrentSession) -> None:
    """End a session whose browser can't learn its new id: it has its answer already.

    A teardown function has committed the password change, or the session store has, which saves
    the session by the same commit.
    """
    app = unwrap(current_app)
    # If this fails, the row expires. What the browser holds is of an earlier generation.
    with contextlib.suppress(*UNAVAILABLE):
        if registry.records.end(current.id, _REASON):
            keys = (*current.keys, *current.next_keys)
            Purge(registry, app).delete_and_mark([SessionKeys(current.id, keys)])
            signals.send(
                signals.session_revoked,
                app,
                ids=(current.id,),
                user_id=current.user_id,
                reason=_REASON,
            )


def _is_carried(current: CurrentSession) -> bool:
    """Return whether ``flask.session`` is still that of this user session."""
    carried: object = unwrap(flask_session).get(MARKER)
    return carried == current.marker


def _current_state(registry: Registry, id: uuid.UUID) -> tuple[int, str | None] | None:
    """Return generation and fingerprint of an active session; ``None`` if unknown or ended."""
    try:
        return registry.records.current_state(id)
    except RecordsError:
        return None


def _find_end(registry: Registry, id: uuid.UUID) -> End | None:
    """Return how a session has ended; ``None`` if that can't be known."""
    try:
        return registry.records.find_end_after_commit(id)
    except UNAVAILABLE:
        return None


def _own_revocations(context: RequestContext) -> set[uuid.UUID]:
    """Return the ids of the revocations of this request, committed or not."""
    orders = (getattr(pending.subject, "order", None) for pending in context.pending)
    return {order.id for order in orders if order is not None}


def _sign_out(context: RequestContext, id: uuid.UUID, end: End | None) -> None:
    """Treat the rest of this request as anonymous: its session has ended."""
    app: Flask = unwrap(current_app)
    if end is not None and refusal.is_superseded(end):
        # The browser may be signed in again by now.
        context.supersede(end.reason, id)
    else:
        context.clear_remember_cookie(remember_cookies.is_ours(app))
    refusal.make_anonymous(app, context)
