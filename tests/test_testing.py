"""The test client for apps that use the registry."""

from __future__ import annotations

import pytest
from flask import Flask
from flask_login import FlaskLoginClient
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
    """The cookies are those of the app's own host."""
    site.app.config.update(SERVER_NAME=name, SESSION_COOKIE_PATH="/")
    site.app.test_client_class = SessionRegistryClient
    with site.context():
        client = site.app.test_client(user=site.user("ann"))
    assert client.get("/me").json["name"] == "ann"


def test_app_context_that_a_test_holds(site: Site) -> None:
    """Another client is not signed in thereby."""
    site.app.test_client_class = SessionRegistryClient
    with site.context():
        site.app.test_client(user=site.user("ann"))
        assert site.app.test_client().get("/me").json["name"] is None


def test_client_without_a_user(site: Site) -> None:
    """Nobody is signed in."""
    site.app.test_client_class = SessionRegistryClient
    assert site.app.test_client().get("/me").json["name"] is None


@pytest.mark.parametrize("fresh", [True, False])
def test_freshness(site: Site, fresh: bool) -> None:
    """'fresh_login' as with Flask-Login's own client."""
    site.app.test_client_class = SessionRegistryClient
    with site.context():
        client = site.app.test_client(user=site.user("ann"), fresh_login=fresh)
    with client.session_transaction() as session:
        assert session["_fresh"] is fresh


def test_client_with_a_user_who_is_not_committed(site: Site) -> None:
    """Said in a sentence, rather than by a test that fails for no visible reason."""
    site.app.test_client_class = SessionRegistryClient
    with site.context():
        user = site.User(name="eve", password_hash="x")
        site.db.session.add(user)
        with pytest.raises(RuntimeError, match="is it committed"):
            site.app.test_client(user=user)


def test_client_of_flask_login(site: Site) -> None:
    """Flask-Login's own client signs in nobody, as its session never had a row."""
    app: Flask = site.app
    app.test_client_class = FlaskLoginClient
    with site.context():
        client = app.test_client(user=site.user("ann"))
    answer = client.get("/me").json
    assert answer == {"name": None, "rejected": "unregistered"}
