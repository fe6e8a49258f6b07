"""For the tests of an app that uses the registry."""

from __future__ import annotations

import typing as t

from flask import g
from flask.testing import FlaskClient
from flask_login import login_user

from ._compat.flask import process_response

__all__ = ["SessionRegistryClient"]


class SessionRegistryClient(FlaskClient):
    """A test client that is signed in, with a user session, from the start::

        app.test_client_class = SessionRegistryClient

        with app.test_client(user=user) as client:
            ...

    Flask-Login's own ``FlaskLoginClient`` writes a session that the registry does not know.

    :param user: who is signed in; ``None``: nobody.
    :param fresh_login: whether ``fresh_login_required`` lets the session in.
    """

    def __init__(
        self, *args: t.Any, user: t.Any = None, fresh_login: bool = True, **kwargs: t.Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if user is not None:
            self._sign_in(user, fresh=fresh_login)

    def _sign_in(self, user: t.Any, *, fresh: bool) -> None:
        app = self.application
        with app.test_request_context(environ_base=dict(self.environ_base)) as context:
            login_user(user, force=True, fresh=fresh)
            response = process_response(app, app.response_class())
            # An app context that a test holds would keep the user for other clients.
            g.pop("_login_user", None)
        if response.status_code != 200 or "_user_id" not in context.session:
            raise RuntimeError("The user could not be signed in: is it committed?")
        host, path = context.request.host.partition(":")[0], context.request.path
        self._update_cookies_from_response(host, path, response.headers.getlist("Set-Cookie"))
