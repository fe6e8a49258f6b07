"""A test client for apps that use the registry."""

from __future__ import annotations

import contextlib
import typing as t
from collections.abc import Iterator

from flask import session
from flask.sessions import SessionMixin
from flask.testing import FlaskClient
from flask_login import login_user

from ._app import get_registry
from ._compat import flask_login
from ._compat.flask import process_response, receive_cookies, send_cookies, unwrap
from ._request import auth_events
from ._request.marker import MARKER

__all__ = ["SessionRegistryClient"]


class SessionRegistryClient(FlaskClient):
    """A test client that is signed in, with a user session, from the start::

        app.test_client_class = SessionRegistryClient

        with app.test_client(user=user) as client:
            ...

    Use it instead of Flask-Login's ``FlaskLoginClient``, whose sessions are unknown to the
    registry.

    It also works within an app context that a test holds. If a test writes ``"_user_id"`` into the
    session in ``session_transaction()``, the user is signed in when the block ends: as by a login,
    but without its signals.

    :param user: the user to sign in, if any.
    :param fresh_login: whether ``fresh_login_required`` accepts the session.
    """

    def __init__(
        self, *args: t.Any, user: t.Any = None, fresh_login: bool = True, **kwargs: t.Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if user is not None:
            with self._own_request():
                login_user(user, force=True, fresh=fresh_login)

    @contextlib.contextmanager
    def session_transaction(self, *args: t.Any, **kwargs: t.Any) -> Iterator[SessionMixin]:
        with super().session_transaction(*args, **kwargs) as opened:
            before = opened.get(flask_login.USER_ID)
            yield opened
            claimed = opened.get(flask_login.USER_ID)
            is_by_hand = claimed is not None and (claimed != before or MARKER not in opened)
            if is_by_hand:
                opened.pop(MARKER, None)
        if is_by_hand:
            self._register(claimed, *args, **kwargs)

    def _register(self, claimed: t.Any, *args: t.Any, **kwargs: t.Any) -> None:
        app = self.application
        with self._own_request(*args, **kwargs):
            user = flask_login.load_user(app, claimed)
            if user is not None:
                auth_events.begin_login(app, get_registry(), unwrap(user))

    @contextlib.contextmanager
    def _own_request(self, *args: t.Any, **kwargs: t.Any) -> Iterator[None]:
        """Run the block in a request of this client, and store the cookies of its response."""
        app = self.application
        kwargs.setdefault("environ_base", dict(self.environ_base))
        context = app.test_request_context(*args, **kwargs)
        send_cookies(self, context.request.environ)
        with context:
            # An app context that a test holds may keep another user, and would keep this one.
            outer_user = flask_login.take_cached_user()
            try:
                yield
                response = process_response(app, app.response_class())
            finally:
                flask_login.replace_cached_user(outer_user)
            is_signed_in = response.status_code == 200 and flask_login.USER_ID in session
        if not is_signed_in:
            raise RuntimeError("The user could not be signed in. Commit it to the database first.")
        receive_cookies(self, context.request, response)
