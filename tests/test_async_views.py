"""Coroutine views, each run in a thread and an event loop of its own (SCENARIO 59)."""

from __future__ import annotations

import asyncio
import logging
import typing as t

import pytest
import sqlalchemy.orm as sa_orm
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from asgiref.wsgi import WsgiToAsgi
from conftest import SiteFactory
from flask import request
from flask.views import MethodView
from flask_login import current_user, fresh_login_required, login_required, login_user, logout_user
from site_under_test import Browser, Site
from test_password_change import WITHOUT_EFFECT

from flask_session_registry import session_revoked
from flask_session_registry.testing import SessionRegistryClient


def add_async_views(site: Site) -> None:
    """Add coroutine versions of the site's views, which yield control midway."""
    app = site.app

    @app.post("/async/login")
    async def async_login() -> str:
        user = site.user(request.form["name"])
        await asyncio.sleep(0)
        login_user(user, remember="remember" in request.form)
        return "signed in"

    @app.post("/async/logout")
    async def async_logout() -> str:
        await asyncio.sleep(0)
        logout_user()
        return "signed out"

    @app.get("/async/me")
    async def async_me() -> dict[str, t.Any]:
        await asyncio.sleep(0)
        name = current_user.name if current_user.is_authenticated else None
        return {"name": name, "rejected": site.sessions.rejected}

    @app.post("/async/password")
    @fresh_login_required
    @site.sessions.revoke_on_password_change
    async def async_password() -> str:
        current_user.password_hash = request.form["password"]
        await asyncio.sleep(0)
        site.db.session.commit()
        return "changed"


def name_shown(browser: Browser) -> t.Any:
    """Return the user that both kinds of views see: they must agree."""
    name = browser.get("/async/me").json["name"]
    assert browser.name_shown == name
    return name


def check_async_site(site: Site) -> None:
    """Run the main scenario with coroutines only."""
    add_async_views(site)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    for browser in (firefox, chrome):
        assert browser.post("/async/login", name="ann", remember="1").status_code == 200
        assert name_shown(browser) == "ann"
    assert [row.user_agent for row in site.rows()] == ["Firefox", "Chrome"]
    copies = [firefox.copy(), chrome.copy()]
    assert chrome.post("/async/password", password="new").text == "changed"
    assert name_shown(chrome) == "ann"
    assert [name_shown(browser) for browser in (firefox, *copies)] == [None, None, None]
    assert [row.revoked_reason for row in site.rows()] == ["password_changed", None]
    chrome.lose("session")
    assert name_shown(chrome) == "ann"
    copy = chrome.copy()
    chrome.post("/async/logout")
    assert [name_shown(chrome), name_shown(copy)] == [None, None]


def test_on_every_store(store_site: Site) -> None:
    """59: login, check, password change, "remember me" and logout work on every store."""
    check_async_site(store_site)


def test_on_every_database(database_site: Site) -> None:
    """59: login, check, password change, "remember me" and logout work on every database."""
    check_async_site(database_site)


@pytest.mark.parametrize("decorated", [False, True])
@pytest.mark.parametrize("what", WITHOUT_EFFECT)
@pytest.mark.parametrize("store", ["files", "sqlalchemy"])
def test_uncommitted_change_revokes_nothing(
    make_site: SiteFactory, store: str, what: t.Callable[[Site], None], decorated: bool
) -> None:
    """4, 5, 15, 59: a coroutine that raises, rolls back or forgets to commit revokes nothing."""
    site = make_site(store, "postgresql")
    site.app.config["PROPAGATE_EXCEPTIONS"] = False

    async def view() -> str:
        await asyncio.sleep(0)
        what(site)
        return "done"

    watched: t.Any = site.sessions.revoke_on_password_change(view) if decorated else view
    site.app.post("/change")(login_required(watched))
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login()
    entries = site.entries().keys()
    chrome.post("/change")
    assert site.entries().keys() == entries
    assert firefox.is_signed_in
    assert chrome.is_signed_in
    with site.context():
        assert site.user("ann").password_hash == "hash of ann"


