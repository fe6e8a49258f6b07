"""Many threads on one SQLite database (SCENARIOS 27 to 30, 32, 33).

SQLite has one writer at a time. Others wait for it, five seconds by default, but not in a
transaction that has already read: if another one has written since, it is "locked" at once.
Python's driver begins a transaction at its first write, so this doesn't happen there, unless an app
begins each transaction itself, as SQLAlchemy's documentation explains.
"""

from __future__ import annotations

import functools
import sys
import typing as t
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import sqlalchemy as sa
from conftest import SiteFactory
from crowd import all_the_while, at_once
from flask_login import current_user, login_required
from servers import wait_for
from site_under_test import Browser, Site

#: How often each race runs: several times what the broken code needed to fail.
ROUNDS = 8
PAIR = ("remember_token", "remember_token_session")

pytestmark = pytest.mark.no_cover

Prepare = Callable[..., Site]


@pytest.fixture
def synchronous() -> str:
    """Hold the locks for as long as a disk takes."""
    return "FULL"


@pytest.fixture(autouse=True)
def threads_meet() -> Iterator[None]:
    """Make threads switch more often than usual, so that they meet in more places."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    # Except by the cache: two threads may write and delete the same file.
    records = [record for record in caplog.get_records("call") if record.name != "root"]
    assert [record.getMessage() for record in records] == []


def prepare(
    make_site: SiteFactory, journal: str, begin: str | None = None, store: str = "files"
) -> Site:
    """Return a site with this journal and BEGIN. Each request writes 'last_seen_at'."""
    site = make_site(store, SESSION_REGISTRY_TOUCH_INTERVAL=0.001)
    with site.context():
        engine = site.db.engine
    with engine.connect() as connection:
        connection.execute(sa.text(f"PRAGMA journal_mode={journal}"))
    engine.dispose()
    if begin is not None:

        @sa.event.listens_for(engine, "connect")
        def connected(connection: t.Any, _: object) -> None:
            connection.isolation_level = None

        @sa.event.listens_for(engine, "begin")
        def begun(connection: sa.Connection) -> None:
            connection.exec_driver_sql(begin)

    add_views(site)
    return site


def add_views(site: Site) -> None:
    @site.app.post("/end-others")
    @login_required
    def end_others() -> str:
        site.sessions.revoke_all(current_user, except_current=True)
        site.db.session.commit()
        return "ended"

    @site.app.post("/end-others-and-change")
    @login_required
    def end_others_and_change() -> str:
        site.sessions.revoke_all(current_user, except_current=True)
        current_user.password_hash = "another one"
        site.db.session.commit()
        return "changed"

    @site.app.post("/rotate")
    @login_required
    def rotate() -> str:
        site.sessions.rotate()
        return "rotated"


# Transactions that begin with their lock can all wait, like those that the driver begins.
MODES = [("DELETE", None), ("WAL", None), ("WAL", "BEGIN IMMEDIATE")]


@pytest.fixture(params=MODES, ids=lambda mode: " ".join(filter(None, mode)))
def site(request: pytest.FixtureRequest, make_site: SiteFactory) -> Site:
    """Return a site whose transactions can all wait for their turn."""
    return prepare(make_site, *request.param)


@pytest.fixture(params=[*MODES, ("WAL", "BEGIN")], ids=lambda mode: " ".join(filter(None, mode)))
def any_site(request: pytest.FixtureRequest, make_site: SiteFactory) -> Site:
    """Return the same, or a site whose transactions can't wait once they have read."""
    return prepare(make_site, *request.param)


def signed_in(site: Site, count: int, **form: str) -> list[Browser]:
    """Reset Ann's password, and sign her in on this number of browsers."""
    with site.context():
        site.user("ann").password_hash = "first"
        site.db.session.commit()
    browsers = [site.browser(f"Browser {number}") for number in range(count)]
    for browser in browsers:
        assert browser.login(password="first", **form).status_code == 200
    return browsers


def answer(browser: Browser, path: str, **form: str) -> int:
    return int(browser.post(path, **form).status_code)


def test_requests_without_end_over_a_change(site: Site) -> None:
    """27: Firefox writes throughout the change, and is signed out every time.

    Seen to fail when the process caches the check's result for a second.
    """
    for _ in range(ROUNDS):
        firefox, chrome = signed_in(site, 2)
        copies = [firefox.copy() for _ in range(3)]
        with all_the_while([partial(answer, copy, "/cart", item="book") for copy in copies]):
            assert answer(chrome, "/password", password="second") == 200
        assert not any(browser.is_signed_in for browser in (firefox, *copies))
        assert chrome.is_signed_in


def test_logins_that_race_the_change(site: Site) -> None:
    """28: four logins with the old password at the moment of the change are all refused.

    Seen to fail when the fingerprint is that of the password stored when the row is added.
    """
    for _ in range(ROUNDS):
        (chrome,) = signed_in(site, 1)
        others = [site.browser("Firefox") for _ in range(4)]
        form = {"name": "ann", "password": "first"}
        logins = [partial(answer, other, "/login", **form) for other in others]
        change = partial(answer, chrome, "/password", password="second")
        statuses = at_once([*logins[:2], change, *logins[2:]])
        assert statuses[2] == 200
        assert set(statuses) <= {200, 403}
        assert not any(other.is_signed_in for other in others)
        assert chrome.is_signed_in


