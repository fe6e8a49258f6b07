"""What the request did to its session, taken down in the rows at its end."""

from __future__ import annotations

import dataclasses
import datetime as dt
import ipaddress
import logging
import re
import typing as t
import uuid

import sqlalchemy as sa
from flask import Flask, Response, g, request, session
from flask_login import user_loaded_from_cookie, user_logged_in, user_logged_out
from werkzeug.exceptions import ServiceUnavailable

from . import clock, entries, gate, remember, session_ids, signals
from .credentials import fingerprint
from .errors import UserError
from .installation import Installation, get_installation, installation_on, unwrap
from .revocation import purge
from .state import MARKER, Current, Login, RequestState

#: A request that took longer than this looks once more before its session is written, in seconds.
#: From its beginning, not from the check, which may see the database as it was at the beginning.
LATE = 1.0

#: For so long after a rotation, the browser may have requests under way with the old id.
OVERLAP = dt.timedelta(seconds=10)

_USER_AGENT_LENGTH = 512
#: Characters that can break a line, a terminal or the direction of a text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_LATER = "_session_registry_later"

_log = logging.getLogger("flask_session_registry")


@dataclasses.dataclass
class Later:
    """What can wait until the app's database session is gone."""

    installation: Installation
    ended: list[tuple[uuid.UUID, str | None]]
    left_behind: list[str]
    inactive: uuid.UUID | None
    touched: tuple[uuid.UUID, dict[str, t.Any]] | None

    def run(self, app: Flask) -> None:
        records = self.installation.records
        purge(self.installation, app, self.ended)
        if self.left_behind:
            entries.delete(app.session_interface, self.left_behind)
        if self.inactive:
            records.end(self.inactive, "inactive")
        if self.touched:
            records.touch(*self.touched)


def connect(app: Flask) -> None:
    """Listen to Flask-Login on this app."""
    user_logged_in.connect(_logged_in, app)
    user_logged_out.connect(_logged_out, app)
    user_loaded_from_cookie.connect(_returned, app)


# -- during the request ------------------------------------------------------------------------


def _logged_in(app: Flask, user: t.Any) -> None:
    """A login: its session goes on under a new id, and its row follows at the end."""
    try:
        _begin_login(app, get_installation(), unwrap(user))
    except BaseException as error:
        # Flask-Login has signed the user in already.
        _sign_out(app)
        if isinstance(error, sa.exc.SQLAlchemyError):
            _log.exception("A login could not be prepared.")
            raise _unrecorded() from None
        raise


def _begin_login(app: Flask, installation: Installation, user: t.Any) -> None:
    if not isinstance(user, installation.credentials.user_model):
        raise UserError(
            f"'login_user' was given a '{type(user).__name__}'. The registry was set up for"
            f" '{installation.credentials.user_model.__name__}'."
        )
    state = installation.state
    before = gate.current_before(installation, app)
    had_marker = MARKER in session
    earlier = state.login
    if had_marker and not _is_same_user(earlier.user if earlier else before and before.user, user):
        session_ids.keep_login_only(session)
    # The hash that the password was checked against, before anything can reload it.
    installation.credentials.known(user)
    left = earlier.session_id if earlier else session_ids.session_id(session)
    state.login = Login(user=user, replaces=before, session_id=left)
    session_ids.change(app.session_interface, session)
    session[MARKER] = state.login.marker


def _logged_out(app: Flask, **_: t.Any) -> None:
    """A logout by a view that got its user elsewhere than from this request's session."""
    installation = get_installation()
    try:
        gate.current_before(installation, app)
    except sa.exc.SQLAlchemyError:
        _log.exception("A logout could not be prepared.")
        installation.state.is_unavailable = True
        raise _unrecorded() from None


def _is_same_user(one: t.Any, other: t.Any) -> bool:
    return one is not None and (
        one is other or sa.inspect(one).identity_key == sa.inspect(other).identity_key
    )


def _returned(app: Flask, **_: t.Any) -> None:
    """A "remember me" cookie has brought a session back: it goes on under a new id."""
    # Without one, the check would have hidden the cookie.
    current = t.cast(Current, get_installation().state.current)
    current.has_returned = True
    session_ids.change(app.session_interface, session)
    session[MARKER] = current.marker


# -- at the end of the request -----------------------------------------------------------------


