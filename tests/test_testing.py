"""The test client for apps that use the registry."""

from __future__ import annotations

import logging
import typing as t

import pytest
from conftest import SiteFactory
from flask import Flask
from flask_login import FlaskLoginClient, current_user, login_user
from site_under_test import Site

from flask_session_registry.testing import SessionRegistryClient


def test_client_is_signed_in(store_site: Site) -> None:
    """The user is signed in with a user session, which a revocation ends."""
    app = store_site.app
    app.test_client_class = SessionRegistryClient
    with store_site.context():
        user = store_site.user("ann")
        client = app.test_client(user=user)
    assert client.get("/me").json["name"] == "ann"
    assert len(store_site.rows()) == 1
    with store_site.context():
        assert store_site.sessions.revoke_all(store_site.user("ann")) == 1
        store_site.db.session.commit()
    assert client.get("/me").json["name"] is None


@pytest.mark.parametrize("name", ["example.com", "example.com:8443"])
def test_server_name(site: Site, name: str) -> None:
    """The cookies belong to the app's own host."""
    site.app.config.update(SERVER_NAME=name, SESSION_COOKIE_PATH="/")
    site.app.test_client_class = SessionRegistryClient
    with site.context():
        client = site.app.test_client(user=site.user("ann"))
    assert client.get("/me").json["name"] == "ann"


def test_app_context_that_a_test_holds(site: Site) -> None:
    """It doesn't sign in another client."""
    site.app.test_client_class = SessionRegistryClient
    with site.context():
        site.app.test_client(user=site.user("ann"))
        assert site.app.test_client().get("/me").json["name"] is None


def test_client_without_a_user(site: Site) -> None:
    """It is anonymous."""
    site.app.test_client_class = SessionRegistryClient
    assert site.app.test_client().get("/me").json["name"] is None


@pytest.mark.parametrize("fresh", [True, False])
def test_freshness(site: Site, fresh: bool) -> None:
    """'fresh_login' works as with Flask-Login's own client."""
    site.app.test_client_class = SessionRegistryClient
    with site.context():
        client = site.app.test_client(user=site.user("ann"), fresh_login=fresh)
    with client.session_transaction() as session:
        assert session["_fresh"] is fresh


def test_client_with_a_user_who_is_not_committed(site: Site) -> None:
    """An error says so, instead of a test that fails for no visible reason."""
    site.app.test_client_class = SessionRegistryClient
    with site.context():
        user = site.User(name="eve", password_hash="x")
        site.db.session.add(user)
        with pytest.raises(RuntimeError, match="Commit it"):
            site.app.test_client(user=user)


@pytest.mark.parametrize("mode", ["testing", "debug", "neither"])
def test_client_of_flask_login(site: Site, caplog: pytest.LogCaptureFixture, mode: str) -> None:
    """Flask-Login's client signs in no one, since its session has no row. A warning says why."""
    app: Flask = site.app
    app.testing, app.debug = mode == "testing", mode == "debug"
    app.test_client_class = FlaskLoginClient
    with site.context():
        client = app.test_client(user=site.user("ann"))
    for _ in range(2):
        answer = client.get("/me").json
        assert answer == {"name": None, "rejected": "unregistered"}
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == (0 if mode == "neither" else 1)
    assert all("'SessionRegistryClient'" in record.getMessage() for record in told)


def test_other_user_in_a_session(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A test that overwrites the user in a session doesn't sign in the other. A warning says so."""
    site.app.testing = True
    firefox = site.browser("Firefox")
    firefox.login("ann")
    forge(firefox.client, "2")
    assert firefox.rejected == "unknown"
    assert "'SessionRegistryClient'" in caplog.text


def forge(client: t.Any, user_id: t.Any, **more: t.Any) -> None:
    """Write a user into the session, as tests do that know how Flask-Login works."""
    with client.session_transaction() as session:
        session["_user_id"] = user_id
        session["_fresh"] = True
        session.update(more)


@pytest.mark.parametrize(("store", "convert"), [("cookie", int), ("files", str), ("redis", str)])
def test_session_that_is_written_by_hand(
    make_site: SiteFactory, store: str, convert: t.Any
) -> None:
    """It becomes a session with a login, and keeps all of its other data."""
    store_site = make_site(store)
    app = store_site.app
    app.test_client_class = SessionRegistryClient
    client = app.test_client()
    forge(client, convert(1), cart="tea")
    with client.session_transaction() as session:
        assert session["_fresh"]
    for _ in range(2):
        assert client.get("/me").json["name"] == "ann"
    assert client.get("/cart").json == {"cart": "tea"}
    (row,) = store_site.rows()
    with client.session_transaction() as session:
        session["cart"] = "coffee"
    assert client.get("/cart").json == {"cart": "coffee"}
    assert [one.id for one in store_site.rows()] == [row.id]
    forge(client, convert(2))
    assert client.get("/me").json["name"] == "bob"
    with store_site.context():
        assert store_site.sessions.revoke_all(store_site.user("bob")) == 1
        store_site.db.session.commit()
    assert client.get("/me").json["name"] is None


def test_session_of_an_unknown_user_that_is_written_by_hand(site: Site) -> None:
    """No user has this key, so no one is signed in."""
    site.app.test_client_class = SessionRegistryClient
    client = site.app.test_client()
    forge(client, "4711")
    assert client.get("/me").json["name"] is None
    with client.session_transaction() as session:
        session.clear()
    assert client.get("/me").json["name"] is None


def test_session_that_is_written_by_hand_in_an_app_context(site: Site) -> None:
    """With a context held by a fixture, each client, and the test itself, keeps its own user."""
    site.app.test_client_class = SessionRegistryClient
    with site.app.test_request_context():
        login_user(site.user("bob"))
        ann, bob, nobody = (site.app.test_client() for _ in range(3))
        forge(ann, "1")
        forge(bob, "2")
        for _ in range(2):
            assert ann.get("/me").json["name"] == "ann"
            assert bob.get("/me").json["name"] == "bob"
            assert nobody.get("/me").json["name"] is None
        carol = site.app.test_client(user=site.user("ann"))
        assert carol.get("/me").json["name"] == "ann"
        assert current_user.name == "bob"


def test_login_that_fails_in_an_app_context(site: Site) -> None:
    """The test's own user is still signed in."""
    site.app.test_client_class = SessionRegistryClient
    with site.app.test_request_context():
        login_user(site.user("bob"))
        with pytest.raises(AttributeError):
            site.app.test_client(user=object())
        assert current_user.name == "bob"