def test_devices_change_the_password_at_once(site: Site) -> None:
    """29: at most one of them stays signed in. The others are too late.

    Seen to fail, where transactions begin with their lock, when the app's transaction is still open
    while the registry begins its own.
    """
    for _ in range(ROUNDS):
        browsers = signed_in(site, 4)
        changes = [
            partial(answer, browser, "/password", password=f"second {number}")
            for number, browser in enumerate(browsers)
        ]
        assert set(at_once(changes)) <= {200, 401, 409}
        assert sum(browser.is_signed_in for browser in browsers) <= 1


def test_everything_of_one_user_at_once(site: Site) -> None:
    """29: concurrent logins, logout, changes, revocations and rotations: none fails on a lock.

    Seen to fail, where transactions begin with their lock, when the app's transaction is still open
    while the registry begins its own.
    """
    paths = ("/end-others-and-change", "/end-others", "/rotate", "/logout", "/password")
    for _ in range(ROUNDS):
        browsers = signed_in(site, 5)
        visits = [
            partial(answer, browser, path, password="second")
            for browser, path in zip(browsers, paths, strict=True)
        ]
        login = partial(answer, site.browser(), "/login", name="ann", password="first")
        assert set(at_once([*visits, login])) <= {200, 401, 403, 409}


def test_all_that_the_registry_writes_by_itself(any_site: Site) -> None:
    """29: concurrent logins, logout, rotations and touches: none fails on a lock.

    The views only read, so all writes are the registry's, in transactions of its own. If one of
    those reads first (without the deletion with which a login begins on SQLite), this was seen to
    fail where transactions begin with BEGIN.
    """
    site = any_site
    for _ in range(2 * ROUNDS):
        browsers = signed_in(site, 5, remember="1")
        browsers[4].lose("session")
        new = site.browser("New")
        visits: list[Callable[[], int]] = [
            partial(answer, browsers[0], "/rotate"),
            partial(answer, browsers[1], "/logout"),
            partial(answer, browsers[2], "/login", name="ann", password="first"),
            partial(answer, browsers[3], "/cart", item="book"),
            partial(answer, browsers[4], "/rotate"),
            partial(answer, new, "/login", name="ann", password="first"),
        ]
        assert set(at_once(visits)) == {200}
        signed = [browser.is_signed_in for browser in (*browsers, new)]
        assert signed == [True, False, True, True, True, True]


def was_touched(site: Site, seen: t.Any) -> bool:
    (row,) = site.rows(id=seen.id)
    return bool(row.last_seen_at > seen.last_seen_at)


def test_touch_that_races_a_revocation(site: Site) -> None:
    """30: each of Firefox's requests writes 'last_seen_at', and none revives its row.

    Seen to fail with a write that does. Its requests write while the other browser ends it.
    Otherwise, nothing would race.
    """
    for _ in range(ROUNDS):
        firefox, chrome = signed_in(site, 2)
        copies = [firefox.copy() for _ in range(3)]
        (row,) = site.rows(user_agent="Browser 0", revoked_at=None)
        # Without a race, this touch is written.
        assert copies[0].is_signed_in
        (seen,) = site.rows(id=row.id)
        with all_the_while([functools.partial(getattr, copy, "name_shown") for copy in copies]):
            assert wait_for(partial(was_touched, site, seen))
            assert answer(chrome, "/end-others") == 200
        (row,) = site.rows(id=row.id)
        assert row.revoked_reason == "revoked"
        assert row.user_agent == "Copy"
        assert not firefox.is_signed_in
        assert chrome.is_signed_in


def test_copies_rotate_at_once(any_site: Site) -> None:
    """32: four copies rotate one session at the same time. Exactly one of them remains.

    Seen to fail when the row is updated without comparing the generation.
    """
    for _ in range(ROUNDS):
        (firefox,) = signed_in(any_site, 1)
        copies = [firefox.copy() for _ in range(4)]
        assert set(at_once([partial(answer, copy, "/rotate") for copy in copies])) <= {200, 401}
        assert sum(copy.is_signed_in for copy in copies) == 1


def test_parallel_returns(any_site: Site) -> None:
    """33: six requests with the remember cookie at once: one row, and all are signed in.

    Seen to fail when a returning session gets the next generation.
    """
    for _ in range(ROUNDS):
        (firefox,) = signed_in(any_site, 1, remember="1")
        count = len(any_site.rows())
        copies = [firefox.copy(*PAIR) for _ in range(6)]
        names = at_once([functools.partial(getattr, copy, "name_shown") for copy in copies])
        assert names == ["ann"] * 6
        assert all(copy.is_signed_in for copy in copies)
        assert len(any_site.rows()) == count
