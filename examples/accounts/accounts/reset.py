"""Does this link reset a password, and whose?

It holds who it is for and a piece of the fingerprint of the password that was forgotten. So it
stops working when it has been used, or the password changed in another way.
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
    """The user whose password the token may set; it is good for an hour, and once."""
    try:
        user_id, fingerprint = _serializer().loads(token, max_age=HOUR)
    except BadData:
        return None
    # Of two requests with one token the second waits here, where the database has such locks.
    user = db.session.get(User, user_id, populate_existing=True, with_for_update=True)
    if user is None or not hmac.compare_digest(_fingerprint(user), fingerprint):
        return None
    return user


def _fingerprint(user: User) -> str:
    return hashlib.sha256(user.password_hash.encode()).hexdigest()[:16]


def _serializer() -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(
        current_app.secret_key,
        salt="accounts.reset",
        signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"},
    )
