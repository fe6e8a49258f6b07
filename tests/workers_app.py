"""The example app, as the tests of several workers serve it: with views that can be held."""

from __future__ import annotations

import os

import redis
from accounts import create_app
from accounts.extensions import db
from accounts.models import User
from flask import Response, request, session
from flask_login import current_user, login_required, login_user

app = create_app(
    {"WTF_CSRF_ENABLED": False, "SESSION_KEY_PREFIX": os.environ["TEST_SESSION_KEY_PREFIX"]}
)
server = redis.Redis.from_url(os.environ["REDIS_URL"])


def hold() -> None:
    """Say that the middle is reached, and wait until the test lets go."""
    token = request.form["token"]
    server.rpush(f"reached:{token}", 1)
    if server.blpop([f"go:{token}"], timeout=30) is None:
        raise TimeoutError


@app.after_request
def name_the_worker(response: Response) -> Response:
    response.headers["X-Worker"] = str(os.getpid())
    return response


@app.post("/held")
@login_required
def held() -> str:
    email = str(current_user.email)
    db.session.rollback()
    hold()
    if "write" in request.form:
        session["note"] = "late"
    return email


@app.post("/held-login")
def held_login() -> str:
    user = User.authenticate(request.form["email"], request.form["password"])
    if user is None:
        return "wrong"
    if "commits" in request.form:
        user.name = "signed in lately"
    hold()
    db.session.commit()
    login_user(user)
    return "signed in"
