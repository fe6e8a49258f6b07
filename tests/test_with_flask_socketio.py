"""Flask-SocketIO's handlers, each of which checks again who is signed in."""

from __future__ import annotations

import typing as t
from collections.abc import Callable

import pytest
from flask import session
from flask_login import current_user, login_user
from flask_socketio import SocketIO, SocketIOTestClient
from site_under_test import Browser, Site

SiteFactory = Callable[..., Site]
pytestmark = pytest.mark.table


class Chat:
    """A site with web sockets."""

    def __init__(self, site: Site, *, manage_session: bool) -> None:
        self.site = site
        self.socketio = SocketIO(site.app, manage_session=manage_session, async_mode="threading")

        @self.socketio.on("who")
        def who() -> dict[str, t.Any]:
            rejected = site.sessions.rejected
            current = site.sessions.current
            name = current_user.name if current_user.is_authenticated else None
            return {
                "name": name,
                "current": current is not None,
                "rejected": rejected,
                "cart": session.get("cart"),
            }

        @self.socketio.on("password")
        def password(new: str) -> None:
            current_user.password_hash = new
            site.db.session.commit()

        @self.socketio.on("login")
        def login() -> str:
            login_user(site.user("ann"))
            return str(current_user.name)

        @self.socketio.on("keep")
        def keep(item: str) -> None:
            session["cart"] = item

        @self.socketio.on("end others")
        def end_others() -> int:
            count = site.sessions.revoke_all(current_user, except_current=True)
            site.db.session.commit()
            return count

    def connect(self, browser: Browser) -> SocketIOTestClient:
        return self.socketio.test_client(self.site.app, flask_test_client=browser.client)


@pytest.fixture(params=[True, False], ids=["own-session", "flask-session"])
def manage_session(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=["cookie", "redis"])
def chat(request: pytest.FixtureRequest, make_site: SiteFactory, manage_session: bool) -> Chat:
    return Chat(make_site(request.param), manage_session=manage_session)


def ask(socket: SocketIOTestClient, event: str = "who", *arguments: t.Any) -> t.Any:
    return socket.emit(event, *arguments, callback=True)


NOBODY = {"name": None, "current": False, "cart": None}


def test_revocation_reaches_the_next_event(chat: Chat) -> None:
    """The next event knows, whatever opened the socket, and all three properties agree."""
    firefox = chat.site.browser("Firefox")
    firefox.login()
    firefox.post("/cart", item="tea")
    socket = chat.connect(firefox)
    for _ in range(2):
        answer = {"name": "ann", "current": True, "rejected": None, "cart": "tea"}
        assert ask(socket) == answer
    with chat.site.context():
        assert chat.site.sessions.revoke_all(chat.site.user("ann")) == 1
        chat.site.db.session.commit()
    first = ask(socket)
    assert first.pop("rejected") == "revoked"
    assert first == NOBODY
    again = ask(socket)
    assert again.pop("rejected") in ("revoked", None)
    assert again == NOBODY


def test_what_a_handler_has_kept(chat: Chat) -> None:
    """It goes with the session, whichever user signs in on the same socket afterwards."""
    firefox = chat.site.browser("Firefox")
    firefox.login()
    socket = chat.connect(firefox)
    ask(socket, "keep", "a secret")
    with chat.site.context():
        chat.site.sessions.revoke_all(chat.site.user("ann"))
        chat.site.db.session.commit()
    for _ in range(2):
        answer = ask(socket)
        assert (answer["name"], answer["cart"]) == (None, None)


def test_password_that_is_changed_elsewhere(chat: Chat) -> None:
    """The other browsers' sockets become anonymous."""
    firefox, chrome = chat.site.browser("Firefox"), chat.site.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login()
    socket = chat.connect(chrome)
    assert ask(socket)["name"] == "ann"
    firefox.post("/password", password="new")
    assert ask(socket)["name"] is None


def test_password_that_is_changed_in_a_handler(chat: Chat) -> None:
    """All are signed out, this browser too: no response can give it its new cookie."""
    firefox, chrome = chat.site.browser("Firefox"), chat.site.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login()
    ask(chat.connect(firefox), "password", "new")
    assert chrome.rejected == "password_changed"
    assert not firefox.is_signed_in
    with chat.site.context():
        assert chat.site.user("ann").password_hash == "new"


def test_login_in_a_handler(chat: Chat) -> None:
    """It ends with the handler: no response can carry a cookie, and no row is written."""
    firefox = chat.site.browser("Firefox")
    socket = chat.connect(firefox)
    assert ask(socket, "login") == "ann"
    assert ask(socket)["name"] is None
    assert not firefox.is_signed_in
    assert chat.site.rows() == []


def test_revocation_in_a_handler(chat: Chat) -> None:
    """It ends what it would end in a view, except the socket's own session."""
    firefox, chrome = chat.site.browser("Firefox"), chat.site.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login()
    socket = chat.connect(firefox)
    assert ask(socket, "end others") == 1
    assert ask(socket)["name"] == "ann"
    assert firefox.is_signed_in
    assert not chrome.is_signed_in
