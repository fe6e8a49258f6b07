"""The example app, with views that can be held, as several workers serve it in tests.

Hashing passwords takes almost no time. Otherwise, the requests would spend most of theirs on it and
seldom meet.
"""

from __future__ import annotations

import functools
import os
import uuid

import redis
from accounts import create_app, models
from accounts.extensions import db, sessions
from accounts.models import User
from flask import Response, request, session
from flask_login import current_user, login_required, login_user

models.generate_password_hash = functools.partial(
    models.generate_password_hash, method="pbkdf2:sha256:1"
)
app = create_app(
    {
        "WTF_CSRF_ENABLED": False,
        "SESSION_KEY_PREFIX": os.environ["TEST_SESSION_KEY_PREFIX"],
        "SESSION_REGISTRY_RECORDS": os.environ.get("TEST_RECORDS", "sql"),
        "SESSION_REGISTRY_REDIS_PREFIX": "records:" + os.environ["TEST_SESSION_KEY_PREFIX"],
        # The test of races sets it to almost nothing, so that each request writes 'last_seen_at'.
        "SESSION_REGISTRY_TOUCH_INTERVAL": float(os.environ.get("TEST_TOUCH_INTERVAL", "300")),
    }
)
# Not the server of the sessions, which might be stopped while a request is held.
server = redis.Redis.from_url(os.environ["TEST_HOLD_URL"])


def hold() -> None:
    """Report that the request is half-way, and wait until the test releases it."""
    token = request.form["token"]
    server.rpush(f"reached:{token}", 1)
    if server.blpop([f"go:{token}"], timeout=30) is None:
        raise TimeoutError


@app.after_request
def name_the_worker(response: Response) -> Response:
    response.headers["X-Worker"] = str(os.getpid())
    return response


@app.post("/users")
def add_user() -> str:
    """Create a user in one request."""
    user = User(email=request.form["email"], name="Ann")
    user.set_password(request.form["password"])
    db.session.add(user)
    db.session.commit()
    return user.email


@app.post("/note")
@login_required
def note() -> str:
    """Write to the session, and thus to the store and to 'last_seen_at'."""
    session["note"] = uuid.uuid4().hex
    return "noted"


@app.post("/end-others-and-change")
@login_required
def end_others_and_change() -> str:
    """Revoke before setting the new password, in one commit, as an app might do itself."""
    sessions.revoke_all(current_user, except_current=True)
    current_user.set_password(uuid.uuid4().hex)
    db.session.commit()
    return "changed"


@app.post("/rotate")
@login_required
def rotate() -> str:
    sessions.rotate()
    return "rotated"


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
    if "signs_in_first" in request.form:
        db.session.commit()
        login_user(user)
        db.session.rollback()
        hold()
    else:
        hold()
        db.session.commit()
        login_user(user)
    return "signed in"
