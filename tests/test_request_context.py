"""What may happen to a request is written in one place."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import flask_session_registry
from flask_session_registry._request.context import RequestContext
from flask_session_registry._request.current_session import CurrentSession

PACKAGE = Path(flask_session_registry.__file__).parent
STATES = (RequestContext, CurrentSession)
#: Attributes of the same names that belong to other objects. A revocation adds to those of the
#: session that it leaves active.
OF_OTHERS = ("registry.adoption", "tally.ended", "survivor.held")
#: What changes a list.
CHANGES = ("append", "clear", "extend", "insert", "pop", "remove")


def is_of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def written(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Every attribute that a module sets, deletes, or changes as a list."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            yield node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            changed = node.func.value
            if node.func.attr in CHANGES and isinstance(changed, ast.Attribute):
                yield changed


def kept() -> set[str]:
    """The attributes in which both classes keep the state of a request."""
    trees = [ast.parse(inspect.getsource(cls)) for cls in STATES]
    return {node.attr for tree in trees for node in written(tree) if is_of_self(node)}


def test_state_is_known() -> None:
    """All that changes in a request is among what the other test looks for."""
    assert {"current", "pending", "generation", "_stored", "is_superseded"} <= kept()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_only_its_methods_change_a_request(path: Path) -> None:
    """No module assigns an attribute of the request's context, or of its current session."""
    names = kept()
    assert [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in written(ast.parse(path.read_text()))
        if node.attr in names and not is_of_self(node) and ast.unparse(node) not in OF_OTHERS
    ] == []
