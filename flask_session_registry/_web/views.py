"""The page of a user's own sessions, as HTML or as JSON."""

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
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    MethodNotAllowed,
    NotFound,
    Unauthorized,
)
from wtforms import ValidationError

from .. import _clock as clock
from .._app import Registry, get_registry, unwrap
from .._diagnosis import report
from .._records.base import UNAVAILABLE, PageEnd, as_id
from .._request import check as session_check
from .._revocation.revoke import Revocation, revoke_one, revoke_users
from .i18n import day, exactly, language
from .presenter import session_view

#: How many sessions are shown at a time, and how many that have ended.
PAGE = 25
RECENT = 10

#: What a request that wants JSON is told where the password has to be given once more.
REAUTHENTICATE = "reauthentication_required"

#: Why a session has ended that was ended here.
_REASON = "revoked"

_CURSOR = re.compile(r"(\d{1,17})-([0-9a-f]{32})")
_View = Callable[..., ResponseReturnValue]

blueprint = Blueprint(
    "session_registry",
    __name__,
    template_folder="templates",
    static_folder="static",
    # Not "/static", which is the app's own where the blueprint has no prefix.
    static_url_path="/assets",
)


class _NotAllowed(Unauthorized):
    """The answer to a script that has to let somebody sign in, and why."""

    def __init__(self, reason: str | None) -> None:
        super().__init__()
        self.reason = reason


# -- what every view has in common -------------------------------------------------------------


def _of_the_signed_in(view: _View) -> _View:
    """Call it with the installation and the user session of this request, if there is one."""

    @functools.wraps(view)
    def answer(**arguments: t.Any) -> t.Any:
        registry = get_registry()
        try:
            try:
                found = session_check.current(registry)
                if registry.state.adoption is not None:
                    # Its row is written when this request ends.
                    return redirect(url_for(".index"), 303)
                current: t.Any = found and registry.records.get(found.id)
                if current is None or current.revoked_at is not None:
                    return _signs_in(registry)
                return view(registry, current, **arguments)
            except UNAVAILABLE as error:
                report("The page of a user's sessions could not be answered.", error)
                registry.users.release()
                raise session_check.unavailable("Your sessions could not be read.", error) from None
        except HTTPException as error:
            if not _wants_json():
                raise
            return _problem(error)

    return answer


def _of_the_recently_authenticated(view: _View) -> _View:
    """The same, if the request is no forgery and the password was given not long ago.

    OWASP ASVS 5.0, 7.5.2: somebody who has got hold of an old session can't throw its owner out.
    Nothing but a POST ends anything; to all others the view shows a form.
    """

    @functools.wraps(view)
    def answer(registry: Registry, current: t.Any, **arguments: t.Any) -> t.Any:
        if request.method != "POST":
            if _wants_json():
                raise MethodNotAllowed(["POST"])
            return view(registry, current, **arguments)
        _check_token()
        age = registry.settings.reauth_age
        if not login_fresh() or (age is not None and current.authenticated_at <= clock.ago(age)):
            # Or the view that asks for the password would find the session fresh, and send it back.
            session["_fresh"] = False
            if _wants_json():
                raise _NotAllowed(REAUTHENTICATE)
            return current_app.login_manager.needs_refresh()  # type: ignore[attr-defined]
        registry.users.set_lock_timeout()
        return view(registry, current, **arguments)

    return _of_the_signed_in(answer)


def _signs_in(registry: Registry) -> t.Any:
    if _wants_json():
        raise _NotAllowed(session_check.reason_of_refusal(registry))
    return current_app.login_manager.unauthorized()  # type: ignore[attr-defined]


