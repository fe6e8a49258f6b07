"""The page on which a user sees where they are signed in, and ends it; in HTML and in JSON."""

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
    ServiceUnavailable,
    Unauthorized,
)
from wtforms import ValidationError

from . import clock, gate
from .installation import Installation, get_installation, unwrap
from .log import log
from .records import UNAVAILABLE, LastShown
from .shown import as_json
from .state import Current
from .texts import day, exactly, language
from .user_agents import device_of

#: How many sessions are shown at a time, and how many that have ended.
PAGE = 25
RECENT = 10

#: What a request that wants JSON is told where the password has to be given once more.
REAUTHENTICATE = "reauthentication_required"

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
        installation = get_installation()
        try:
            try:
                found = gate.current(installation)
                if installation.state.adoption is not None:
                    # Its row is written when this request ends.
                    return redirect(url_for(".index"), 303)
                current: t.Any = found and installation.records.get(found.id)
                if current is None or current.revoked_at is not None:
                    return _signs_in(installation)
                return view(installation, current, **arguments)
            except UNAVAILABLE:
                log.exception("The page of a user's sessions could not be answered.")
                installation.users.release()
                raise ServiceUnavailable from None
        except HTTPException as error:
            if error.response is not None or not _wants_json():
                raise
            return _problem(error)

    return answer


def _of_the_recently_authenticated(view: _View) -> _View:
    """The same, if the request is no forgery and the password was given not long ago.

    OWASP ASVS 5.0, 7.5.2: somebody who has got hold of an old session can't throw its owner out.
    Nothing but a POST ends anything; to all others the view shows a form.
    """

    @functools.wraps(view)
    def answer(installation: Installation, current: t.Any, **arguments: t.Any) -> t.Any:
        if request.method != "POST":
            if _wants_json():
                raise MethodNotAllowed(["POST"])
            return view(installation, current, **arguments)
        _check_token()
        age = installation.settings.reauth_age
        given = clock.as_utc(current.authenticated_at)
        if not login_fresh() or (age is not None and given <= clock.ago(age)):
            # Or the view that asks for the password would find the session fresh, and send it back.
            session["_fresh"] = False
            if _wants_json():
                raise _NotAllowed(REAUTHENTICATE)
            return current_app.login_manager.needs_refresh()  # type: ignore[attr-defined]
        return view(installation, current, **arguments)

    return _of_the_signed_in(answer)


def _signs_in(installation: Installation) -> t.Any:
    if _wants_json():
        raise _NotAllowed(gate.reason_of_refusal(installation))
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
        response.headers.setdefault("X-Frame-Options", "DENY")
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
    response.mimetype = "application/problem+json"
    return response


def _go_back(message: str) -> ResponseReturnValue:
    flash(message)
    return redirect(url_for(".index"), 303)


def _text(name: str, **values: t.Any) -> str:
    return get_installation().texts(name, **values)


def _page(name: str, **values: t.Any) -> str:
    """Render a template; all that it is given is in ``sessions_page``.

    Other names would hide those that the app's base template uses.
    """
    installation = get_installation()
    page = {
        "base_template": installation.settings.base_template,
        "csrf_field": current_app.config.get("WTF_CSRF_FIELD_NAME", "csrf_token"),
        "csrf_token": generate_csrf,
        "text": installation.texts,
        "day": day,
        "exactly": exactly,
        "language": language(),
        **values,
    }
    return render_template(f"session_registry/{name}.html", sessions_page=page)


# -- seeing them -------------------------------------------------------------------------------


class Shown(t.NamedTuple):
    """What a user may see of a session of theirs."""

    id: uuid.UUID
    is_current: bool
    name: str
    #: As of :class:`~flask_session_registry.user_agents.Device`.
    kind: str
    user_agent: str | None
    ip_address: str | None
    place: str | None
    created_at: dt.datetime
    last_seen_at: dt.datetime
    remember_until: dt.datetime | None
    ended_at: dt.datetime | None
    reason: str | None

    @property
    def json(self) -> dict[str, t.Any]:
        found = {name: as_json(value) for name, value in self._asdict().items()}
        return found | {"id": str(self.id)}


