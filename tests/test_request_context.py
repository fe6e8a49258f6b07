"""What may happen to a request is written in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import flask_session_registry
from flask_session_registry._request.context import RequestContext
from flask_session_registry._request.current_session import CurrentSession

PACKAGE = Path(flask_session_registry.__file__).parent
STATES = (RequestContext, CurrentSession)


def kept() -> set[str]:
    """The private attributes in which both classes keep their state."""
    names = {name for cls in STATES for name in vars(cls) if not name.startswith("__")}
    return {name for name in names | {"_began", "_pending", "_rehashes"} if name.startswith("_")}


def assigned(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Every attribute that a module sets or deletes, except those of 'self'."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Load):
            continue
        if not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            yield node


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_only_its_methods_change_a_request(path: Path) -> None:
    """No module assigns an attribute of the request's context, or of its current session."""
    written = assigned(ast.parse(path.read_text()))
    assert [f"line {node.lineno}: {node.attr}" for node in written if node.attr in kept()] == []


@pytest.mark.parametrize("cls", STATES)
def test_state_is_private(cls: type) -> None:
    """Public attributes are read-only: all that changes in a request is kept in private ones."""
    public = {name: vars(cls)[name] for name in vars(cls) if not name.startswith("_")}
    for name in public.keys() - {"id", "user"}:
        is_read_only = isinstance(public[name], property) and public[name].fset is None
        assert is_read_only or callable(public[name]), name
