"""Flask-Login's signals: login, logout, restored by a remember cookie, confirmed.

A login or logout only begins here. The end of the request records it: see ``record_login`` and
``record_logout``. Other modules use :func:`begin_login`, :func:`undo_login`, :func:`is_same_user`
and :func:`rotate`.
"""

from __future__ import annotations

import typing as t

import sqlalchemy as sa
from flask import Flask, request, session
from flask_login import (
    user_loaded_from_cookie,
    user_logged_in,
    user_logged_out,
    user_login_confirmed,
)
from werkzeug.local import LocalProxy

from .._app import Registry, get_registry, registry_on
from .._compat import flask_login
from .._compat.flask import is_before_request, unwrap, within_request
from .._diagnosis import report
from .._records.base import UNAVAILABLE
from .._revocation.fingerprint import CheckedCredential
from ..errors import UserError
from . import check as session_check
from . import credential_check, refusal, store_keys
from .context import ensure_context, find_context
from .current_session import CurrentSession
from .marker import MARKER, OTHER
from .opened import session_at_the_beginning
from .values import Login

_NOT_RECORDED = "Your session could not be recorded."


def connect(app: Flask) -> None:
    """Listen to Flask-Login on this app."""
    user_logged_in.connect(_logged_in, app)
    user_logged_out.connect(_logged_out, app)
    user_loaded_from_cookie.connect(_restored, app)
    user_login_confirmed.connect(_confirmed, app)


# -- login ---------------------------------------------------------------------------------------


def _logged_in(app: Flask, user: t.Any) -> None:
    try:
        begin_login(app, get_registry(), unwrap(user))
    except BaseException as error:
        # Flask-Login has signed the user in already.
        undo_login(app)
        if isinstance(error, UNAVAILABLE):
            report("Could not prepare a login.", error)
            raise refusal.unavailable(_NOT_RECORDED, error) from None
        raise


def undo_login(app: Flask) -> None:
    """Sign out, in memory, a user that Flask-Login has signed in."""
    flask_login.take_cached_user()
    registry = registry_on(app)
    refusal.make_anonymous(app, find_context(registry) if registry else None)


def begin_login(app: Flask, registry: Registry, user: t.Any) -> None:
    """Give the session of this request a new id; its row is written at the end of the request.

    :raises UserError: the login can't be recorded for this user.
    """
    before = session_check.current_before(registry, app)
    if isinstance(user, LocalProxy) and before is not None:
        # Flask-Login turns 'login_user(current_user)' into a proxy for itself.
        user = before.user
        flask_login.cache_user(user)
    if not isinstance(user, registry.credentials.user_model):
        _leave_alone(app, registry, user)
        return
    context = ensure_context(registry)
    earlier = context.login
    transient = registry.credentials.transient_password(user)
    user = _saved(registry, user)
    evidence = _evidence(app, registry, user, before)._replace(transient=transient)
    previous_user = earlier.user if earlier else before and before.user
    if MARKER in session and not is_same_user(previous_user, user):
        _drop_data_of_previous_user(app, registry, is_first=earlier is None)
    # The context might not know the missing key: the session may not have been checked before.
    left, missing = (
        (earlier.session_id, earlier.missing_store_key)
        if earlier
        else (store_keys.session_id(session), store_keys.missing_store_key(app, session))
    )
    login = Login(
        user=user,
        replaces=before,
        session_id=left,
        missing_store_key=missing,
        evidence=evidence,
        is_repeated=not request.cookies and is_before_request(),
    )
    context.begin_login(login)
    store_keys.regenerate_id(app.session_interface, session)
    session[MARKER] = login.marker


def _saved(registry: Registry, user: t.Any) -> t.Any:
    """Return the user, or the one in the database with the key of an instance made by hand.

    Flask-Login needs only ``get_id()``, so an app may construct its users.
    """
    users = registry.users
    if not users.is_transient(user):
        return user
    saved = users.with_key_of(user)
    if saved is None:
        raise UserError(
            f"The '{type(user).__name__}' passed to 'login_user' was made by hand, and its key is"
            " in no row of the database. Save the user first."
        )
    return saved


