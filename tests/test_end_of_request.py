"""The end of a request: what leaves nothing to record is not looked at, and all else is."""

from __future__ import annotations

import datetime as dt
import time
import typing as t
from collections.abc import Callable

import pytest
from conftest import SiteFactory
from flask import current_app, make_response, request, session
from flask_login import confirm_login, current_user, login_user, logout_user
from site_under_test import Site, days_ago, is_signed_cookie

from flask_session_registry._request import persistence
from flask_session_registry._request.marker import MARKER


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of the paths of requests that were looked at."""
    paths: list[str] = []
    record = persistence._record

    def noting(*arguments: t.Any) -> t.Any:
        paths.append(request.path)
        return record(*arguments)

    monkeypatch.setattr(persistence, "_record", noting)
    # However slow the machine is.
    monkeypatch.setattr(persistence, "SLOW_AFTER", 60)
    return paths


def test_most_requests_are_not_looked_at(store_site: Site, recorded: list[str]) -> None:
    """A signed-in request that only reads, or writes to its session, ends right after its view."""
    firefox = store_site.browser()
    firefox.login()
    recorded.clear()
    assert firefox.name_shown == "ann"
    firefox.post("/cart", item="tea")
    assert firefox.get("/cart").json == {"cart": "tea"}
    assert firefox.name_shown == "ann"
    assert recorded == []


def _log_in_again(site: Site) -> None:
    login_user(site.user("ann"))


def _change_password(site: Site) -> None:
    current_user.password_hash = "new"
    site.db.session.commit()


def _leave_uncommitted(site: Site) -> None:
    current_user.password_hash = "new"
    site.db.session.flush()


def _revoke_all(site: Site) -> None:
    site.sessions.revoke_all(current_user)
    site.db.session.commit()


def _revoke_own(site: Site) -> None:
    site.sessions.revoke(site.sessions.current)
    site.db.session.commit()


def _forget_by_hand(_: Site) -> None:
    session.pop("_user_id")


def _lose_marker(_: Site) -> None:
    session.pop(MARKER)


def _empty(_: Site) -> None:
    session.clear()


#: What a view does, and whether its browser is signed in afterwards.
ENDINGS: dict[str, tuple[Callable[[Site], object], bool]] = {
    "logout": (lambda _: logout_user(), False),
    "login": (_log_in_again, True),
    "rotate": (lambda site: site.sessions.rotate(), True),
    "confirm": (lambda _: confirm_login(), True),
    "password change": (_change_password, True),
    "left uncommitted": (_leave_uncommitted, True),
    "revoke all": (_revoke_all, False),
    "revoke own": (_revoke_own, False),
    "without the user": (_forget_by_hand, False),
    "without the marker": (_lose_marker, False),
    "emptied": (_empty, False),
}


@pytest.mark.parametrize("store", ["cookie", "redis"])
@pytest.mark.parametrize("name", ENDINGS)
def test_whatever_happens_is_looked_at(
    make_site: SiteFactory, recorded: list[str], name: str, store: str
) -> None:
    """What a view does to its session, or to its user's, is recorded in the same request."""
    site = make_site(store)
    act, is_signed_in = ENDINGS[name]

    @site.app.post("/act")
    def view() -> str:
        # Checked before: nothing else would be.
        assert current_user.is_authenticated
        act(site)
        return ""

    firefox = site.browser()
    firefox.login()
    recorded.clear()
    firefox.post("/act")
    assert recorded == ["/act"]
    assert firefox.is_signed_in == is_signed_in


def test_cookies_of_the_view_are_looked_at(site: Site, recorded: list[str]) -> None:
    """Any cookie might be the "remember me" cookie."""

    @site.app.get("/cookie")
    def cookie() -> t.Any:
        response = make_response(current_user.name)
        response.set_cookie("remember_token", "forged")
        return response

    firefox = site.browser()
    firefox.login()
    recorded.clear()
    firefox.get("/cookie")
    assert recorded == ["/cookie"]


@pytest.mark.parametrize("age", [dt.timedelta(hours=2), dt.timedelta(hours=-2)])
def test_touch_is_looked_at(store_site: Site, recorded: list[str], age: dt.timedelta) -> None:
    """A session that was last seen long ago, or in the future, is touched."""
    firefox = store_site.browser()
    firefox.login()
    seen_at = days_ago(0) - age
    store_site.change(last_seen_at=seen_at)
    recorded.clear()
    assert firefox.is_signed_in
    assert recorded == ["/me"]
    (row,) = store_site.rows()
    assert row.last_seen_at != seen_at
    assert firefox.is_signed_in
    assert recorded == ["/me"]


def test_new_session_id_is_looked_at(make_site: SiteFactory, recorded: list[str]) -> None:
    """An id that a view has given its session is recorded in the same request."""
    site = make_site("redis")

    @site.app.post("/regenerate")
    def regenerate() -> str:
        assert current_user.is_authenticated
        current_app.session_interface.regenerate(session)
        return ""

    firefox = site.browser()
    firefox.login()
    recorded.clear()
    firefox.post("/regenerate")
    assert recorded == ["/regenerate"]
    (row,) = site.rows()
    assert [row.store_id] == site.signed_in_entries()
    assert (row.generation, firefox.is_signed_in) == (1, True)


def test_other_store_key_is_looked_at(make_site: SiteFactory, recorded: list[str]) -> None:
    """A session whose row names another entry than the browser's gets the browser's."""
    site = make_site("redis")
    firefox = site.browser()
    firefox.login()
    (key,) = site.signed_in_entries()
    site.change(store_id="another")
    recorded.clear()
    assert firefox.is_signed_in
    assert recorded == ["/me"]
    assert [row.store_id for row in site.rows()] == [key]


def test_prune_is_looked_at(make_site: SiteFactory, recorded: list[str]) -> None:
    """A prune that is due runs at the end of a request that only reads."""
    site = make_site(SESSION_REGISTRY_AUTO_PRUNE=dt.timedelta(hours=1))
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    chrome.post("/logout")
    site.change(ended=True, revoked_at=days_ago(1000))
    site.registry.prune_schedule.next_at = time.monotonic() + 60
    recorded.clear()
    assert firefox.is_signed_in
    assert (recorded, len(site.rows())) == ([], 2)
    site.registry.prune_schedule.next_at = time.monotonic()
    assert firefox.is_signed_in
    assert (recorded, len(site.rows())) == (["/me"], 1)
    assert firefox.is_signed_in
    assert recorded == ["/me"]


def test_slow_request_is_looked_at(
    store_site: Site, recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session of a slow request may have ended since its check."""
    firefox = store_site.browser()
    firefox.login()
    recorded.clear()
    monkeypatch.setattr(persistence, "SLOW_AFTER", 0)
    assert firefox.is_signed_in
    assert recorded == ["/me"]


# -- errors in functions of the app ----------------------------------------------------------------


@pytest.mark.parametrize("stage", ["teardown_request", "teardown_appcontext"])
def test_teardown_that_raises(store_site: Site, stage: str) -> None:
    """What was deferred is done all the same, and the next request is a new one."""
    site = store_site

    @getattr(site.app, stage)
    def fail(_: object) -> None:
        if failing:
            raise RuntimeError(stage)

    failing = False
    firefox = site.browser()
    firefox.login()
    old = firefox.copy()
    failing = True
    with pytest.raises(RuntimeError, match=stage):
        firefox.post("/logout")
    failing = False
    assert not old.is_signed_in
    (row,) = site.rows()
    assert row.revoked_reason == "logged_out"
    assert row.purged_at is not None or is_signed_cookie(site)