def _shown(installation: Installation, row: t.Any, *, current: t.Any = None) -> Shown:
    device, place = device_of(row.user_agent), None
    if installation.places is not None:
        place = installation.places.name(row.ip_address, language())
    until = row.remember_until
    return Shown(
        id=row.id,
        is_current=current is not None and row.id == current.id,
        name=_name_of(row),
        kind=device.kind,
        user_agent=row.user_agent,
        ip_address=row.ip_address,
        place=place,
        created_at=row.created_at,
        last_seen_at=row.last_seen_at,
        remember_until=until if until is not None and until > clock.now() else None,
        ended_at=row.revoked_at,
        reason=row.revoked_reason,
    )


def _name_of(row: t.Any) -> str:
    device = device_of(row.user_agent)
    if device.browser and device.system:
        return _text("device", browser=device.browser, system=device.system)
    return device.browser or device.system or _text("unknown_device")


@blueprint.get("/")
@_of_the_signed_in
def index(installation: Installation, current: t.Any) -> ResponseReturnValue:
    """This device, the others by when they were last seen, and what has ended of late."""
    after = _read_cursor(request.args.get("after"))
    records, expiry = installation.records, installation.expiry(unwrap(current_app))
    found = records.beside(current, expiry=expiry, after=after, limit=PAGE + 1)
    rows, older = found[:PAGE], None
    if len(found) > PAGE:
        older = url_for(".index", after=_cursor_of(rows[-1]))
    if after is None:
        rows = [current, *rows]
    active = [_shown(installation, row, current=current) for row in rows]
    ended = [_shown(installation, row) for row in records.ended(current.user_id, limit=RECENT)]
    if _wants_json():
        return {
            "sessions": [shown.json for shown in active],
            "recently_ended": [shown.json for shown in ended],
            "next": older,
            "csrf_token": generate_csrf(),
        }
    return _page("sessions", active=active, ended=ended, older=older, is_first=after is None)


def _cursor_of(row: t.Any) -> str:
    microseconds = (row.last_seen_at - clock.EPOCH) // dt.timedelta(microseconds=1)
    return f"{microseconds}-{row.id.hex}"


def _read_cursor(text: str | None) -> LastShown | None:
    if text is None:
        return None
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise BadRequest("'after' is not what 'next' has said.")
    microseconds = dt.timedelta(microseconds=int(match[1]))
    return LastShown(clock.EPOCH + microseconds, uuid.UUID(hex=match[2]))


# -- ending them -------------------------------------------------------------------------------


@blueprint.route("/<id>/revoke", methods=["GET", "POST"])
@_of_the_recently_authenticated
def revoke(installation: Installation, current: t.Any, id: str) -> ResponseReturnValue:
    """End one; somebody else's is as unknown as one that never was."""
    row = _one_of(installation, current, id)
    if request.method != "POST" and row is not None:
        return _page("confirm", question=_text("confirm_end", device=_name_of(row)))
    if row is None or not _registry().revoke(row.id, user=_user(installation)):
        if _wants_json():
            raise NotFound("There is no such session of yours that is signed in.")
        return _go_back(_text("not_there"))
    name = _name_of(row)
    installation.db_session.commit()
    return _tell(1, _text("ended", device=name))


@blueprint.route("/revoke-others", methods=["GET", "POST"])
@_of_the_recently_authenticated
def revoke_others(installation: Installation, _: t.Any) -> ResponseReturnValue:
    """End all but this one."""
    if request.method != "POST":
        return _page("confirm", question=_text("confirm_others"))
    count = _registry().revoke_all(_user(installation), except_current=True)
    installation.db_session.commit()
    return _tell(count, _text("ended_others", num=count))


@blueprint.route("/revoke-all", methods=["GET", "POST"])
@_of_the_recently_authenticated
def revoke_all(installation: Installation, _: t.Any) -> ResponseReturnValue:
    """End all, this one too."""
    if request.method != "POST":
        return _page("confirm", question=_text("confirm_all"))
    count = _registry().revoke_all(_user(installation))
    installation.db_session.commit()
    return _tell(count, _text("ended_all"))


def _registry() -> t.Any:
    return current_app.extensions["session_registry"]


def _user(installation: Installation) -> t.Any:
    """The mapped user of this request, whatever the app's user loader makes of it."""
    return t.cast(Current, installation.state.current).user


def _one_of(installation: Installation, current: t.Any, id: str) -> t.Any:
    """The session of this user with this id; ``None``: there is none that has not ended."""
    try:
        row = installation.records.get(uuid.UUID(id))
    except ValueError:
        return None
    if row is None or row.user_id != current.user_id or row.revoked_at is not None:
        return None
    return row


def _tell(count: int, message: str) -> ResponseReturnValue:
    return {"ended": count} if _wants_json() else _go_back(message)
