"""Signatures and keyed digests of values that browsers keep for us."""

from __future__ import annotations

import hashlib
import typing as t

from flask import Flask
from itsdangerous import BadSignature, Signer, URLSafeSerializer


def sign(app: Flask, value: t.Any, *, purpose: str) -> str:
    """Sign a JSON value with the app's key.

    :param purpose: a value signed for one purpose is invalid for any other.
    """
    return _serializer(app, purpose).dumps(value)


def unsign(app: Flask, signed: str, *, purpose: str) -> t.Any:
    """Return the value if signed with the app's key or an earlier one; otherwise ``None``."""
    try:
        return _serializer(app, purpose).loads(signed)
    except BadSignature:
        return None


def digests(app: Flask, value: str, *, purpose: str) -> list[str]:
    """Return digests of a value for a browser to keep: by the app's key, then by earlier ones.

    Without the key, the value can't be recognized in a digest, nor a digest be made.

    :param purpose: the same value has different digests for different purposes.
    """
    return [_digest(key, value, purpose) for key in (app.secret_key, *_earlier_keys(app))]


def _digest(key: t.Any, value: str, purpose: str) -> str:
    signer = Signer(key, salt=_salt(f"{purpose}.digest"), digest_method=hashlib.sha256)
    signature = signer.get_signature(value.encode("utf-8", "surrogatepass"))
    # 132 bits: there is little room in a cookie.
    return signature[:22].decode()


def _earlier_keys(app: Flask) -> list[t.Any]:
    return list(app.config.get("SECRET_KEY_FALLBACKS") or ())


def _salt(purpose: str) -> str:
    return f"flask-session-registry.{purpose}"


def _serializer(app: Flask, purpose: str) -> URLSafeSerializer:
    return URLSafeSerializer(
        [*_earlier_keys(app), app.secret_key],
        salt=_salt(purpose),
        signer_kwargs={"digest_method": hashlib.sha256},
    )
