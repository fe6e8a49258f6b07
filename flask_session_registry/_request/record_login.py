"""Records a login at the end of its request."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa
from flask import Flask, Response, session

from .. import _clock as clock
from .. import signals
from .._app import Registry
from .._records.base import Replaced, StoreEntry
from .._store.purge import EndedSession
from ..errors import UserError
from . import device_cookie, remember_cookies, store_keys
from .auth_events import is_same_user
from .client_info import client_info
from .context import RequestContext
from .cookieless_logins import find_never_resumed
from .current_session import CurrentSession
from .marker import MARKER, Marker
from .remember_cookies import RememberCookieChange
from .values import Login, SessionKeys


def record_login(
    app: Flask,
    registry: Registry,
    context: RequestContext,
    login: Login,
    change: RememberCookieChange | None,
    response: Response,
) -> None:
    """Write the row of a login, and end the sessions that it replaces.

    :param change: what the response does to the "remember me" cookie.
    :raises UserError: the user isn't in the database.
    :raises LimitReachedError: the user has as many sessions as allowed.
    :raises SupersededError: a session that the login depends on has ended or been rotated.
    """
    # Before the release: a user who isn't committed has no identity afterwards.
    user_id = (sa.inspect(login.user).identity or (None,))[0]
    # Again: the view may have stored another hash of the same password since.
    newest = registry.credentials.evidence(login.user)
    evidence = login.evidence._replace(stored=newest.stored)
    if user_id is not None:
        login = context.assign_id(login, registry.records.assign_id(login.id, user_id), user_id)
        session[MARKER] = login.marker
    values = _values(app, login, user_id, change)
    registry.users.release()
    # Without a receiver, no device is looked up, and no browser gets a cookie for nothing.
    is_announced = signals.session_registered.has_receivers_for(app)
    is_new_device, evicted = False, None
    replacement = _Replacement(login)
    if user_id is not None:
        replacement.find(registry, login, values)
        is_new_device = is_announced and _is_new_device(app, registry, values)
        evicted = registry.records.add(
            values,
            evidence=evidence,
            replaces=replacement.replaced,
            limit=registry.limit,
            expiry=registry.expiry(app),
        )
    if evicted is None:
        raise UserError(
            "The user who signed in is not in the database. Commit before the request ends."
        )
    _finish(app, context, login, values, replacement, evicted)
    if is_announced:
        device_cookie.add_user(app, response, user_id)
    _announce(app, login, user_id, evicted, is_new_device=is_new_device)
    if remember_cookies.is_ours(app):
        # It belongs to the session from before, unless this response sets another.
        context.clear_remember_cookie()


def _values(
    app: Flask, login: Login, user_id: t.Any, change: RememberCookieChange | None
) -> dict[str, t.Any]:
    """Return the values of the row."""
    moment = clock.now()
    return {
        "id": login.id,
        "generation": 0,
        "user_id": user_id,
        "store_id": store_keys.store_key(app.session_interface, store_keys.session_id(session)),
        "created_at": moment,
        "rotated_at": moment,
        "authenticated_at": moment,
        "remember_until": change.until if change and change.value else None,
        **client_info(moment),
    }


class _Replacement:
    """The user sessions that end because of a login: at first, the current one."""

    def __init__(self, login: Login) -> None:
        self.replaced: list[Replaced] = []
        self.ended: list[EndedSession] = []
        #: Further ended sessions, whose rows are to be deleted.
        self.forgotten: list[EndedSession] = []
        current = login.replaces
        if current is not None:
            vouches = is_same_user(current.user, login.user)
            self.replaced.append(Replaced(current.id, current.generation, vouches))
            self.ended.append(SessionKeys(current.id, current.keys))

    def find(self, registry: Registry, login: Login, values: dict[str, t.Any]) -> None:
        """Add sessions that no browser can come back to: they would only count, and be listed."""
        if login.missing_store_key is not None:
            lost = registry.records.find_by_store_key(login.missing_store_key, values["user_id"])
            self._replace(lost)
            self.ended += lost
        if login.is_repeated:
            abandoned = find_never_resumed(registry, values)
            self._replace(abandoned)
            self.forgotten += abandoned

    def _replace(self, rows: list[StoreEntry]) -> None:
        self.replaced += [Replaced(row.id, None, vouches=False) for row in rows]


def _is_new_device(app: Flask, registry: Registry, values: dict[str, t.Any]) -> bool:
    """Return whether nothing shows that this user has signed in with such a device before."""
    return not device_cookie.has_user(app, values["user_id"]) and not registry.records.was_seen(
        values["user_id"], ip_address=values["ip_address"], user_agent=values["user_agent"]
    )


def _finish(
    app: Flask,
    context: RequestContext,
    login: Login,
    values: dict[str, t.Any],
    replacement: _Replacement,
    evicted: list[StoreEntry],
) -> None:
    """Make the new session, as it was recorded, the current one."""
    key: str | None = values["store_id"]
    current = CurrentSession(
        Marker.of(login.id, 0, login.user_key),
        login.user,
        session_id=store_keys.session_id(session),
        store_id=key,
        held=[],
    )
    ended = [*replacement.ended, *evicted]
    context.finish_login(current, ended=ended, forgotten=replacement.forgotten)
    left = store_keys.store_key(app.session_interface, login.session_id)
    context.leave_behind(left, except_key=key)


def _announce(
    app: Flask, login: Login, user_id: t.Any, evicted: list[StoreEntry], *, is_new_device: bool
) -> None:
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
