"""An app context that is pushed within a request, on this Flask and on the next one.

Flask 3.2 merges its two contexts: an app context pushed within a request hides the request, and
methods that dispatch a request take the context as their first argument. On an earlier Flask, both
are imitated. To run the suite on the real one, see the lane "upstream" in ``run.py``.
"""

from __future__ import annotations

import contextvars
import typing as t
from collections.abc import Callable
from contextvars import ContextVar, Token

import flask.globals
import pytest
from flask import Flask, has_request_context
from flask.ctx import AppContext
from flask_login import current_user, login_required
from site_under_test import Browser, Site

from flask_session_registry._compat import flask as compat

IS_MERGED = not hasattr(flask.globals, "_cv_request")


class Contexts:
    """The contents of Flask 3.2's single context variable. Setting it sets both of this Flask's."""

    def __init__(self) -> None:
        self.of_apps: ContextVar[t.Any] = flask.globals._cv_app
        self.of_requests: ContextVar[t.Any] = getattr(flask.globals, "_cv_request", self.of_apps)

    def get(self, default: t.Any = None) -> t.Any:
        return self.of_requests.get(None) or self.of_apps.get(default)

    def set(self, context: t.Any) -> t.Any:
        return self.of_requests.set(context), self.of_apps.set(context.app_context)

    def reset(self, tokens: t.Any) -> None:
        self.of_requests.reset(tokens[0])
        self.of_apps.reset(tokens[1])


