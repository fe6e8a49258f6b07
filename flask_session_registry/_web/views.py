"""The views of the page of a user's own sessions, in HTML and JSON."""

from __future__ import annotations

import datetime as dt
import functools
import re
import typing as t
import uuid
from collections.abc import Callable

from flask import (
    Blueprint,
    Response,
    current_app,
    flash,
    make_response,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask.typing import ResponseReturnValue
from flask_login import login_fresh
from flask_wtf.csrf import CSRFError, generate_csrf, validate_csrf
from werkzeug.exceptions import BadRequest, HTTPException, MethodNotAllowed, NotFound, Unauthorized
from wtforms import ValidationError

from .. import _clock as clock
from .._app import Registry, get_registry
from .._compat.flask import unwrap
from .._compat.flask_login import FRESH
from .._diagnosis import report
from .._records.base import UNAVAILABLE, PageEnd, as_id
from .._request import check as session_check
from .._request import refusal
from .._revocation.revoke import Revocation, revoke_one, revoke_users
from ..models import UserSessionRecord
from .i18n import date, exact_time, language
from .presenter import present

#: The number of active sessions on a page, and of those that ended recently.
PAGE_SIZE = 25
RECENTLY_ENDED = 10

#: The reason in a JSON answer if the password must be given again.
REAUTHENTICATE = "reauthentication_required"

#: The reason of revocations on this page.
_REASON = "revoked"

_CURSOR = re.compile(r"(\d{1,17})-([0-9a-f]{32})")
_View = Callable[..., ResponseReturnValue]

blueprint = Blueprint(
    "session_registry",
    __name__,
    template_folder="templates",
    static_folder="static",
    # Not "/static": without a prefix, that would be the app's own.
    static_url_path="/assets",
)


class _UnauthorizedError(Unauthorized):
    """The answer to a script whose user must sign in, with the reason."""

    def __init__(self, reason: str | None) -> None:
        super().__init__()
        self.reason = reason


# -- what all views have in common -------------------------------------------------------------


def _session_required(view: _View) -> _View:
    """Call the view with the registry and the user session of this request, if there is one."""

    @functools.wraps(view)
    def answer(**arguments: t.Any) -> t.Any:
        registry = get_registry()
        try:
            try:
                checked = session_check.current(registry)
                if registry.adoption.is_pending:
                    # Its row is written when this request ends.
                    return redirect(url_for(".index"), 303)
                current = None if checked is None else registry.records.get(checked.id)
                if current is None or current.revoked_at is not None:
                    return _ask_to_sign_in(registry)
                return view(registry, current, **arguments)
            except UNAVAILABLE as error:
                report("Could not answer a request for the page of a user's sessions.", error)
                registry.users.release()
                raise refusal.unavailable("Your sessions could not be read.", error) from None
        except HTTPException as error:
            if not _wants_json():
                raise
            return _problem_details(error)

    return answer


def _fresh_session_required(view: _View) -> _View:
    """Also require that a POST has a CSRF token and that the password was given recently.

    OWASP ASVS 5.0, 7.5.2: someone with access to an old session must not be able to sign its owner
    out. Only a POST revokes anything; for other methods the view shows a form.
    """

    @functools.wraps(view)
    def answer(registry: Registry, current: UserSessionRecord, **arguments: t.Any) -> t.Any:
        if request.method != "POST":
            if _wants_json():
                raise MethodNotAllowed(["POST"])
            return view(registry, current, **arguments)
        _check_csrf_token()
        age = registry.settings.reauth_age
        if not login_fresh() or (age is not None and current.authenticated_at <= clock.ago(age)):
            # Otherwise the refresh view could find the session fresh, and redirect back at once.
            session[FRESH] = False
            if _wants_json():
                raise _UnauthorizedError(REAUTHENTICATE)
            return current_app.login_manager.needs_refresh()  # type: ignore[attr-defined]
        registry.users.set_lock_timeout()
        return view(registry, current, **arguments)

    return _session_required(answer)


def _ask_to_sign_in(registry: Registry) -> t.Any:
    if _wants_json():
        raise _UnauthorizedError(session_check.reason_of_refusal(registry))
    return current_app.login_manager.unauthorized()  # type: ignore[attr-defined]


def _check_csrf_token() -> None:
    """Check the CSRF token here, whether or not the app protects all of its views.

    :raises CSRFError: the request has no valid token, in the form or in a header.
    """
    config = current_app.config
    if not config.get("WTF_CSRF_ENABLED", True):
        return
    name = config.get("WTF_CSRF_FIELD_NAME", "csrf_token")
    headers = config.get("WTF_CSRF_HEADERS", ("X-CSRFToken", "X-CSRF-Token"))
    tokens = [request.form.get(name), *(request.headers.get(header) for header in headers)]
    try:
        validate_csrf(next(filter(None, tokens), None))
    except ValidationError as error:
        raise CSRFError(error.args[0]) from None


@blueprint.errorhandler(CSRFError)
def _answer_csrf_error(error: CSRFError) -> ResponseReturnValue:
    """Answer what is usually a form that was open for too long."""
    if _wants_json():
        return _problem_details(error)
    return _redirect_to_index(get_registry().texts("form_expired"))


@blueprint.after_request
def _add_headers(response: Response) -> Response:
    """Keep pages out of caches and frames."""
    if request.endpoint != f"{request.blueprint}.static":
        response.headers["Cache-Control"] = "no-store"
        response.vary.add("Accept")
        response.headers["X-Frame-Options"] = "DENY"
    return response


def _wants_json() -> bool:
    """Return whether the request prefers JSON to HTML. Without a preference, the answer is HTML."""
    qualities = {
        kind.partition(";")[0].strip(): quality for kind, quality in request.accept_mimetypes
    }
    return qualities.get("application/json", 0) > qualities.get("text/html", 0)


def _problem_details(error: HTTPException) -> Response:
    """Return an error in the format of RFC 9457."""
    problem = {"type": "about:blank", "title": error.name, "status": error.code}
    if isinstance(error, _UnauthorizedError):
        problem["reason"] = error.reason
    else:
        problem["detail"] = error.description
    response = make_response(problem, error.code)
    if isinstance(error, MethodNotAllowed):
        response.allow.update(error.valid_methods or ())
    response.retry_after = getattr(error, "retry_after", None)
    response.mimetype = "application/problem+json"
    return response


def _redirect_to_index(message: str) -> ResponseReturnValue:
    flash(message)
    return redirect(url_for(".index"), 303)


def _render(name: str, **values: t.Any) -> str:
    """Render a template with all values in ``sessions_page``.

    Other names would hide those that the app's base template uses.
    """
    registry = get_registry()
    page = {
        "base_template": registry.settings.base_template,
        "csrf_field": current_app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token"),
        "csrf_token": generate_csrf,
        "text": registry.texts,
        "date": date,
        "exact_time": exact_time,
        "language": language(),
        **values,
    }
    return render_template(f"session_registry/{name}.html", sessions_page=page)


# -- listing -----------------------------------------------------------------------------------


@blueprint.get("/")
@_session_required
def index(registry: Registry, current: UserSessionRecord) -> ResponseReturnValue:
    """Show this session, the others by when they were last seen, and those that ended recently."""
    after = _read_cursor(request.args.get("after"))
    records, expiry = registry.records, registry.expiry(unwrap(current_app))
    found = records.list_others(current, expiry=expiry, after=after, limit=PAGE_SIZE + 1)
    rows, next_page = found[:PAGE_SIZE], None
    if len(found) > PAGE_SIZE:
        next_page = url_for(".index", after=_cursor_after(rows[-1]))
    if after is None:
        rows = [current, *rows]
    ended_rows = records.recently_ended(current.user_id, limit=RECENTLY_ENDED)
    active = [present(registry, row, current=current) for row in rows]
    ended = [present(registry, row, current=current) for row in ended_rows]
    if _wants_json():
        return {
            "sessions": [each.as_json() for each in active],
            "recently_ended": [each.as_json() for each in ended],
            "next": next_page,
            "csrf_token": generate_csrf(),
        }
    return _render(
        "sessions", active=active, ended=ended, next_page=next_page, is_first_page=after is None
    )


def _cursor_after(row: UserSessionRecord) -> str:
    return f"{clock.microseconds(row.last_seen_at)}-{row.id.hex}"


def _read_cursor(text: str | None) -> PageEnd | None:
    if text is None:
        return None
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise BadRequest("'after' is invalid. Use the address in 'next'.")
    microseconds = dt.timedelta(microseconds=int(match[1]))
    return PageEnd(clock.EPOCH + microseconds, uuid.UUID(hex=match[2]))


# -- revoking ----------------------------------------------------------------------------------


@blueprint.route("/<id>/revoke", methods=["GET", "POST"])
@_fresh_session_required
def revoke(registry: Registry, current: UserSessionRecord, id: str) -> ResponseReturnValue:
    """Revoke one session of the user. Another user's id is treated as an unknown one."""
    row = _find_own(registry, current, id)
    device = None if row is None else present(registry, row, current=current)
    if request.method != "POST" and device is not None:
        question = registry.texts("confirm_end", device=device.name)
        return _render("confirm", question=question, device=device)
    if device is not None:
        revocation = revoke_one(
            registry,
            unwrap(current_app),
            device.id,
            user_id=current.user_id,
            reason=_REASON,
            session=registry.db_session,
        )
        if _commit(registry, revocation):
            return _answer(1, registry.texts("ended", device=device.name))
    if _wants_json():
        raise NotFound("You have no active session with this id.")
    return _redirect_to_index(registry.texts("not_there"))


@blueprint.route("/revoke-others", methods=["GET", "POST"])
@_fresh_session_required
def revoke_others(registry: Registry, current: UserSessionRecord) -> ResponseReturnValue:
    """Revoke all sessions of the user except this one."""
    if request.method != "POST":
        return _render("confirm", question=registry.texts("confirm_others"))
    count = _revoke_all(registry, current, except_id=current.id)
    return _answer(count, registry.texts("ended_others", num=count))


@blueprint.route("/revoke-all", methods=["GET", "POST"])
@_fresh_session_required
def revoke_all(registry: Registry, current: UserSessionRecord) -> ResponseReturnValue:
    """Revoke all sessions of the user, including this one."""
    if request.method != "POST":
        return _render("confirm", question=registry.texts("confirm_all"))
    count = _revoke_all(registry, current)
    return _answer(count, registry.texts("ended_all"))


def _find_own(registry: Registry, current: UserSessionRecord, id: str) -> UserSessionRecord | None:
    """Return this user's session with this id; ``None`` if it has ended or there is none."""
    known = as_id(id)
    row = None if known is None else registry.records.get(known)
    if row is None or row.user_id != current.user_id or row.revoked_at is not None:
        return None
    return row


def _revoke_all(
    registry: Registry, current: UserSessionRecord, *, except_id: uuid.UUID | None = None
) -> int:
    """Revoke the sessions of this user; return how many ended."""
    revocation = revoke_users(
        registry,
        unwrap(current_app),
        [current.user_id],
        reason=_REASON,
        session=registry.db_session,
        except_id=except_id,
    )
    return _commit(registry, revocation)


def _commit(registry: Registry, revocation: Revocation | None) -> int:
    """Commit; return how many sessions ended.

    They are counted after the commit: with records in Redis, another request may have been first.
    """
    if revocation is None:
        return 0
    registry.db_session.commit()
    return revocation.after_commit.ended


def _answer(count: int, message: str) -> ResponseReturnValue:
    return {"ended": count} if _wants_json() else _redirect_to_index(message)
