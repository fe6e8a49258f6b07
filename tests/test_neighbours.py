"""Two apps on one host, whose "remember me" cookies have the same name."""

from __future__ import annotations

import typing as t

import pytest
from conftest import SiteFactory
from flask import Flask
from flask_login import LoginManager, UserMixin, current_user, login_user
from site_under_test import Site
from test_remember import PAIR
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

from flask_session_registry import session_rejected


class Anybody(UserMixin):
    def __init__(self, id: str) -> None:
        self.id = id


def flask_login_alone() -> Flask:
    """Return an app without the registry, in which any user may sign in."""
    app = Flask("neighbour")
    app.config.update(SECRET_KEY="the neighbour's", SESSION_COOKIE_NAME="neighbour")
    LoginManager(app).user_loader(Anybody)

    @app.post("/login")
    def login() -> str:
        login_user(Anybody("1"), remember=True)
        return "signed in"

    @app.get("/me")
    def me() -> dict[str, t.Any]:
        return {"name": current_user.get_id()}

    return app


class Host:
    """A browser that visits a host with two apps: ours at ``/a``, the neighbour at ``/b``."""

    def __init__(self, ours: Flask, neighbour: Flask) -> None:
        self.client = Client(DispatcherMiddleware(ours.wsgi_app, {"/b": neighbour.wsgi_app}))

    def get(self, path: str) -> t.Any:
        return t.cast(t.Any, self.client.get(path).json)

    def name(self, app: str) -> str | None:
        return t.cast("str | None", self.get(f"{app}/me")["name"])

    def login(self, app: str, **form: str) -> None:
        form = {"name": "ann", "password": "hash of ann", **form}
        assert self.client.post(f"{app}/login", data=form).status_code == 200

    def cookies(self) -> dict[str, str]:
        found = (self.client.get_cookie(name) for name in PAIR)
        return {cookie.key: cookie.value for cookie in found if cookie is not None}


OURS, NEIGHBOUR = "", "/b"


@pytest.fixture(params=["Flask-Login alone", "the registry"])
def neighbour(request: pytest.FixtureRequest, make_site: SiteFactory) -> Flask:
    if request.param == "Flask-Login alone":
        return flask_login_alone()
    site = make_site("cookie", SECRET_KEY="the neighbour's", SESSION_COOKIE_NAME="neighbour")
    return site.app


@pytest.fixture
def host(site: Site, neighbour: Flask) -> Host:
    return Host(site.app, neighbour)


def test_visit_of_a_user_whom_the_neighbour_remembers(host: Host, neighbour: Flask) -> None:
    """17: our response leaves the neighbour's cookie, and the neighbour still knows the browser."""
    rejected: list[t.Any] = []
    host.login(NEIGHBOUR, remember="1")
    cookies = host.cookies()

    def note(_: Flask, **why: t.Any) -> None:
        rejected.append(why)

    session_rejected.connect(note)
    host.client.post("/cart", data={"item": "book"})
    assert host.name(OURS) is None
    # Nothing of ours is considered ended because of it, either.
    assert host.get("/cart") == {"cart": "book"}
    assert host.get("/me")["rejected"] is None
    assert rejected == []
    assert host.cookies() == cookies
    host.client.delete_cookie("neighbour")
    assert host.name(NEIGHBOUR) is not None


@pytest.mark.parametrize("way", ["login", "logout", "revoked", "gone"])
def test_our_session_beside_the_neighbours_cookie(site: Site, host: Host, way: str) -> None:
    """17: logins, logouts and ended sessions of ours don't touch it."""
    host.login(OURS, name="bob", password="hash of bob")
    host.login(NEIGHBOUR, remember="1")
    cookies = host.cookies()
    if way == "login":
        host.login(OURS)
    elif way == "logout":
        assert host.name(OURS) == "bob"
        host.client.post("/logout")
    else:
        with site.context():
            site.sessions.revoke_all(site.user("bob"))
            site.db.session.commit()
    if way == "gone":
        site.forget_all()
    assert host.name(OURS) == ("ann" if way == "login" else None)
    assert host.cookies() == cookies


def test_neighbour_that_has_overwritten_our_cookie(site: Site, host: Host) -> None:
    """17: a new id renews both of our cookies, except the one the neighbour has overwritten."""
    host.login(OURS, remember="1")
    host.login(NEIGHBOUR, remember="1")
    theirs = host.cookies()["remember_token"]
    assert host.client.post("/password", data={"password": "new"}).status_code == 200
    assert host.name(OURS) == "ann"
    assert host.cookies()["remember_token"] == theirs


def test_visit_to_the_neighbour_of_a_user_whom_we_remember(site: Site, host: Host) -> None:
    """17: conversely, our remembered login survives a visit to the neighbour."""
    host.login(OURS, remember="1")
    assert host.name(NEIGHBOUR) is None
    host.client.delete_cookie("session")
    assert host.name(OURS) == "ann"


def test_remember_cookie_of_an_earlier_key(site: Site) -> None:
    """46: it is ours, so it is refused, as Flask-Login does, and cleared."""
    firefox = site.browser("Firefox")
    firefox.login(remember="1")
    site.app.config.update(SECRET_KEY="new", SECRET_KEY_FALLBACKS=["only for tests"])
    firefox.lose("session")
    assert not firefox.is_signed_in
    assert firefox.cookies == {}