def imitate(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Imitate the next Flask. Return the list of methods that were given the context."""
    contexts, given = Contexts(), list[str]()
    push_request, push, pop = flask.ctx.RequestContext.push, AppContext.push, AppContext.pop

    def push_with_request(self: t.Any) -> None:
        self.has_request, self._cv_token = True, None
        push_request(self)
        self.app_context = flask.globals._cv_app.get()

    def push_over_request(self: t.Any) -> None:
        outer = contexts.of_requests.get(None)
        self.has_request, self.hides = False, contexts.of_requests.set(None)
        self._cv_token = _Token(outer)
        push(self)

    def pop_over_request(self: t.Any, *exc: t.Any) -> None:
        pop(self, *exc)
        contexts.of_requests.reset(self.hides)

    monkeypatch.setattr(flask.ctx.RequestContext, "push", push_with_request)
    monkeypatch.setattr(AppContext, "push", push_over_request)
    monkeypatch.setattr(AppContext, "pop", pop_over_request)
    monkeypatch.setattr(compat, "_app_contexts", contexts)
    monkeypatch.setattr(compat, "_request_contexts", None)
    for name in ("handle_http_exception", "process_response"):
        method = getattr(Flask, name)

        def takes_context(
            self: Flask, *args: t.Any, _of: t.Any = method, _name: str = name
        ) -> t.Any:
            if len(args) == 2:
                assert args[0].has_request
                given.append(_name)
            return _of(self, args[-1])

        monkeypatch.setattr(Flask, name, takes_context)
    return given


class _Token:
    def __init__(self, outer: t.Any) -> None:
        self.old_value = Token.MISSING if outer is None else outer


@pytest.fixture(params=["this", "next"])
def given(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str] | None:
    """The methods that were given a context on the next Flask. ``None`` on this one."""
    if request.param == "next" and not IS_MERGED:
        return imitate(monkeypatch)
    return None


@pytest.fixture
def site(given: list[str] | None, make_site: Callable[..., Site]) -> Site:
    """Return a site with a view that changes the password within an app context of its own."""
    site = make_site()

    @site.app.post("/nested")
    @login_required
    def nested() -> dict[str, t.Any]:
        key = current_user.id
        with site.app.app_context():
            hides = not has_request_context()
            user = site.db.session.get(site.User, key)
            user.password_hash = "new"
            site.db.session.commit()
        return {"hides": hides, "name": current_user.name}

    @site.app.post("/unasked")
    def unasked() -> dict[str, t.Any]:
        with site.app.app_context():
            user = site.user("ann")
            count = site.sessions.revoke_all(user, except_current=True)
            site.db.session.commit()
            current = site.sessions.current
            return {
                "count": count,
                "current": current and str(current.id),
                "rejected": site.sessions.rejected,
            }

    return site


def test_password_change(site: Site, given: list[str] | None, firefox: Browser) -> None:
    """The browser that makes it stays signed in, and no other does."""
    chrome = site.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login(remember="1")
    copy = firefox.copy()
    answer = firefox.post("/nested").json
    assert answer == {"hides": IS_MERGED or given is not None, "name": "ann"}
    assert firefox.is_signed_in
    firefox.lose("session")
    assert firefox.is_signed_in
    assert not copy.is_signed_in
    assert not chrome.is_signed_in
    assert chrome.rejected == "password_changed"


def test_current_session(site: Site, firefox: Browser, chrome: Browser) -> None:
    """It is known there, even if the user hasn't been loaded before."""
    firefox.login()
    chrome.login()
    assert firefox.post("/unasked").json == {
        "count": 1,
        "current": str(site.rows()[0].id),
        "rejected": None,
    }
    assert firefox.is_signed_in
    assert not chrome.is_signed_in
    assert chrome.post("/unasked").json == {"count": 1, "current": None, "rejected": "revoked"}
    assert not firefox.is_signed_in


def test_rotation_and_checked_credentials(site: Site, firefox: Browser) -> None:
    """Both belong to the request, wherever they are called."""

    @site.app.post("/rotate")
    def rotate() -> str:
        assert current_user.is_authenticated
        with site.app.app_context():
            site.sessions.rotate()
            with site.sessions.credentials_checked(1):
                pass
        return "rotated"

    firefox.login()
    copy = firefox.copy()
    assert firefox.post("/rotate").text == "rotated"
    assert firefox.is_signed_in
    assert not copy.is_signed_in
    with firefox.client.session_transaction() as opened:
        assert "_credentials_checked" in opened


def test_thread_that_outlives_its_context(given: list[str] | None, make_site: t.Any) -> None:
    """Its later work belongs to no request, and raises no error."""
    site = make_site()
    with site.context():
        copied = contextvars.copy_context()
    with site.context():
        assert copied.run(compat.request_context) is None


def test_refused_login(
    given: list[str] | None, make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The app's own page for 403 is shown, not a 500."""
    limits = {"SESSION_REGISTRY_MAX_SESSIONS": 1, "SESSION_REGISTRY_MAX_SESSIONS_ACTION": "reject"}
    site = make_site(**limits)

    @site.app.errorhandler(403)
    def too_many(error: t.Any) -> t.Any:
        return f"own page: {error.description}", 403

    assert site.browser("Firefox").login().status_code == 200
    answer = site.browser("Chrome").login()
    assert answer.status_code == 403
    assert answer.text.startswith("own page: You are signed in on too many devices.")
    assert given is None or given == ["handle_http_exception"]


def test_request_within_a_request_of_another_app(
    given: list[str] | None, make_site: Callable[..., Site]
) -> None:
    """The session of one app isn't visible to another app."""
    one, other = make_site("cookie"), make_site("cookie")

    @one.app.get("/other")
    def ask() -> dict[str, t.Any]:
        with other.app.app_context():
            return {"current": other.sessions.current, "rejected": other.sessions.rejected}

    firefox = one.browser("Firefox")
    firefox.login()
    assert firefox.get("/other").json == {"current": None, "rejected": None}
    assert firefox.is_signed_in


def test_context_that_begins_a_request(
    given: list[str] | None, make_site: Callable[..., Site]
) -> None:
    """An app context pushed for a request is distinguished from others."""
    site, found = make_site(), list[bool]()

    def note(*_: t.Any, **__: t.Any) -> None:
        found.append(compat.begins_request(flask.globals.app_ctx._get_current_object()))

    with flask.appcontext_pushed.connected_to(note, site.app):
        site.browser("Firefox").get("/me")
        with site.context():
            pass
    assert found == ([False, False] if given is not None else [True, False])


def test_client(site: Site, given: list[str] | None) -> None:
    """The client for an app's own tests works."""
    from flask_session_registry.testing import SessionRegistryClient

    site.app.test_client_class = SessionRegistryClient
    with site.context():
        client = site.app.test_client(user=site.user("ann"))
    assert client.get("/me").json["name"] == "ann"
    assert given is None or given == ["process_response"]
