"""The credential that an earlier step of a login was checked against.

It is kept in ``flask.session`` until the login: as a keyed digest, because a signed cookie is
readable. Nothing here checks a credential: the view does, and ``CheckedCredential.covers``
(``_revocation/fingerprint.py``) decides at the login whether the result still holds; if not, the
login records (``_records/*/login.py``) write a session that is dead on arrival.
"""

from __future__ import annotations

import contextlib
import hmac
import typing as t
from collections.abc import Callable, Iterator

import sqlalchemy as sa
from flask import Flask
from flask.sessions import SessionMixin

from .._app import Registry
from . import signing
from .context import ensure_context

#: The key in ``flask.session``.
CREDENTIAL_CHECK = "_credentials_checked"

_PURPOSE = "credential"


@contextlib.contextmanager
def credentials_checked(
    app: Flask, registry: Registry, session: SessionMixin, user_id: t.Any
) -> Iterator[None]:
    """Keep the credential that is stored when the block begins, unless the block raises."""
    # Before the block: if it stores another hash of the same password, only a context that already
    # exists records it.
    context = ensure_context(registry)
    fingerprint = registry.users.fingerprint_of(user_id)
    yield
    for owner, before, after in context.rehashes:
        fingerprint = after if (owner, before) == (user_id, fingerprint) else fingerprint
    newest, *_ = _digests(app, user_id, fingerprint)
    session[CREDENTIAL_CHECK] = [str(user_id), newest]


def take(app: Flask, session: SessionMixin, user: t.Any) -> Callable[[str | None], bool] | None:
    """Remove the credential check from the session, for a login of this user.

    :returns: a function that returns whether a fingerprint is that of the checked credential;
        ``None`` if no credential of this user was checked.
    """
    kept = session.pop(CREDENTIAL_CHECK, None)
    identity = sa.inspect(user).identity
    if kept is None or identity is None or kept[0] != str(identity[0]):
        return None

    def knows(fingerprint: str | None) -> bool:
        digests = _digests(app, identity[0], fingerprint)
        return any(hmac.compare_digest(digest, kept[1]) for digest in digests)

    return knows


def _digests(app: Flask, user_id: t.Any, fingerprint: str | None) -> list[str]:
    return signing.digests(app, f"{user_id}:{fingerprint}", purpose=_PURPOSE)
