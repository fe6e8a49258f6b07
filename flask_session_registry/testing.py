"""For the tests of an app that uses the registry."""

from __future__ import annotations

import contextlib
import typing as t
from collections.abc import Iterator

from flask import request, session
from flask.sessions import SessionMixin
from flask.testing import FlaskClient
from flask_login import login_user

from ._adoption import adoption
from ._app import get_registry, unwrap
from ._compat.flask import process_response
from ._request import persistence
from ._request.context import MARKER

__all__ = ["SessionRegistryClient"]


class SessionRegistryClient(FlaskClient):
    """A test client that is signed in, with a user session, from the start::

        app.test_client_class = SessionRegistryClient

        with app.test_client(user=user) as client:
            ...

    Flask-Login's own ``FlaskLoginClient`` writes a session that the registry does not know.

    It works within an app context that a test holds, too. A user whom ``session_transaction()``
    puts into the session by hand, as ``"_user_id"``, is signed in when the block ends: as by a
    login, but without its signals.

    :param user: who is signed in; ``None``: nobody.
    :param fresh_login: whether ``fresh_login_required`` lets the session in.
    """

    def __init__(
        self, *args: t.Any, user: t.Any = None, fresh_login: bool = True, **kwargs: t.Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if user is not None:
            self._sign_in(user, fresh=fresh_login)

    @contextlib.contextmanager
    def session_transaction(self, *args: t.Any, **kwargs: t.Any) -> Iterator[SessionMixin]:
        with super().session_transaction(*args, **kwargs) as opened:
            before = opened.get("_user_id")
            yield opened
            claimed = opened.get("_user_id")
            is_by_hand = claimed is not None and (claimed != before or MARKER not in opened)
            if is_by_hand:
                opened.pop(MARKER, None)
        if is_by_hand:
            self._register(claimed, *args, **kwargs)

    def _sign_in(self, user: t.Any, *, fresh: bool) -> None:
        with self._answering():
            login_user(user, force=True, fresh=fresh)

    def _register(self, claimed: t.Any, *args: t.Any, **kwargs: t.Any) -> None:
        app = self.application
        with self._answering(*args, **kwargs):
            user = adoption.load(app, claimed)
            if user is not None:
                persistence.begin_login(app, get_registry(), unwrap(user))

    @contextlib.contextmanager
    def _answering(self, *args: t.Any, **kwargs: t.Any) -> Iterator[None]:
        """A request of this client, whose answer it takes the cookies from."""
        app = self.application
        kwargs.setdefault("environ_base", dict(self.environ_base))
        context = app.test_request_context(*args, **kwargs)
        self._add_cookies_to_wsgi(context.request.environ)
        with context:
            # An app context that a test holds keeps the user of others, and would keep this one.
            persistence.set_user_aside(unwrap(request))
            try:
                yield
                response = process_response(app, app.response_class())
            finally:
                persistence.restore_user(unwrap(request))
            is_signed_in = response.status_code == 200 and "_user_id" in session
        if not is_signed_in:
            raise RuntimeError("The user could not be signed in: is it committed?")
        host, path = context.request.host.partition(":")[0], context.request.path
        self._update_cookies_from_response(host, path, response.headers.getlist("Set-Cookie"))
