"""Signing what a browser keeps for us."""

from __future__ import annotations

import hashlib
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


def _serializer(app: Flask, purpose: str) -> URLSafeSerializer:
    return URLSafeSerializer(
        [*(app.config.get("SECRET_KEY_FALLBACKS") or ()), app.secret_key],
        salt=f"flask-session-registry.{purpose}",
        signer_kwargs={"digest_method": hashlib.sha256},
    )
