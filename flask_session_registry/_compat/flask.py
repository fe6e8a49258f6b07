"""Flask 3.0 to 3.2, whose contexts are not the same.

Up to 3.1 a request has a context of its own, beside that of the app. From 3.2 on there is one kind
of context, which may have a request; an app context that is pushed within a request hides it, and
what dispatches a request takes the context as its first argument.
"""

from __future__ import annotations

import contextlib
import sys
import typing as t
from collections.abc import Iterator
from contextvars import ContextVar, Token
from types import FrameType

import click
import flask.globals
from flask import Flask, Response
from flask.cli import ScriptInfo
from flask.ctx import AppContext
from flask.sessions import SessionMixin
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Request


class RequestContext(t.Protocol):
    """What every release knows of a request."""

    app: Flask
    request: Request

    @property
    def session(self) -> SessionMixin: ...


_app_contexts: ContextVar[t.Any] = flask.globals._cv_app
#: ``None``: app contexts have the request.
_request_contexts: ContextVar[t.Any] | None = getattr(flask.globals, "_cv_request", None)


def request_context() -> RequestContext | None:
    """The context of the request that is under way here, or around here; ``None``: there is none.

    An app context that was pushed within a request is part of it.
    """
    if _request_contexts is not None:
        return t.cast("RequestContext | None", _request_contexts.get(None))
    context = _app_contexts.get(None)
    while context is not None and not context.has_request:
        # It has none if it was popped, and a thread or a task goes on in a copy of that time.
        before = getattr(context._cv_token, "old_value", Token.MISSING)
        context = None if before is Token.MISSING else before
    return t.cast("RequestContext | None", context)


@contextlib.contextmanager
def within_request() -> Iterator[None]:
    """Within it, Flask's proxies are those of the request, if an app context hides it."""
    context = request_context()
    if _request_contexts is not None or context is None or context is _app_contexts.get(None):
        yield
        return
    token = _app_contexts.set(context)
    try:
        yield
    finally:
        _app_contexts.reset(token)


def answer_to(app: Flask, error: HTTPException) -> Response:
    """The answer of an app to an HTTP error in the current request, by its own error handler."""
    return app.make_response(t.cast(t.Any, app).handle_http_exception(*_first(), error))


def answer_wherever_raised(app: Flask, kind: type[HTTPException]) -> None:
    """Let an app answer errors of this kind by its own error handler wherever they are raised.

    Flask treats what an error handler or an ``after_request`` function raises as an unhandled
    exception, and answers 500.
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


def process_response(app: Flask, response: Response) -> Response:
    """Do to a response what is done to each at the end of a request, and save the session."""
    return t.cast(Response, t.cast(t.Any, app).process_response(*_first(), response))


def _first() -> tuple[t.Any, ...]:
    return () if _request_contexts is not None else (_app_contexts.get(),)


def begins_request(context: AppContext) -> bool:
    """Whether an app context is just being pushed for a request."""
    if _request_contexts is None:
        return bool(t.cast(t.Any, context).has_request)
    # Flask pushes it before there is anything else to tell by.
    return _is_running(flask.ctx.RequestContext.push)


def is_of_command() -> bool:
    """Whether the app context that is just being pushed, or popped, is that of a ``flask`` command.

    And not one that the app pushes while it is made for the command.
    """
    context = click.get_current_context(silent=True)
    return context is not None and not _is_running(ScriptInfo.load_app)


def is_before_request() -> bool:
    """Whether a function runs that the app calls before each request, and no view yet."""
    return _is_running(Flask.preprocess_request)


def _is_running(function: t.Any) -> bool:
    frame, code = t.cast("FrameType | None", sys._getframe()), function.__code__
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None
