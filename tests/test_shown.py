"""What is stored and shown about a browser (SCENARIOS 52 to 55)."""

from __future__ import annotations

import json
import logging
import typing as t
import uuid

import pytest
from conftest import SiteFactory
from flask import jsonify
from flask_login import current_user
from site_under_test import Browser, Site
from werkzeug.middleware.proxy_fix import ProxyFix


def test_forwarded_for_changes_nothing(site: Site, firefox: Browser) -> None:
    """52: without ProxyFix, the header is ignored: any client could send it."""
    headers = {"X-Forwarded-For": "203.0.113.9"}
    form = {"name": "ann", "password": "hash of ann"}
    firefox.open("POST", "/login", data=form, headers=headers)
    assert site.rows()[0].ip_address == "127.0.0.1"
    site.app.wsgi_app = ProxyFix(site.app.wsgi_app)
    firefox.open("POST", "/login", data=form, headers=headers)
    assert site.rows()[1].ip_address == "203.0.113.9"


ADDRESSES = {
    "": None,
    "unix:": None,
    "10.0.0.1:8080": "10.0.0.1",
    "[2001:db8::1]": "2001:db8::1",
    "[2001:DB8::1]:443": "2001:db8::1",
    "[::ffff:192.0.2.1]:443": "192.0.2.1",
    "::ffff:192.0.2.1:443": None,
    "fe80::1%eth0": "fe80::1",
    "[fe80::1%eth0]:443": "fe80::1",
    "[fe80::1%" + "z" * 60 + "]:443": "fe80::1",
    "2001:db8::1:443": "2001:db8::1:443",
    "[2001:db8::1]:https": None,
    "[2001:db8::1": None,
    "2001:db8::1]:443": None,
    "[]:443": None,
    "10.0.0.1:": None,
    "10.0.0.1:8080:9": None,
    "localhost:8080": None,
    "2001:DB8::1": "2001:db8::1",
    "::ffff:192.0.2.1": "192.0.2.1",
    "fe80::1%" + "z" * 60: "fe80::1",
    "fe80::1%\x1b[31m\x00": "fe80::1",
    "\x00": None,
    "<script>": None,
}


@pytest.mark.parametrize(("address", "stored"), ADDRESSES.items())
def test_invalid_address(site: Site, firefox: Browser, address: str, stored: str | None) -> None:
    """52: an invalid address is stored as NULL. A proxy's port and brackets are cut off."""
    form = {"name": "ann", "password": "hash of ann"}
    firefox.open("POST", "/login", data=form, environ_overrides={"REMOTE_ADDR": address})
    assert site.rows()[0].ip_address == stored


AGENTS = {
    "60 KB": "x" * 60_000,
    "markup": "<script>alert(1)</script>",
    "CR LF": "a\r\nSet-Cookie: b=c",
    "ANSI": "\x1b[31mred\x1b[0m",
    "NUL": "a\x00b",
    "bidi": "abc\u202edef\u2066ghi",
    "emoji": "\U0001f600 browser".encode().decode("latin-1"),
    "none": "",
}


@pytest.mark.parametrize("agent", AGENTS.values(), ids=list(AGENTS))
def test_hostile_user_agent(
    make_site: SiteFactory, database: str, agent: str, caplog: pytest.LogCaptureFixture
) -> None:
    """53: it is cut to 512 characters, without control characters, and never logged."""
    site = make_site("files", database)
    client = site.app.test_client()
    with caplog.at_level(logging.DEBUG, "flask_session_registry"):
        response = client.post(
            "/login",
            data={"name": "ann", "password": "hash of ann"},
            environ_overrides={"HTTP_USER_AGENT": agent},
        )
        assert response.status_code == 200
        assert client.get("/me").json["name"] == "ann"
    stored = site.rows()[0].user_agent
    if agent == "":
        assert stored is None
    else:
        assert 0 < len(stored) <= 512
        assert stored.isprintable()
    assert not [r for r in caplog.records if r.name == "flask_session_registry"]


def test_no_session_id_is_shown(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """54: no id is in the rows, in the text of any object, in the log or in a response."""

    @site.app.get("/devices")
    def devices() -> t.Any:
        return jsonify([repr(vars(row)) + repr(row) for row in site.sessions.active(current_user)])

    browsers = [site.browser("Firefox"), site.browser("Chrome")]
    with caplog.at_level(logging.DEBUG):
        for browser in browsers:
            browser.login(remember="1")
        shown = browsers[0].get("/devices").text
        browsers[0].post("/password", password="new")
        shown += browsers[0].get("/devices").text
    ids = {value for browser in browsers for value in browser.cookies.values()}
    assert len(json.loads(browsers[0].get("/devices").text)) == 1
    assert not any(id in shown or id in caplog.text for id in ids)


def test_revoking_another_users_session(database_site: Site) -> None:
    """55: another user's id, an unknown one and nonsense get the same response, with no effect."""
    site = database_site

    @site.app.post("/end/<id>")
    def end(id: str) -> t.Any:
        ended = site.sessions.revoke(id, user=current_user)
        site.db.session.commit()
        return {"ended": ended}, 200 if ended else 404

    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login("ann")
    chrome.login("bob")
    anns, bobs = (row.id for row in site.rows())
    answers = [
        firefox.post(f"/end/{id}") for id in (bobs, uuid.uuid4(), "nonsense", "%00", "x" * 3000)
    ]
    assert {(answer.status_code, answer.text) for answer in answers} == {(404, answers[0].text)}
    assert chrome.is_signed_in
    assert firefox.post(f"/end/{anns}").status_code == 200
    assert not firefox.is_signed_in
    assert site.active("bob") == 1


def test_revoking_one(store_site: Site) -> None:
    """Accept a row, a UUID or text. The second call returns False. The entry is purged."""
    site = store_site
    for name in ("Firefox", "Chrome", "Phone"):
        site.browser(name).login()
    with site.context():
        rows = site.sessions.active(site.user("ann"))
        assert site.sessions.revoke(rows[0], reason="lost")
        assert site.sessions.revoke(rows[1].id)
        assert site.sessions.revoke(str(rows[2].id))
        assert not site.sessions.revoke(rows[0])
        site.db.session.commit()
        assert not site.sessions.revoke(rows[1])
        assert not site.sessions.revoke(None)
        assert not site.sessions.revoke(17)
    assert [row.revoked_reason for row in site.rows()] == ["revoked", "revoked", "lost"]
    assert not site.entries()


@pytest.mark.parametrize("reason", ["", "x" * 65, None, 5])
def test_invalid_reason(site: Site, reason: t.Any) -> None:
    """An invalid reason is refused with an error, before anything is done."""
    with site.context():
        user = site.user("ann")
        with pytest.raises(ValueError, match="1 to 64 characters"):
            site.sessions.revoke_all(user, reason=reason)
        with pytest.raises(ValueError, match="1 to 64 characters"):
            site.sessions.revoke(uuid.uuid4(), reason=reason)
    with pytest.raises(ValueError, match="1 to 64 characters"):
        site.sessions.revoke_on_password_change(reason=reason)


def test_invalid_user(site: Site) -> None:
    """An object that isn't a user, or isn't saved, is refused with an error."""
    with site.context():
        with pytest.raises(ValueError, match="A 'User' was expected, not a 'str'"):
            site.sessions.revoke_all("ann")
        with pytest.raises(ValueError, match="not in the database yet"):
            site.sessions.active(site.User(name="eve"))
