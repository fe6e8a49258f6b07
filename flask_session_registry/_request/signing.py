"""Signing what a browser keeps for us."""

from __future__ import annotations

import hashlib
import typing as t

from flask import Flask
from itsdangerous import BadSignature, Signer, URLSafeSerializer


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


def digests(app: Flask, value: str, *, purpose: str) -> list[str]:
    """What stands for a value where a browser keeps it, by the app's key and by each earlier one.

    The current one comes first. Without the key nobody can tell which value it is, nor make it.

    :param purpose: for another one the same value has other digests.
    """
    return [_digest(key, value, purpose) for key in (app.secret_key, *_earlier_keys(app))]


def _digest(key: t.Any, value: str, purpose: str) -> str:
    signer = Signer(key, salt=_salt(f"{purpose}.digest"), digest_method=hashlib.sha256)
    signature = signer.get_signature(value.encode("utf-8", "surrogatepass"))
    # 132 bits: what of these a browser can keep is little.
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
