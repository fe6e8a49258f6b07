"""The views of the app that the page "Where you're signed in" redirects to."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

from flask import Flask

from .findings import Finding, error, warning

_PAGE = "flask_session_registry._web.views"


def examine(app: Flask) -> Iterator[Finding]:
    if all(blueprint.import_name != _PAGE for blueprint in app.blueprints.values()):
        return
    manager: t.Any = app.login_manager  # type: ignore[attr-defined]
    if manager.unauthorized_callback is None and not manager.blueprint_login_views:
        yield from _examine_view(app, "login_view", manager.login_view)
    if manager.needs_refresh_callback is None:
        yield from _examine_view(app, "refresh_view", manager.refresh_view)


def _examine_view(app: Flask, name: str, view: str | None) -> Iterator[Finding]:
    if view is None:
        yield warning(
            f"'login_manager.{name}' is not set, so the page of a user's sessions answers 401"
            " instead of redirecting to a form that asks for the password.",
            "Set it to the endpoint of that form's view.",
        )
    elif "/" not in view and not _answers_get(app, view):
        yield error(
            f"'login_manager.{name}' is '{view}', which is not a view that answers GET.",
            "Set it to the endpoint of the view that shows the password form.",
        )


def _answers_get(app: Flask, endpoint: str) -> bool:
    rules = (rule for rule in app.url_map.iter_rules() if rule.endpoint == endpoint)
    return any("GET" in (rule.methods or ()) for rule in rules)
