"""Flask 3.0 to 3.2: contexts, the order of request functions, errors, and the test client.

Up to 3.1 a request has a context of its own, beside that of the app. From 3.2 on there is one kind
of context, which may have a request. There, an app context pushed within a request hides it, and
the methods that dispatch a request take the context as their first argument.
"""

from __future__ import annotations

import contextlib
import sys
import typing as t
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from types import FrameType

import click
import flask.globals
from flask import Flask, Response
from flask.cli import ScriptInfo
from flask.ctx import AppContext
from flask.sessions import SessionMixin
from flask.testing import FlaskClient
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Request

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: The key in ``flask.session`` that says whether the session is permanent.
PERMANENT = "_permanent"


class RequestContext(t.Protocol):
    """What every release knows about a request."""

    app: Flask
    request: Request

    @property
    def session(self) -> SessionMixin: ...


#: Returns the object behind ``flask.g``, whose attributes take no detour through a proxy.
app_globals: Callable[[], t.Any] = flask.globals.g._get_current_object

_app_contexts: ContextVar[t.Any] = flask.globals._cv_app
#: ``None`` where app contexts have the request.
_request_contexts: ContextVar[RequestContext | None] | None = getattr(
    flask.globals, "_cv_request", None
)


def request_context() -> RequestContext | None:
    """Return the context of the current request; ``None`` outside of requests.

    An app context pushed within a request is part of that request.
    """
    if _request_contexts is not None:
        return _request_contexts.get(None)
    context = _app_contexts.get(None)
    while context is not None and not context.has_request:
        # A popped context has no token; a thread or a task may run on in a copy made before that.
        before = getattr(context._cv_token, "old_value", Token.MISSING)
        context = None if before is Token.MISSING else before
    return t.cast("RequestContext | None", context)


def current_request_context() -> RequestContext:
    """Return the context of the current request. There must be one."""
    context = request_context()
    assert context is not None  # noqa: S101 -- callers have made sure
    return context


def unwrap(value: t.Any) -> t.Any:
    """Return the object behind a proxy such as ``current_user``; anything else as it is."""
    return value._get_current_object() if hasattr(value, "_get_current_object") else value


@contextlib.contextmanager
def within_request() -> Iterator[None]:
    """Point Flask's proxies to the request, within the block, if an app context hides it."""
    context = request_context()
    if _request_contexts is not None or context is None or context is _app_contexts.get(None):
        yield
        return
    token = _app_contexts.set(context)
    try:
        yield
    finally:
        _app_contexts.reset(token)


def response_to(app: Flask, error: HTTPException) -> Response:
    """Return the app's response to an HTTP error in the current request, by its error handlers."""
    return app.make_response(t.cast(t.Any, app).handle_http_exception(*_first(), error))


def set_error_handler(
    app: Flask, kind: type[HTTPException], handler: Callable[[t.Any], Response]
) -> None:
    """Register an error handler, also after the app has handled its first request.

    ``register_error_handler`` refuses that.
    """
    app.error_handler_spec[None][kind.code][kind] = handler


def handle_wherever_raised(app: Flask, kind: type[HTTPException]) -> None:
    """Make an app handle errors of this kind by its error handlers wherever they are raised.

    Flask treats an error that an error handler or an ``after_request`` function raises as an
    unhandled exception, and answers 500.
    """
    untyped: t.Any = app
    handle = untyped.handle_exception

    def handle_exception(*arguments: t.Any) -> t.Any:
        *first, error = arguments
        try:
            if not isinstance(error, kind):
                return handle(*arguments)
        except kind as raised:
            error = raised
        try:
            answer = untyped.handle_user_exception(*first, error)
        except Exception as failure:
            return handle(*first, failure)
        return untyped.finalize_request(*first, answer, from_error_handler=True)

    untyped.handle_exception = handle_exception


def surround_requests(
    app: Flask,
    *,
    begin: Callable[[str | None, dict[str, t.Any] | None], None],
    finish: Callable[[Response], Response],
    end: Callable[[BaseException | None], None],
    end_of_context: Callable[[BaseException | None], None],
) -> None:
    """Register functions that run before, or after, all others, whatever is registered later.

    Of each function in its lists of teardown functions, Flask finds out each time whether it is a
    coroutine, which takes longer than ours do. So these follow the methods that run the lists.

    :param begin: runs before all ``before_request`` functions.
    :param finish: runs after all ``after_request`` functions.
    :param end: runs after all ``teardown_request`` functions, also if one of them raises.
    :param end_of_context: the same for ``teardown_appcontext`` functions.
    """
    app.url_value_preprocessors.setdefault(None, []).insert(0, begin)
    # Flask calls these in reverse order.
    app.after_request_funcs.setdefault(None, []).insert(0, finish)
    _run_after(app, "do_teardown_request", end)
    _run_after(app, "do_teardown_appcontext", end_of_context)


def _run_after(app: Flask, name: str, function: Callable[[BaseException | None], None]) -> None:
    """Call a function after a method of the app that takes the error as its last argument."""
    method: Callable[..., None] = getattr(app, name)

    def run(*arguments: t.Any, **keywords: t.Any) -> None:
        try:
            method(*arguments, **keywords)
        finally:
            function(arguments[-1] if arguments else keywords.get("exc"))

    setattr(app, name, run)


def process_response(app: Flask, response: Response) -> Response:
    """Run the ``after_request`` functions on a response, and save the session."""
    return t.cast(Response, t.cast(t.Any, app).process_response(*_first(), response))


def _first() -> tuple[t.Any, ...]:
    return () if _request_contexts is not None else (_app_contexts.get(),)


def begins_request(context: AppContext) -> bool:
    """Return whether this app context is just being pushed for a request."""
    if _request_contexts is None:
        return bool(t.cast(t.Any, context).has_request)
    # Flask pushes it before anything else shows that.
    return _is_running(flask.ctx.RequestContext.push)


def is_of_command() -> bool:
    """Return whether the app context being pushed or popped is that of a ``flask`` command.

    Not one that the app factory pushes while it makes the app for the command.
    """
    context = click.get_current_context(silent=True)
    return context is not None and not _is_running(ScriptInfo.load_app)


def is_before_request() -> bool:
    """Return whether a ``before_request`` function is running."""
    return _is_running(Flask.preprocess_request)


def _is_running(function: t.Any) -> bool:
    frame, code = t.cast("FrameType | None", sys._getframe()), function.__code__
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


# -- the test client -----------------------------------------------------------------------------


def send_cookies(client: FlaskClient, environ: WSGIEnvironment) -> None:
    """Add the cookies of a test client to a request."""
    client._add_cookies_to_wsgi(environ)


def receive_cookies(client: FlaskClient, request: Request, response: Response) -> None:
    """Store the cookies of a response in a test client."""
    host = request.host.partition(":")[0]
    headers = response.headers.getlist("Set-Cookie")
    client._update_cookies_from_response(host, request.path, headers)
