"""May a session go on that began before there was a registry?

While ``UNREGISTERED`` is ``"adopt"``, yes: once, and unless anything of its user was revoked since.
"""

from __future__ import annotations

import hashlib
import typing as t
import uuid
from collections.abc import Sequence

from flask import Flask, request, session

from .. import _clock as clock
from .._app import Registry, unwrap
from .._compat import flask_login
from .._records.base import Execute
from .._request import remember_cookies, store_keys
from .._request.client_info import client_info
from .._request.context import MARKER, Adoption, Current, RequestState

#: How many user sessions go on from one "remember me" cookie at most.
_AGENTS = 16


def id_of_cookie(app: Flask) -> uuid.UUID:
    """The id of the user session that goes on from this request's session cookie.

    The same each time: requests in parallel get one row, and a copy that comes later finds it.
    """
    cookie = request.cookies.get(app.config["SESSION_COOKIE_NAME"], "")
    # Not the signature: that can be written in several ways.
    cookie = store_keys.sent_session_id(app, request) or cookie.rpartition(".")[0] or cookie
    if not cookie:
        # A session that this request has only just been given, by the app's own hand.
        return uuid.uuid4()
    return _id_of(f"adopted:{cookie}")


def id_of_remember_cookie(app: Flask) -> uuid.UUID:
    """The id of the user session that goes on from a "remember me" cookie that came alone.

    That is the same on every device. So it is one for those whose user agents fall together, which
    the same browser's always do, and never more than a few, however often the cookie comes.
    """
    cookie = request.cookies.get(remember_cookies.cookie_name(app), "")
    agent = hashlib.sha256(request.user_agent.string.encode("utf-8", "surrogatepass")).digest()
    return _id_of(f"remembered:{agent[0] % _AGENTS}:{cookie}")


def _id_of(text: str) -> uuid.UUID:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return uuid.UUID(bytes=digest[:16], version=4)


def begin(
    app: Flask, registry: Registry, state: RequestState, claimed: str, *, id: uuid.UUID
) -> bool:
    """Let the session of this request go on under this id; ``False``: it may not.

    Its row follows: see :func:`settle` and :func:`finish`.

    :param claimed: who Flask-Login is about to load.
    """
    user = flask_login.load_user(app, claimed)
    if not isinstance(user, registry.credentials.user_model) or not user.is_active:
        return False
    if registry.users.is_transient(user):
        user = registry.users.with_key_of(user)
        if user is None:
            return False
    user_id = registry.user_id_of(user)
    if registry.table.is_adoption_blocked(user_id):
        return False
    moment, session_id = clock.now(), store_keys.session_id(unwrap(session))
    key = store_keys.store_key(app.session_interface, session_id)
    fingerprint = registry.users.fingerprint_of(user_id)
    state.current = Current(
        id=id,
        generation=0,
        user=user,
        session_id=session_id,
        store_id=key,
        is_touch_due=False,
        held=[(0, fingerprint)],
    )
    is_remembered = remember_cookies.claimed_user(app) == flask_login.get_id(app, user)
    values = {
        "id": id,
        "generation": 0,
        "user_id": user_id,
        "store_id": key,
        "created_at": moment,
        "authenticated_at": clock.EPOCH,
        "remember_until": moment + remember_cookies.duration(app) if is_remembered else None,
        "fingerprint": fingerprint,
        **client_info(moment),
    }
    state.adoption = Adoption(user, values)
    session[MARKER] = state.current.marker
    return True


def settle(registry: Registry, execute: Execute, user_ids: Sequence[t.Any]) -> None:
    """Write the row of this request's session in a transaction that is about to end its user's.

    So that there is one to end, or to spare. The transaction holds the user's row.
    """
    state = registry.known_state
    adoption = state.adoption if state is not None else None
    if adoption is not None and adoption.values["user_id"] in user_ids:
        registry.table.adopt(execute, adoption.values)


def finish(registry: Registry, adoption: Adoption) -> int | None:
    """Write the row at the end of the request, unless that is done; in which generation it stands.

    ``None``: the session does not go on, because something of its user was revoked meanwhile.
    """
    registry.users.release()
    return registry.table.adopt_late(adoption.values)