def finish(response: Response, *, app: Flask) -> Response:
    """Compare what the check accepted with what the session says now, and write it down.

    The last thing before Flask saves the session. May run twice, if saving fails.
    """
    installation = installation_on(app)
    state = installation.state_in(request.environ) if installation else None
    if installation is None or state is None:
        return response
    _roll_back_uncommitted(installation, state)
    try:
        if not state.is_unavailable:
            _write_down(app, installation, state, response)
    except sa.exc.SQLAlchemyError:
        _log.exception("What became of a session could not be written down.")
        response = _unavailable(app, state)
    if state.is_unavailable or _must_not_be_written(installation, state):
        session_ids.forget(app.session_interface, session)
    return response


def _must_not_be_written(installation: Installation, state: RequestState) -> bool:
    """Whether what is in the session now would take away what the browser has been given."""
    browser = unwrap(session)
    if not browser.modified or state.current is not None or state.ended:
        return False
    if (state.is_forgotten or state.lost_store_id) and not set(browser) - {"_permanent"}:
        # Nothing was written but by Flask-Login, or by an app that makes all sessions permanent.
        return True
    try:
        if gate.complete_reason(installation, state) != "rotated" or state.rejected_id is None:
            return False
        # A late request with the id from before a rotation: this browser is signed in by now. After
        # that, it is one that has nothing but the old id, and must be able to sign in.
        return installation.records.was_rotated_since(state.rejected_id, clock.now() - OVERLAP)
    except sa.exc.SQLAlchemyError:
        _log.exception("It could not be asked whether a request is late.")
        installation.records.db.session.rollback()
        # A visitor who was not refused has nothing to do with the table.
        return state.rejected is not None


def _roll_back_uncommitted(installation: Installation, state: RequestState) -> None:
    session = installation.records.db.session
    for pending in state.pending:
        if pending.is_open and pending.is_of_this_thread(session()):
            _log.warning(
                "A revocation, or the change of a password, was not committed by the end of the"
                " request '%s' and has been rolled back: nobody was signed out. Commit the"
                " transaction in the view.",
                request.endpoint,
            )
            pending.session.rollback()


def _write_down(
    app: Flask, installation: Installation, state: RequestState, response: Response
) -> None:
    offer = remember.offer(app, response)
    browser = unwrap(session)
    carried = browser.get(MARKER) if "_user_id" in browser else None
    is_renewed = False
    if state.login is not None and state.login.marker == carried:
        _register(app, installation, state, state.login, offer)
        state.forgets_remember |= remember.is_offered(app)
    elif state.current is not None and state.current.marker != carried:
        _end(app, installation, state, state.current)
    elif state.current is not None:
        is_renewed = _go_on(app, installation, state, state.current)
    elif carried is None and MARKER in browser:
        browser.pop(MARKER)
    current = state.current
    if offer is not None:
        remember.accompany(app, response, offer, current)
    elif state.forgets_remember:
        remember.forget(app, response)
    elif is_renewed and current is not None:
        remember.renew(app, response, current)
    _put_off(installation, state, offer)


def _register(
    app: Flask,
    installation: Installation,
    state: RequestState,
    login: Login,
    offer: remember.Offer | None,
) -> None:
    interface, moment = app.session_interface, clock.now()
    key = session_ids.store_id(interface, session_ids.session_id(session))
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
        "remember_until": offer.until if offer and offer.value else None,
        **_sight(moment),
    }
    fingerprints = [fingerprint(known) for known in installation.credentials.known(login.user)]
    before = login.replaces
    installation.records.release()
    if user_id is None or not installation.records.add(
        values, fingerprints=fingerprints, replaces=before.id if before else None
    ):
        raise sa.exc.InvalidRequestError(
            "The user who signed in is not in the database. Commit before the request ends."
        )
    if before is not None:
        state.ended.append((before.id, before.store_id))
    state.leave_behind(session_ids.store_id(interface, login.session_id), but=key)
    state.login = None
    state.current = Current(
        id=login.id,
        generation=0,
        user=login.user,
        session_id=session_ids.session_id(session),
        store_id=key,
        is_touch_due=False,
    )
    signals.send(signals.session_registered, app, user_session_id=login.id, user_id=user_id)


