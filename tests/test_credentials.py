"""The fingerprint of a credential."""

from __future__ import annotations

import hashlib

import pytest

from flask_session_registry import SessionRegistryError
from flask_session_registry._revocation.fingerprint import fingerprint


def test_fingerprint_is_sha256() -> None:
    """The fingerprint is the SHA-256 of the stored password hash, as text or bytes."""
    expected = hashlib.sha256(b"scrypt:secret").hexdigest()
    assert fingerprint(("scrypt:secret",)) == fingerprint((b"scrypt:secret",)) == expected


def test_fingerprints_differ() -> None:
    """None, empty values, numbers and all splits of the same text have different fingerprints."""
    values = [(None,), ("",), (0,), (1.5,), ("ab", ""), ("a", "b"), ("", "ab"), ("ab", None)]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint(()) is None


def test_value_without_a_stable_text() -> None:
    """An object whose text may differ between processes is refused."""
    with pytest.raises(SessionRegistryError, match="of type 'object', which has no fingerprint"):
        fingerprint((object(),))
