"""The package shows what is public by its names, and keeps its modules short."""

from __future__ import annotations

from pathlib import Path

import pytest

import flask_session_registry

ROOT = Path(flask_session_registry.__file__).parent

#: What an app may import. Everything else says by an underscore that it is private.
PUBLIC = {"__init__", "admin", "errors", "extension", "models", "signals", "testing"}

LINES = 400


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def test_everything_else_is_private() -> None:
    """Only the documented modules have public names."""
    found = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert {name for name in found if name == "__init__" or not name.startswith("_")} == PUBLIC


def test_public_names_are_there() -> None:
    """``__all__`` is the table of contents of the reference, in order, without a gap."""
    names = flask_session_registry.__all__
    assert names == sorted(names)
    assert all(hasattr(flask_session_registry, name) for name in names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_is_short_and_says_what_it_does(path: Path) -> None:
    """A module fits into a reader's head, and begins with what it is responsible for."""
    text = path.read_text()
    assert len(text.splitlines()) <= LINES
    assert text.startswith('"""')