def _end(app: Flask, installation: Installation, state: RequestState, current: Current) -> None:
    installation.records.release()
    installation.records.end(current.id, "logged_out")
    state.ended.append((current.id, current.store_id))
    state.current = None
    state.forgets_remember = remember.is_offered(app)
    session.pop(MARKER, None)
    if session:
        # What stays is an anonymous session: the old entry goes with the ended row.
        session_ids.change(app.session_interface, session)


def _go_on(app: Flask, installation: Installation, state: RequestState, current: Current) -> bool:
    """The session goes on; whether the browser needs a new "remember me" cookie."""
    interface = app.session_interface
    session_id = session_ids.session_id(unwrap(session))
    has_moved = session_id != current.session_id
    rotates = current.is_rotating or (
        has_moved and not current.has_returned and not current.is_recredited
    )
    if current.is_recredited:
        _follow_user(app, installation, current)
    if has_moved or rotates:
        key = session_ids.store_id(interface, session_id)
        becomes = current.generation + rotates
        installation.records.release()
        if not installation.records.renew(
            current.id, generation=current.generation, becomes=becomes, store_id=key
        ):
            return _drop(app, state)
        state.leave_behind(session_ids.store_id(interface, current.session_id), but=key)
        state.leave_behind(current.store_id, but=key)
        current.generation, current.session_id, current.store_id = becomes, session_id, key
        current.is_rotating = False
        session[MARKER] = current.marker
    elif (
        installation.request_age() > LATE
        and installation.records.standing_now(current.id) != current.generation
    ):
        return _drop(app, state)
    return rotates or current.is_recredited


def _follow_user(app: Flask, installation: Installation, current: Current) -> None:
    """``get_id()`` may have changed with the password."""
    # The commit may have been another session's, and this one know an older user.
    installation.records.release()
    row = installation.records.load(current.id, anew=True)
    if row is not None:
        session["_user_id"] = getattr(row[0], app.login_manager.id_attribute)()  # type: ignore[attr-defined]


def _drop(app: Flask, state: RequestState) -> bool:
    """The session has ended, or gone on under another id, while this request was under way."""
    state.current = None
    state.is_forgotten = True
    session_ids.forget(app.session_interface, session)
    return False


def _sign_out(app: Flask) -> None:
    """Take a login back, in memory."""
    g.pop("_login_user", None)
    installation = installation_on(app)
    gate.make_anonymous(app, installation.known_state if installation else None)


def _unrecorded() -> ServiceUnavailable:
    return ServiceUnavailable("Your session could not be recorded. Please try again in a moment.")


def _unavailable(app: Flask, state: RequestState) -> Response:
    """The answer of a request whose session could not be written down."""
    state.is_unavailable = True
    _sign_out(app)
    return app.make_response(app.handle_http_exception(_unrecorded()))


def _sight(moment: dt.datetime) -> dict[str, t.Any]:
    """When, whence and with what this browser is seen."""
    return {
        "last_seen_at": moment,
        "ip_address": _ip_address(request.remote_addr),
        "user_agent": _CONTROL.sub(" ", request.user_agent.string)[:_USER_AGENT_LENGTH] or None,
    }


def _ip_address(address: str | None) -> str | None:
    """The address in its usual form, without a scope; ``None`` if it is none (a socket, say)."""
    try:
        found = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return None
    # A socket for both families gives an IPv4 address within an IPv6 one.
    return str(getattr(found, "ipv4_mapped", None) or found)


# -- after the response ------------------------------------------------------------------------


def _put_off(installation: Installation, state: RequestState, offer: remember.Offer | None) -> None:
    current = state.current
    touched = None
    if current is not None and current.is_touch_due:
        current.is_touch_due = False
        values = _sight(clock.now())
        if offer is not None and offer.value:
            values["remember_until"] = offer.until
        touched = (current.id, values)
    if touched or state.ended or state.left_behind or state.inactive:
        later = Later(installation, state.ended, state.left_behind, state.inactive, touched)
        g.setdefault(_LATER, []).append(later)


def run_later(_: BaseException | None, *, app: Flask) -> None:
    """Do what could wait, once the app's database session is gone. Nothing here decides."""
    for later in g.pop(_LATER, ()):
        try:
            later.run(app)
        except Exception:
            _log.exception("Housekeeping after a request failed.")