@pytest.mark.parametrize("own_session", [False, True])
def test_forgotten_commit_warns(
    site: Site,
    firefox: Browser,
    caplog: pytest.LogCaptureFixture,
    own_session: bool,
) -> None:
    """15, 59: an uncommitted change is rolled back with a warning.

    That includes a change in a database session of the view's own.
    """
    add_async_views(site)
    with site.context():
        kept = sa_orm.Session(site.db.engine)

    @site.app.post("/forget")
    async def forget() -> str:
        await asyncio.sleep(0)
        if own_session:
            site.sessions.revoke_all(site.user("ann"), session=kept)
        else:
            site.sessions.revoke_all(site.user("ann"))
        return "forgotten"

    firefox.login()
    with caplog.at_level(logging.WARNING, "flask_session_registry"):
        firefox.post("/forget")
    assert "was not committed by the end of the request 'forget'" in caplog.text
    kept.commit()
    assert name_shown(firefox) == "ann"
    kept.close()


@pytest.mark.parametrize("commits", [False, True])
@pytest.mark.parametrize("rolls_back", [False, True])
def test_revocation_of_oneself(
    store_site: Site, caplog: pytest.LogCaptureFixture, commits: bool, rolls_back: bool
) -> None:
    """14, 15, 59: revoking the current session takes effect only with the coroutine's commit."""
    add_async_views(store_site)

    @store_site.app.post("/leave")
    async def leave() -> str:
        store_site.sessions.revoke_all(current_user)
        await asyncio.sleep(0)
        if rolls_back:
            store_site.db.session.rollback()
        if commits:
            store_site.db.session.commit()
        return "done"

    chrome = store_site.browser("Chrome")
    chrome.login()
    copy = chrome.copy()
    chrome.post("/leave")
    is_over = commits and not rolls_back
    expected = None if is_over else "ann"
    assert [name_shown(chrome), name_shown(copy)] == [expected, expected]
    assert ("was not committed" in caplog.text) is (not commits and not rolls_back)


def test_sync_code_within_a_coroutine(site: Site) -> None:
    """59: code that asgiref or asyncio runs in a thread for the view counts as the view's."""
    add_async_views(site)

    @site.app.post("/change/<how>")
    @login_required
    async def change(how: str) -> str:
        def work() -> None:
            current_user.password_hash = f"by {how}"
            site.db.session.commit()

        await (sync_to_async(work)() if how == "asgiref" else asyncio.to_thread(work))
        return "changed"

    chrome = site.browser("Chrome")
    chrome.login()
    for how in ("asgiref", "asyncio"):
        firefox = site.browser("Firefox")
        firefox.login()
        copy = chrome.copy()
        assert chrome.post(f"/change/{how}").text == "changed"
        assert [name_shown(browser) for browser in (chrome, firefox, copy)] == ["ann", None, None]


def test_functions_around_the_view(site: Site, firefox: Browser, chrome: Browser) -> None:
    """59: coroutines can access the user before a request and change the password after it."""
    add_async_views(site)
    seen: list[str | None] = []

    @site.app.before_request
    async def before() -> None:
        await asyncio.sleep(0)
        seen.append(current_user.name if current_user.is_authenticated else None)

    @site.app.after_request
    async def after(response: t.Any) -> t.Any:
        await asyncio.sleep(0)
        if request.args.get("change"):
            current_user.password_hash = "new"
            site.db.session.commit()
        return response

    firefox.login()
    chrome.login()
    copy = chrome.copy()
    chrome.get("/async/me?change=1")
    assert [name_shown(browser) for browser in (chrome, firefox, copy)] == ["ann", None, None]
    assert seen[2:4] == ["ann", "ann"]
    assert seen[-1] is None


def test_class_based_view(site: Site, firefox: Browser, chrome: Browser) -> None:
    """59: a 'MethodView' with coroutine methods works, decorated as a whole or per method."""

    class Password(MethodView):
        async def post(self) -> str:
            current_user.password_hash = "posted"
            site.db.session.commit()
            return "changed"

        @site.sessions.revoke_on_password_change(reason="put")
        async def put(self) -> str:
            current_user.password_hash = "put"
            site.db.session.commit()
            return "changed"

    watched = site.sessions.revoke_on_password_change(Password.as_view("password_of_class"))
    site.app.add_url_rule("/class/password", view_func=login_required(watched))
    chrome.login()
    for method in ("POST", "PUT"):
        firefox.login()
        assert chrome.open(method, "/class/password").text == "changed"
        assert [chrome.name_shown, firefox.name_shown] == ["ann", None]
    assert {row.revoked_reason for row in site.rows()} == {"password_changed", "put", None}


