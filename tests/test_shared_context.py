"""An app context shared by requests, including what Flask-Login keeps in ``g``."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import threading
import typing as t
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, OpenerDirector, build_opener

import pytest
import servers
from conftest import SiteFactory
from flask import copy_current_request_context, g
from flask.globals import app_ctx
from flask_login import current_user, login_user, logout_user
from site_under_test import Browser, Site


def test_app_context_that_outlives_requests(site: Site, firefox: Browser, chrome: Browser) -> None:
    """14: each browser is signed in as its own user, and a visitor as none."""
    firefox.login("ann")
    chrome.login("bob")
    with site.context():
        for _ in range(2):
            assert firefox.name_shown == "ann"
            assert chrome.name_shown == "bob"
            assert site.browser("Visitor").name_shown is None


@pytest.mark.parametrize("asks_first", [True, False])
def test_request_within_a_request(
    site: Site, firefox: Browser, chrome: Browser, asks_first: bool
) -> None:
    """14: a view that sends its own app a request keeps its user, and that request has its own."""

    @site.app.get("/both")
    def both() -> list[t.Any]:
        if asks_first:
            assert current_user.name == "ann"
        return [chrome.name_shown, site.browser("Visitor").name_shown, current_user.name]

    firefox.login("ann")
    chrome.login("bob")
    assert firefox.get("/both").json == ["bob", None, "ann"]


@pytest.mark.parametrize("store", ["cookie", "files"])
@pytest.mark.parametrize("is_threaded", [True, False])
@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("event", ["logout", "login", "password", "rotation"])
def test_copy_of_a_request_that_ends_first(
    make_site: SiteFactory, store: str, is_threaded: bool, asks: bool, event: str
) -> None:
    """1, 18, 19: the request goes on, and what it has done or does is recorded."""
    site = make_site(store)

    @site.app.post("/event")
    def view() -> str:
        if event == "logout":
            logout_user()
        elif event == "login":
            login_user(site.user("bob"))
        elif event == "rotation":
            site.sessions.rotate()
        assert asks or event != "password" or current_user.name == "ann"

        @copy_current_request_context
        def work() -> bool:
            return asks and bool(current_user.is_authenticated)

        if is_threaded:
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
        else:
            work()
        if event == "password":
            current_user.password_hash = "new"
            site.db.session.commit()
        return "done"

    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    copy = firefox.copy()
    assert firefox.post("/event").text == "done"
    assert firefox.name_shown == {"logout": None, "login": "bob"}.get(event, "ann")
    assert not copy.is_signed_in
    assert chrome.is_signed_in == (event != "password")


def dispatch(site: Site) -> t.Any:
    """Dispatch the request of the current context, which Flask 3.2 expects as an argument."""
    takes_context = "ctx" in inspect.signature(type(site.app).full_dispatch_request).parameters
    arguments = [app_ctx._get_current_object()] if takes_context else []
    return site.app.full_dispatch_request(*arguments)


def test_user_of_a_test(site: Site, firefox: Browser) -> None:
    """14: a user whom a test has signed in, in a request of its own, stays so after a visit."""
    with site.app.test_request_context():
        ann = site.user("ann")
        login_user(ann)
        assert firefox.name_shown is None
        assert current_user == ann
    with site.app.test_request_context():
        login_user(site.user("ann"))
        assert dispatch(site).status_code == 404
        assert current_user.name == "ann"
    with firefox.client:
        firefox.login()
        assert current_user.name == "ann"
        assert "_login_user" in g


APP = """
from pathlib import Path
from site_under_test import Site

site = Site(Path({folder!r}), store="cookie")
app = site.app
app.app_context().push()
"""


def test_app_context_that_is_pushed_at_import(tmp_path: Path) -> None:
    """14: gunicorn's only worker, of the kind "sync", tells its visitors apart."""
    (tmp_path / "pushes.py").write_text(APP.format(folder=str(tmp_path)))
    port = servers.free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--log-level=error"]
    paths = os.pathsep.join(map(str, (tmp_path, Path(__file__).parent)))
    with subprocess.Popen([*command, "--pythonpath", paths.replace(":", ","), "pushes:app"]) as run:
        try:
            visitors = [build_opener(HTTPCookieProcessor(CookieJar())) for _ in range(3)]

            def name(visitor: OpenerDirector) -> str | None:
                with visitor.open(f"{url}/me", timeout=30) as answer:
                    return t.cast("str | None", json.load(answer)["name"])

            def answers() -> bool:
                try:
                    return name(visitors[0]) is None
                except OSError:
                    return False

            assert servers.wait_for(answers)
            for visitor, who in zip(visitors, ("ann", "bob"), strict=False):
                form = urlencode({"name": who, "password": f"hash of {who}"}).encode()
                visitor.open(f"{url}/login", form, timeout=30).close()
            for _ in range(2):
                assert [name(visitor) for visitor in visitors] == ["ann", "bob", None]
        finally:
            run.terminate()