def _evidence(
    app: Flask, registry: Registry, user: t.Any, before: CurrentSession | None
) -> CheckedCredential:
    """Return what is known about the credential that this login was checked against."""
    knows = credential_check.take(app, session, user)
    if knows is None and before is not None and is_same_user(before.user, user):
        # The session check has seen it before the view has loaded anything.
        knows = before.knows
    return registry.credentials.evidence(user, knows=knows)


def is_same_user(one: t.Any, other: t.Any) -> bool:
    return one is not None and (
        one is other or sa.inspect(one).identity_key == sa.inspect(other).identity_key
    )


def _drop_data_of_previous_user(app: Flask, registry: Registry, *, is_first: bool) -> None:
    """Keep only what belongs to the login, and what this request has added for its user.

    :param is_first: whether this is the first login of the request. Otherwise what was added since
        may belong to the user who signed in before.
    """
    opened = session_at_the_beginning(registry, app)
    # If the entry is missing, nothing says what was there before.
    is_known = is_first and MARKER in opened
    written = store_keys.written_since(opened, session) if is_known else {}
    store_keys.keep_login_only(session, written)


def _leave_alone(app: Flask, registry: Registry, user: t.Any) -> None:
    """Sign in a user of another kind: as without the registry, but over no session of ours.

    :raises UserError: the user model wasn't passed, and this unmapped class might stand for it.
    """
    kind, known = type(user).__name__, registry.credentials.user_model.__name__
    if not registry.leaves_alone(user):
        raise UserError(
            f"'login_user' was given a '{kind}', but the registry is set up for '{known}'. If that"
            " is another kind of user, which the registry should ignore, pass the user model"
            f" explicitly: 'SessionRegistry(user_model={known})'."
        )
    if sa.inspect(user, raiseerr=False) is None:
        registry.log_once.warning(
            f"left alone: {kind}",
            "A '%s' has signed in. This class is not mapped, and the registry, which is set up for"
            " '%s', ignores it: no password change signs such a user out. If the object stands for"
            " a '%s', pass that '%s' to 'login_user' instead.",
            kind,
            known,
            known,
            known,
        )
    if MARKER in session:
        opened = session_at_the_beginning(registry, app)
        written = store_keys.written_since(opened, session) if MARKER in opened else {}
        is_again = (
            opened.get(MARKER) == OTHER
            and opened[flask_login.USER_ID] == session[flask_login.USER_ID]
        )
        if not is_again:
            store_keys.keep_login_only(session, written)
    store_keys.regenerate_id(app.session_interface, session)
    session[MARKER] = OTHER


# -- logout --------------------------------------------------------------------------------------


def _logged_out(app: Flask, **_: t.Any) -> None:
    """Check the session that a logout ends, if nothing has asked this request for its user."""
    registry = get_registry()
    try:
        session_check.current_before(registry, app)
    except UNAVAILABLE as error:
        report("Could not prepare a logout.", error)
        ensure_context(registry).mark_unavailable()
        raise refusal.unavailable(_NOT_RECORDED, error) from None


# -- restored, confirmed -------------------------------------------------------------------------


def _restored(app: Flask, **_: t.Any) -> None:
    """Give a new id to a session restored by a "remember me" cookie."""
    current = ensure_context(get_registry()).current
    store_keys.regenerate_id(app.session_interface, session)
    if current is None:
        # The user is of another kind. The check would have hidden the cookie of any other user.
        session[MARKER] = OTHER
        return
    current.restore()
    current.name_user()
    session[MARKER] = current.marker


def _confirmed(app: Flask, **_: t.Any) -> None:
    """Rotate the session whose password was given again, as after a login."""
    current = rotate(app, get_registry())
    if flask_login.USER_ID in session:
        # A "remember me" cookie that is only read now has made the session stale again.
        session[flask_login.FRESH] = True
    if current is not None:
        current.confirm()


def rotate(app: Flask, registry: Registry) -> CurrentSession | None:
    """Give the session of this request a new id; return ``None`` if no user is signed in by one."""
    current = session_check.current(registry)
    if current is not None and current.begin_rotation():
        with within_request():
            store_keys.regenerate_id(app.session_interface, unwrap(session))
    return current