def test_receiver_of_a_signal(
    site: Site, firefox: Browser, chrome: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """A coroutine can receive a signal, as it can receive Flask's own."""
    told: list[str] = []

    async def receiver(app: t.Any, **arguments: t.Any) -> None:
        await asyncio.sleep(0)
        told.append(arguments["reason"])

    firefox.login()
    chrome.login()
    with session_revoked.connected_to(receiver):
        chrome.post("/password", password="new")
        assert not firefox.is_signed_in
    assert told == ["password_changed"]
    assert not caplog.records


def test_receiver_of_a_signal_sent_by_a_coroutine(
    site: Site, firefox: Browser, chrome: Browser
) -> None:
    """A coroutine receives a signal even if a loop runs in the committing thread."""
    add_async_views(site)
    told: list[str] = []

    async def receiver(app: t.Any, **arguments: t.Any) -> None:
        await asyncio.sleep(0)
        told.append(arguments["reason"])

    firefox.login()
    chrome.login()
    with session_revoked.connected_to(receiver):
        assert chrome.post("/async/password", password="new").status_code == 200
    assert told == ["password_changed"]
    assert [name_shown(chrome), name_shown(firefox)] == ["ann", None]


def test_test_client(site: Site) -> None:
    """59: a test client that starts signed in is signed in for coroutines too."""
    add_async_views(site)
    site.app.test_client_class = SessionRegistryClient
    with site.context():
        client = site.app.test_client(user=site.user("ann"))
    assert client.get("/async/me").json["name"] == "ann"
    assert client.post("/async/password", data={"password": "new"}).text == "changed"
    assert client.get("/async/me").json["name"] == "ann"


# -- on an ASGI server, all coroutines of all requests share one loop ----------------------------


async def ask_by_asgi(site: Site, browser: Browser, method: str, path: str) -> str:
    """Return the text of the response, after the browser has stored its cookies."""
    cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(b"cookie", cookies.encode()), (b"host", b"localhost")],
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1234),
    }
    server = ApplicationCommunicator(WsgiToAsgi(site.app), scope)
    await server.send_input({"type": "http.request", "body": b""})
    start = await server.receive_output(30)
    text = b""
    while (part := await server.receive_output(30))["type"] == "http.response.body":
        text += part.get("body", b"")
        if not part.get("more_body"):
            break
    await server.wait(30)
    given = [value.decode() for name, value in start["headers"] if name.lower() == b"set-cookie"]
    browser.client._update_cookies_from_response("localhost", "/", given)
    return text.decode()


def test_asgi_server(site: Site, firefox: Browser, chrome: Browser) -> None:
    """59: on an ASGI server, a password change ends the other sessions and keeps this one."""
    add_async_views(site)

    @site.app.post("/change")
    @login_required
    @site.sessions.revoke_on_password_change
    async def change() -> str:
        current_user.password_hash = "new"
        await asyncio.sleep(0)
        site.db.session.commit()
        return "changed"

    firefox.login()
    chrome.login()
    copy = chrome.copy()

    async def visit() -> None:
        assert "ann" in await ask_by_asgi(site, firefox, "GET", "/async/me")
        assert await ask_by_asgi(site, chrome, "POST", "/change") == "changed"
        for browser, is_in in ((chrome, True), (firefox, False), (copy, False)):
            answers = [await ask_by_asgi(site, browser, "GET", p) for p in ("/me", "/async/me")]
            assert ["ann" in answer for answer in answers] == [is_in, is_in]

    asyncio.run(visit())


def test_task_continues_after_the_response(
    site: Site, firefox: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """15, 59: the end of a request doesn't roll back the transaction of a task it started."""
    with site.context():
        own = sa_orm.Session(site.db.engine)
    tasks: list[asyncio.Task[None]] = []
    begun, may_go_on = asyncio.Event(), asyncio.Event()

    @site.app.post("/later")
    async def later() -> str:
        async def work() -> None:
            site.sessions.revoke_all(site.user("ann"), session=own)
            begun.set()
            await may_go_on.wait()
            own.commit()

        tasks.append(asyncio.create_task(work()))
        await begun.wait()
        return "started"

    async def visit() -> None:
        assert await ask_by_asgi(site, firefox, "POST", "/later") == "started"
        may_go_on.set()
        await tasks[0]

    firefox.login()
    copy = firefox.copy()
    asyncio.run(visit())
    own.close()
    assert "was not committed" not in caplog.text
    assert not copy.is_signed_in
