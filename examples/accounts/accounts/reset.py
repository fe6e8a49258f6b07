"""Tokens that reset a forgotten password.

A token holds its user and a piece of the fingerprint of the forgotten password. So it stops working
once it was used, or when the password changed in another way.
"""

import hashlib
import hmac

from flask import current_app
from itsdangerous import BadData, URLSafeTimedSerializer

from .extensions import db
from .models import User

HOUR = 60 * 60


def make_token(user: User) -> str:
    return _serializer().dumps([user.id, _fingerprint(user)])


def find_user(token: str) -> User | None:
    """Return the user whose password the token may set. It is valid for an hour, and once."""
    try:
        user_id, fingerprint = _serializer().loads(token, max_age=HOUR)
    except BadData:
        return None
    # Of two requests with one token, the second waits here, if the database has row locks.
    user = db.session.get(User, user_id, populate_existing=True, with_for_update=True)
    if user is None or not hmac.compare_digest(_fingerprint(user), fingerprint):
        return None
    return user


def _fingerprint(user: User) -> str:
    return hashlib.sha256(user.password_hash.encode()).hexdigest()[:16]


def _serializer() -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(
        current_app.config["SECRET_KEY"],
        salt="accounts.reset",
        signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"},
    )
