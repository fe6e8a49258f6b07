"""Signing what a browser keeps for us."""

from __future__ import annotations

import hashlib
import hmac
import typing as t

from flask import Flask
from itsdangerous import BadSignature, URLSafeSerializer


def sign(app: Flask, value: t.Any, *, purpose: str) -> str:
    """Sign a value of JSON with the app's key.

    :param purpose: what is signed for one is worth nothing for another.
    """
    return _serializer(app, purpose).dumps(value)


def read(app: Flask, signed: str, *, purpose: str) -> t.Any:
    """The value, if it was signed with the app's key, or an earlier one; ``None``: it was not."""
    try:
        return _serializer(app, purpose).loads(signed)
    except BadSignature:
        return None


def digests(app: Flask, text: str, *, purpose: str) -> list[str]:
    """Keyed digests of a text, by the app's key first and then by earlier ones.

    :param purpose: a digest for one is worth nothing for another.
    """
    signer = _serializer(app, purpose).make_signer()
    keys = [signer.derive_key(key) for key in reversed(signer.secret_keys)]
    return [hmac.new(key, text.encode(), hashlib.sha256).hexdigest() for key in keys]


def _serializer(app: Flask, purpose: str) -> URLSafeSerializer:
    return URLSafeSerializer(
        [*(app.config.get("SECRET_KEY_FALLBACKS") or ()), app.secret_key],
        salt=f"flask-session-registry.{purpose}",
        signer_kwargs={"digest_method": hashlib.sha256},
    )
