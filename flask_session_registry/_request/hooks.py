"""The functions that the registry runs around each request of an app."""

from __future__ import annotations

import typing as t

from flask import Flask, Response
from werkzeug.exceptions import Conflict

from .._app import Registry
from .._compat import flask_login
from .._compat.flask import (
    app_globals,
    current_request_context,
    response_to,
    set_error_handler,
    surround_requests,
)
from .._diagnosis import check_records
from .._log import log
from ..errors import StaleRequestError
from . import check as session_check
from . import context, deferred, persistence, refusal
from .sync import sync_current


def follow_requests(app: Flask, registry: Registry) -> None:
    """Take part in each request of an app."""

    def begin(_: str | None, __: dict[str, t.Any] | None) -> None:
        registry.setup.check(app)
        found = current_request_context()
        context.begin_request(registry, found, flask_login.take_cached_user())
        if not registry.tables_were_checked and app.debug:
            _check_tables(registry)

    def finish(response: Response) -> Response:
        found = current_request_context()
        state = context.find_context(registry, found.request)
        if state is not None:
            response = persistence.finish(app, registry, state, found.session, response)
        refusal.note_answer(found.request)
        return response

    def end(_: BaseException | None) -> None:
        beginning = context.end_request(registry, current_request_context())
        if beginning is not None:
            # A request leaves the app context as it has found it.
            flask_login.replace_cached_user(beginning.outer_user)

    def run_deferred(error: BaseException | None) -> None:
        kept = vars(app_globals())
        deferred.run(app, kept)
        if error is None:
            registry.setup.check_popped_context(app, kept)

    surround_requests(app, begin=begin, finish=finish, end=end, end_of_context=run_deferred)


def _check_tables(registry: Registry) -> None:
    """Tell a developer at once if the table is missing, rather than at the first login.

    Once in a process, in debug mode only: elsewhere a request that doesn't ask for the user neither
    uses the database, nor waits for one that is down.
    """
    if not registry.users.is_in_transaction:
        registry.tables_were_checked = True
        diagnosis = check_records(registry)
        if diagnosis is not None:
            log.error("%s", diagnosis)


def answer_stale_changes(app: Flask, registry: Registry) -> None:
    """Answer a refused password change as the app answers conflicts (409)."""

    def refuse(error: StaleRequestError) -> Response:
        # Otherwise the error page could not use the database.
        registry.users.roll_back()
        current = session_check.current(registry)
        if current is not None:
            # If it was changed in this very browser, the response must not bring its old cookie
            # back.
            sync_current(registry, [current.user_id])
        return response_to(app, Conflict(error.description))

    set_error_handler(app, StaleRequestError, refuse)