def _check_token() -> None:
    """Whatever the app does against forged requests, it is done here.

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
def _refused(error: CSRFError) -> ResponseReturnValue:
    """A form that has been open for too long, for the most part."""
    if _wants_json():
        return _problem(error)
    return _go_back(_text("form_expired"))


@blueprint.after_request
def _keep_out_of_caches(response: Response) -> Response:
    if request.endpoint != f"{request.blueprint}.static":
        response.headers["Cache-Control"] = "no-store"
        response.vary.add("Accept")
        response.headers["X-Frame-Options"] = "DENY"
    return response


def _wants_json() -> bool:
    """Whether the request would rather have JSON than HTML; who does not care gets HTML."""
    qualities = {
        kind.partition(";")[0].strip(): quality for kind, quality in request.accept_mimetypes
    }
    return qualities.get("application/json", 0) > qualities.get("text/html", 0)


def _problem(error: HTTPException) -> Response:
    """An error as RFC 9457 has it."""
    problem = {"type": "about:blank", "title": error.name, "status": error.code}
    if isinstance(error, _NotAllowed):
        problem["reason"] = error.reason
    else:
        problem["detail"] = error.description
    response = make_response(problem, error.code)
    if isinstance(error, MethodNotAllowed):
        response.allow.update(error.valid_methods or ())
    response.retry_after = getattr(error, "retry_after", None)
    response.mimetype = "application/problem+json"
    return response


def _go_back(message: str) -> ResponseReturnValue:
    flash(message)
    return redirect(url_for(".index"), 303)


def _text(name: str, **values: t.Any) -> str:
    return get_registry().texts(name, **values)


def _page(name: str, **values: t.Any) -> str:
    """Render a template; all that it is given is in ``sessions_page``.

    Other names would hide those that the app's base template uses.
    """
    registry = get_registry()
    page = {
        "base_template": registry.settings.base_template,
        "csrf_field": current_app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token"),
        "csrf_token": generate_csrf,
        "text": registry.texts,
        "day": day,
        "exactly": exactly,
        "language": language(),
        **values,
    }
    return render_template(f"session_registry/{name}.html", sessions_page=page)


# -- seeing them -------------------------------------------------------------------------------


@blueprint.get("/")
@_of_the_signed_in
def index(registry: Registry, current: t.Any) -> ResponseReturnValue:
    """This device, the others by when they were last seen, and what has ended of late."""
    after = _read_cursor(request.args.get("after"))
    records, expiry = registry.records, registry.expiry(unwrap(current_app))
    found = records.list_others(current, expiry=expiry, after=after, limit=PAGE + 1)
    rows, older = found[:PAGE], None
    if len(found) > PAGE:
        older = url_for(".index", after=_cursor_of(rows[-1]))
    if after is None:
        rows = [current, *rows]
    over = records.recently_ended(current.user_id, limit=RECENT)
    active, ended = (
        [session_view(registry, row, current=current) for row in each] for each in (rows, over)
    )
    if _wants_json():
        return {
            "sessions": [one.json for one in active],
            "recently_ended": [one.json for one in ended],
            "next": older,
            "csrf_token": generate_csrf(),
        }
    return _page("sessions", active=active, ended=ended, older=older, is_first=after is None)


def _cursor_of(row: t.Any) -> str:
    microseconds = (row.last_seen_at - clock.EPOCH) // dt.timedelta(microseconds=1)
    return f"{microseconds}-{row.id.hex}"


def _read_cursor(text: str | None) -> PageEnd | None:
    if text is None:
        return None
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise BadRequest("'after' is not what 'next' has said.")
    microseconds = dt.timedelta(microseconds=int(match[1]))
    return PageEnd(clock.EPOCH + microseconds, uuid.UUID(hex=match[2]))


# -- ending them -------------------------------------------------------------------------------


@blueprint.route("/<id>/revoke", methods=["GET", "POST"])
@_of_the_recently_authenticated
def revoke(registry: Registry, current: t.Any, id: str) -> ResponseReturnValue:
    """End one; somebody else's is as unknown as one that never was."""
    row = _one_of(registry, current, id)
    facts = None if row is None else session_view(registry, row, current=current)
    if request.method != "POST" and facts is not None:
        return _page("confirm", question=_text("confirm_end", device=facts.name), device=facts)
    if row is not None and facts is not None:
        revocation = revoke_one(
            registry,
            unwrap(current_app),
            row.id,
            user_id=current.user_id,
            reason=_REASON,
            session=registry.db_session,
        )
        if _ended_by(registry, revocation):
            return _tell(1, _text("ended", device=facts.name))
    if _wants_json():
        raise NotFound("There is no such session of yours that is signed in.")
    return _go_back(_text("not_there"))


@blueprint.route("/revoke-others", methods=["GET", "POST"])
@_of_the_recently_authenticated
def revoke_others(registry: Registry, current: t.Any) -> ResponseReturnValue:
    """End all but this one."""
    if request.method != "POST":
        return _page("confirm", question=_text("confirm_others"))
    count = _end_all(registry, current, except_id=current.id)
    return _tell(count, _text("ended_others", num=count))


@blueprint.route("/revoke-all", methods=["GET", "POST"])
@_of_the_recently_authenticated
def revoke_all(registry: Registry, current: t.Any) -> ResponseReturnValue:
    """End all, this one too."""
    if request.method != "POST":
        return _page("confirm", question=_text("confirm_all"))
    count = _end_all(registry, current)
    return _tell(count, _text("ended_all"))


def _end_all(registry: Registry, current: t.Any, *, except_id: uuid.UUID | None = None) -> int:
    """End the sessions of the user of this one; how many."""
    revocation = revoke_users(
        registry,
        unwrap(current_app),
        [current.user_id],
        reason=_REASON,
        session=registry.db_session,
        except_id=except_id,
    )
    return _ended_by(registry, revocation)


def _ended_by(registry: Registry, revocation: Revocation | None) -> int:
    """Commit; how many sessions that has ended.

    Counted after the commit: if the records are in no table, another request may have been first.
    """
    if revocation is None:
        return 0
    registry.db_session.commit()
    return revocation.ended


def _one_of(registry: Registry, current: t.Any, id: str) -> t.Any:
    """The session of this user with this id; ``None``: there is none that has not ended."""
    known = as_id(id)
    row = None if known is None else registry.records.get(known)
    if row is None or row.user_id != current.user_id or row.revoked_at is not None:
        return None
    return row


def _tell(count: int, message: str) -> ResponseReturnValue:
    return {"ended": count} if _wants_json() else _go_back(message)
