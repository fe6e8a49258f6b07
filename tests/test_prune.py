"""Pruning expired, pending and old sessions (SCENARIOS 34, 35, 43)."""

from __future__ import annotations

import datetime as dt
import functools
import itertools
import json
import logging
import operator
import time
import typing as t
import uuid

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from flask_login import current_user, login_required
from site_under_test import Browser, Site, days_ago

from flask_session_registry import PruneResult, RecordsError, SessionRegistryError, purge_failed
from flask_session_registry import _clock as clock
from flask_session_registry._records import base
from flask_session_registry._records.base import new_id
from flask_session_registry._store import backends as entries
from flask_session_registry._store import purge as store_purge

MILLISECOND = dt.timedelta(milliseconds=1)


def prune(site: Site, limit: int | None = None) -> tuple[int, ...]:
    with site.context():
        return tuple(site.sessions.prune(limit))


def age(site: Site, **values: t.Any) -> None:
    """Change columns of all rows."""
    site.change(**values)


def down(monkeypatch: pytest.MonkeyPatch) -> t.Any:
    """Let no entry be deleted from the session store."""

    def fail(*_: t.Any, **__: t.Any) -> None:
        raise OSError("no store")

    context = monkeypatch.context()
    context.__enter__().setattr(entries.Entries, "delete", fail)
    return context


def test_nothing_to_do(store_site: Site) -> None:
    """A session in use, and its entry, are left alone."""
    firefox = store_site.browser()
    firefox.login()
    before = store_site.signed_in_entries()
    assert prune(store_site) == PruneResult(ended=0, purged=0, forgotten=0)
    assert store_site.signed_in_entries() == before
    assert firefox.is_signed_in


def test_pending_purge(store_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """34: entries that couldn't be deleted at the change are deleted by the next prune, once."""
    firefox, chrome = store_site.browser("Firefox"), store_site.browser("Chrome")
    firefox.login()
    chrome.login()
    broken = down(monkeypatch)
    chrome.post("/password", password="new")
    broken.__exit__(None, None, None)
    stored = store_site.store != "cookie"
    # Firefox's, and Chrome's from before the change.
    assert len(store_site.signed_in_entries()) == 3 * stored
    assert prune(store_site) == (0, 1 * stored, 0)
    assert len(store_site.signed_in_entries()) == 1 * stored
    assert prune(store_site) == (0, 0, 0)
    assert chrome.is_signed_in
    assert not firefox.is_signed_in


def test_pending_of_an_ended_session_that_was_rotated(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """34: its entries from before and after the rotation are both deleted."""
    chrome = site.browser("Chrome")
    chrome.login()
    broken = down(monkeypatch)
    chrome.post("/password", password="new")
    with site.context():
        site.sessions.revoke_all(site.user("ann"))
        site.db.session.commit()
    broken.__exit__(None, None, None)
    assert len(site.signed_in_entries()) == 2
    assert prune(site) == (0, 1, 0)
    assert site.signed_in_entries() == []


def test_store_that_is_still_down(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """34: if the store is unavailable, a prune reports it, changes nothing, and ends."""
    told: list[t.Any] = []

    def receiver(app: t.Any, **arguments: t.Any) -> None:
        told.append(arguments["ids"])

    firefox, chrome, phone = (site.browser(name) for name in ("Firefox", "Chrome", "Phone"))
    for browser in (firefox, chrome, phone):
        browser.login()
    monkeypatch.setattr("flask_session_registry._records.base.BATCH", 1)
    broken = down(monkeypatch)
    chrome.post("/password", password="new")
    site.change(ended=True, revoked_at=days_ago(40))
    with purge_failed.connected_to(receiver, site.app):
        assert prune(site) == (0, 0, 0)
        # Nor can the entries of purged and rotated sessions be deleted.
        site.change(ended=True, purged_at=days_ago(40))
        assert prune(site) == (0, 0, 0)
    broken.__exit__(None, None, None)
    assert len(told) == 2
    assert len(site.rows()) == 3
    assert prune(site) == (0, 0, 2)


def test_stale_key_of_a_rotation(database_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """35: the entry from before the rotation is purged. Its key is kept for requests in flight."""
    site = database_site
    chrome = site.browser("Chrome")
    chrome.login()
    before = site.rows()[0].store_id
    broken = down(monkeypatch)
    chrome.post("/password", password="new")
    broken.__exit__(None, None, None)
    (row,) = site.rows()
    assert site.stale_keys() == [before]
    assert row.store_id != before
    assert prune(site) == (0, 0, 0)
    assert len(site.signed_in_entries()) == 1
    assert site.stale_keys() == [before]
    age(site, rotated_at=days_ago(1))
    prune(site)
    assert site.stale_keys() == []
    assert chrome.is_signed_in


@pytest.mark.parametrize(
    ("last_seen", "remembered", "ended"),
    [(32, None, 1), (30, None, 0), (32, days_ago(-1), 0), (32, days_ago(1), 1)],
)
def test_expired(
    database_site: Site, last_seen: int, remembered: dt.datetime | None, ended: int
) -> None:
    """43: a session ends after its lifetime, 31 days by default, unless it is remembered."""
    site = database_site
    site.browser().login()
    age(site, last_seen_at=days_ago(last_seen), remember_until=remembered)
    assert prune(site) == (ended, ended, 0)
    assert [row.revoked_reason for row in site.rows()] == ["expired" if ended else None]
    assert len(site.entries()) == 1 - ended


def test_seen_while_it_is_pruned(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """43: a session that is used between the search and the UPDATE goes on."""
    firefox = site.browser()
    firefox.login()
    age(site, last_seen_at=days_ago(40))
    with site.context():
        records = site.app.extensions["session_registry.app"].records
        expire = records.expire

        def late(ids: t.Any, expiry: t.Any) -> int:
            assert len(ids) == 1
            age(site, last_seen_at=days_ago(0))
            return int(expire(ids, expiry))

        monkeypatch.setattr(records, "expire", late)
        assert tuple(site.sessions.prune()) == (0, 0, 0)
    assert firefox.is_signed_in


def test_session_of_a_deleted_user(database_site: Site) -> None:
    """Its row belongs to no user. It ends, and its entry is purged."""
    site = database_site
    site.browser().login()
    if site.records == "sql":
        age(site, user_id=None)
    else:
        # No foreign key reaches Redis.
        with site.context():
            site.db.session.execute(sa.delete(site.User).filter_by(name="ann"))
            site.db.session.commit()
    assert prune(site) == (1, 1, 0)
    assert site.entries() == {}


def test_forgotten(database_site: Site) -> None:
    """A row is deleted after its retention, and before it, what a late request has written back."""
    site = database_site
    firefox, phone = site.browser("Firefox"), site.browser("Phone")
    firefox.login()
    entry = site.cache.get(site.rows()[0].store_id)
    phone.login()
    key = site.rows()[0].store_id
    firefox.post("/logout")
    site.cache.set(key, entry)
    assert len(site.signed_in_entries()) == 2
    assert prune(site) == (0, 0, 0)
    assert len(site.rows()) == 2
    site.change(ended=True, revoked_at=days_ago(31))
    assert prune(site) == (0, 0, 1)
    assert len(site.signed_in_entries()) == 1
    assert [row.user_agent for row in site.rows()] == ["Phone"]
    assert phone.is_signed_in
    assert not firefox.is_signed_in


@pytest.mark.parametrize("store", ["cookie", "files"])
def test_no_retention(make_site: SiteFactory, store: str) -> None:
    """With a retention of 0, the next prune deletes rows, after purging what was written back."""
    site = make_site(store, SESSION_REGISTRY_RETENTION=0)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    keys = [row.store_id for row in site.rows() if row.store_id]
    late = {key: site.cache.get(key) for key in keys}
    chrome.post("/password", password="new")
    chrome.post("/logout")
    for key, entry in late.items():
        site.cache.set(key, entry)
    prune(site)
    assert len(site.rows()) == 2
    age(site, revoked_at=days_ago(0.01))
    prune(site)
    assert site.rows() == []
    assert site.entries() == {}
    assert not firefox.is_signed_in


def test_in_batches_and_up_to_a_limit(
    make_site: SiteFactory, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit applies to each kind of work separately, and is never exceeded."""
    monkeypatch.setattr("flask_session_registry._records.sql.table._BATCHES", 1)
    monkeypatch.setattr("flask_session_registry._records.base.BATCH", 2)
    site = make_site("files", database)
    browsers = [site.browser() for _ in range(7)]
    for browser in browsers:
        browser.login()
    age(site, last_seen_at=days_ago(40))
    assert prune(site, 3) == (3, 3, 0)
    assert prune(site) == (4, 4, 0)
    age(site, revoked_at=days_ago(31))
    assert prune(site, 5) == (0, 0, 5)
    assert prune(site) == (0, 0, 2)
    assert site.entries() == {}


def test_each_process_prunes_by_itself(make_site: SiteFactory) -> None:
    """A process prunes at the end of a request when it is due, and not at the next request."""
    site = make_site(SESSION_REGISTRY_AUTO_PRUNE=3600)
    gone, here = site.browser("Gone"), site.browser("Here")
    gone.login()
    age(site, last_seen_at=days_ago(40))
    here.login()
    assert site.active() == 1
    assert site.rows(user_agent="Gone")[0].revoked_at is None
    site.app.extensions["session_registry.app"].prune_schedule.next_at = 0
    assert here.is_signed_in
    assert site.rows(user_agent="Gone")[0].revoked_reason == "expired"
    late = site.browser("Late")
    late.login()
    site.change({"user_agent": "Late"}, last_seen_at=days_ago(40))
    assert here.is_signed_in
    assert site.rows(user_agent="Late")[0].revoked_at is None


def test_command(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command prints what was done."""
    site.browser().login()
    age(site, last_seen_at=days_ago(40))
    result = site.app.test_cli_runner().invoke(args=["sessions", "prune", "--limit", "10"])
    assert result.exit_code == 0
    assert result.output == (
        "1 session had expired and ended; 1 purged from the session store; 0 forgotten.\n"
    )


def command(site: Site, *arguments: str) -> t.Any:
    return site.app.test_cli_runner().invoke(args=["sessions", "prune", *arguments])


FAILED = "Error: Store entries could not be deleted (OSError). "
AGAIN = " must still be purged. Run it again when the store is back.\n"


def test_command_while_the_store_is_down(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """34: it fails, and reports the failure and what remains, once. Later it continues."""
    for _ in range(3):
        site.browser().login()
    age(site, last_seen_at=days_ago(40))
    broken = down(monkeypatch)
    result = command(site)
    assert result.exit_code == 1
    assert result.stdout.startswith("3 sessions had expired and ended; 0 purged from")
    assert result.stderr == f"{FAILED}The entries of 3 sessions{AGAIN}"
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    for limit in ((), ("--limit", "1")):
        result = command(site, *limit, "--format", "json")
        assert result.exit_code == 1
        found = json.loads(result.stdout)
        assert found == {"ended": 0, "purged": 0, "forgotten": 0, "unpurged": 3}
        assert result.stderr == f"{FAILED}The entries of 3 sessions{AGAIN}"
    broken.__exit__(None, None, None)
    result = command(site, "--limit", "1")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[1:] == [
        "The entries of 2 sessions must still be purged. Run it again for the rest."
    ]
    for left in (1, 0):
        result = command(site, "--limit", "1", "--format", "json")
        assert json.loads(result.stdout)["unpurged"] == left
    assert len(command(site).stdout.splitlines()) == 1


def test_command_while_stale_entries_remain(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """34: the same if all that remains are entries to delete once more before the rows go."""
    site.browser().login()
    age(site, last_seen_at=days_ago(40))
    command(site)
    age(site, revoked_at=days_ago(40))
    broken = down(monkeypatch)
    result = command(site)
    broken.__exit__(None, None, None)
    assert (result.exit_code, result.stderr) == (1, f"{FAILED}Stale entries{AGAIN}")


def test_rows_that_cannot_be_marked(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """36: if the database fails after the entries are deleted, they are deleted once more."""
    firefox = site.browser()
    firefox.login()
    records = site.app.extensions["session_registry.app"].records

    def fail(*_: t.Any, **__: t.Any) -> int:
        raise RecordsError("down")

    with monkeypatch.context() as broken:
        broken.setattr(records, "mark_purged", fail)
        firefox.post("/logout")
    assert "Could not mark store entries as purged" in caplog.text
    assert site.entries() == {}
    assert prune(site) == (0, 1, 0)


def test_prune_waits_longer(site: Site) -> None:
    """A command may wait longer for a slow store than a response may."""
    assert store_purge.LONG_TIMEOUT > entries.TIMEOUT


def test_late_request_after_a_rotation_is_known_on_every_database(
    database_site: Site,
) -> None:
    """2: the row keeps the previous key, although MariaDB assigns columns from left to right."""
    site = database_site
    chrome = site.browser("Chrome")
    chrome.login()
    old: Browser = chrome.copy()
    chrome.post("/password", password="new")
    assert old.rejected == "rotated"


# -- stale keys of rotations ---------------------------------------------------------------------


def past(site: Site) -> None:
    """Let a day pass since everything that has happened."""
    age(site, rotated_at=days_ago(1))
    site.change(ended=True, revoked_at=days_ago(1))


@pytest.mark.parametrize("store", ["redis", "files", "sqlalchemy"])
def test_two_rotations_while_the_store_is_down(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    """3, 34: the entry from before the first rotation is purged too."""
    site = make_site(store)
    chrome = site.browser("Chrome")
    chrome.login()
    broken = down(monkeypatch)
    for password in ("one", "two", "three"):
        chrome.post("/password", password=password)
    broken.__exit__(None, None, None)
    past(site)
    broken = down(monkeypatch)
    prune(site)
    broken.__exit__(None, None, None)
    assert len(site.signed_in_entries()) == 4
    prune(site)
    assert len(site.signed_in_entries()) == 1
    assert chrome.is_signed_in


def test_rotated_while_the_store_is_down_and_ended_after(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """34: the logout doesn't lose track of the entry from before the rotation."""
    chrome = site.browser("Chrome")
    chrome.login()
    broken = down(monkeypatch)
    chrome.post("/password", password="one")
    broken.__exit__(None, None, None)
    chrome.post("/logout")
    assert len(site.signed_in_entries()) == 1
    prune(site)
    assert site.entries() == {}


# -- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, -1])
def test_wrong_limit(site: Site, limit: int) -> None:
    """A limit below one is refused."""
    with pytest.raises(ValueError, match="must be above zero"):
        prune(site, limit)


@pytest.mark.parametrize("kind", ["pending", "rotated"])
def test_limit_of_each_kind(site: Site, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Pending and stale entries are also purged up to the limit."""
    monkeypatch.setattr("flask_session_registry._records.base.BATCH", 2)
    browsers = [site.browser() for _ in range(5)]
    for browser in browsers:
        browser.login()
        if kind == "rotated":
            change_own(site, browser)
    if kind == "pending":
        broken = down(monkeypatch)
        with site.context():
            site.sessions.revoke_all(site.user("ann"))
            site.db.session.commit()
        broken.__exit__(None, None, None)

    def left() -> int:
        if kind == "pending":
            return len(site.rows(purged_at=None))
        return len(site.stale_keys())

    age(site, rotated_at=days_ago(1))
    assert left() == 5
    prune(site, 3)
    assert left() == 2


def change_own(site: Site, browser: Browser) -> None:
    """Give the browser a new session id."""
    if "rotate" not in site.app.view_functions:
        site.app._got_first_request = False

        @site.app.post("/rotate")
        def rotate() -> str:
            site.sessions.rotate()
            return "ok"

    browser.post("/rotate")


def test_prunes_a_bounded_batch_by_itself(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AUTO_PRUNE processes at most one batch at the end of one request."""
    monkeypatch.setattr("flask_session_registry._request.deferred.BATCH", 3)
    site = make_site(SESSION_REGISTRY_AUTO_PRUNE=3600)
    for _ in range(7):
        site.browser().login()
    age(site, last_seen_at=days_ago(40))
    site.app.extensions["session_registry.app"].prune_schedule.next_at = 0
    visitor = site.browser()
    visitor.login("bob")
    ended = len(site.rows(revoked_reason="expired"))
    # The visitor's own session might be among the three in the batch.
    assert ended in (2, 3)
    visitor.get("/me")
    assert len(site.rows(revoked_reason="expired")) == ended


@pytest.mark.table
@pytest.mark.parametrize("rows", [0, 3, 4, 5, 11])
def test_automatic_prune_goes_round(database_site: Site, rows: int) -> None:
    """It scans no more rows than it should, however many there are, and all of them in the end."""
    site = database_site
    for _ in range(rows):
        site.browser().login()
    ids = {row.id for row in site.rows()}
    age(site, last_seen_at=days_ago(40))
    with site.context():
        records, expiry = site.registry.records, site.registry.expiry(site.app)

        def look() -> set[uuid.UUID]:
            batches = records.find_expired(expiry, window=records.next_scan_window(4))
            return {row.id for batch in batches for row in batch}

        rounds = [look() for _ in range(8)]
        for _ in range(20):
            # As other processes start: at a random row, and with the same window.
            records._scanned_to = None
            assert len(look()) == min(4, rows)
    assert {len(found) for found in rounds} == {min(4, rows)}
    # From any start, as few scans as possible cover all rows.
    enough = -(-rows // 4)
    assert all(set().union(*rounds[n : n + enough]) == ids for n in range(8 - enough))


@pytest.mark.table
def test_automatic_prune_begins_anywhere(database_site: Site) -> None:
    """Processes with a short life cover all rows too, among all kinds of ids."""
    site, now = database_site, clock.now()
    ids = [new_id((days_ago(days) - clock.EPOCH) // MILLISECOND) for days in range(40)]
    # Ids of adopted sessions, and of sessions on InnoDB.
    ids += [uuid.uuid4() for _ in range(20)]
    with site.context():
        ann = site.user("ann").id
    moments = dict.fromkeys(("created_at", "last_seen_at", "authenticated_at"), now)
    site.add_rows([{"id": id, "generation": 0, "user_id": ann, **moments} for id in ids])
    seen: set[uuid.UUID] = set()
    with site.context():
        records, model = site.registry.records, site.sessions.UserSession
        for _ in range(300):
            records._scanned_to = None
            part = set(
                site.db.session.scalars(
                    sa.select(model.id).where(records.next_scan_window(5).covers(model.id))
                )
            )
            assert len(part) == 5
            seen |= part
            site.db.session.rollback()
    assert seen == set(ids)


@pytest.mark.table
def test_automatic_prune_beside_a_login(
    database_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are added after its start while it counts them."""
    site = database_site
    for _ in range(4):
        site.browser().login()
    with site.context():
        records = site.registry.records
        records._scanned_to = uuid.UUID(int=0)
        scalar = sa_orm.Session.scalar

        def late(session: t.Any, statement: t.Any, *arguments: t.Any) -> t.Any:
            found = scalar(session, statement, *arguments)
            return None if " > " in str(statement) and "count" not in str(statement) else found

        monkeypatch.setattr(sa_orm.Session, "scalar", late)
        records.next_scan_window(3)


@pytest.fixture
def own_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids as we make them before Python 3.14, by the clock that tests move."""
    monkeypatch.setattr(base, "_uuid7", None)


@pytest.mark.table
@pytest.mark.usefixtures("own_ids")
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_ids_lie_in_the_order_of_logins(
    make_site: SiteFactory, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index has the order of the table, so a prune's scan window reads neighboring rows.

    The ids are UUIDs of version 7 (RFC 9562, 5.7), which can't be guessed from one another.
    """
    site, begin = make_site("files", database), clock.now()
    for hours in (0, 1, 2, 3):
        monkeypatch.setattr(clock, "now", lambda hours=hours: begin + dt.timedelta(hours=hours))
        site.browser().login()
    with site.context():
        model = site.sessions.UserSession
        rows = list(site.db.session.scalars(sa.select(model).order_by(model.id)))
        assert [row.created_at for row in rows] == sorted(row.created_at for row in rows)
        milliseconds = [row.id.int >> 80 for row in rows]
    assert milliseconds[0] == (begin - clock.EPOCH) // MILLISECOND
    assert {after - before for before, after in itertools.pairwise(milliseconds)} == {3_600_000}
    assert {(row.id.version, row.id.variant) for row in rows} == {(7, uuid.RFC_4122)}


def test_ids_are_python_s_own_where_it_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 3.14 on; for a given moment, they are ours."""
    made = uuid.UUID("018bcfe5-6800-7000-8000-000000000001")
    monkeypatch.setattr(base, "_uuid7", lambda: made)
    assert new_id() == made
    assert new_id(made.int >> 80) != made
    assert new_id(made.int >> 80).int >> 80 == made.int >> 80


@pytest.mark.usefixtures("own_ids")
def test_no_id_can_be_guessed() -> None:
    """74 bits are random. The others are the time and the version."""
    ids = [new_id().int for _ in range(200)]
    chance = (1 << 76) - (1 << 64) | (1 << 62) - 1
    ever, always = functools.reduce(operator.or_, ids), functools.reduce(operator.and_, ids)
    assert chance.bit_count() == 74
    assert ever & chance == chance
    assert always & chance == 0


def test_processes_prune_at_different_times(make_site: SiteFactory) -> None:
    """Each process chooses its own first time within the interval when it is first asked."""
    times = set()
    for _ in range(5):
        site = make_site(SESSION_REGISTRY_AUTO_PRUNE=3600)
        registry = site.app.extensions["session_registry.app"]
        assert registry.prune_schedule.next_at is None
        now = time.monotonic()
        site.browser().login()
        assert now <= registry.prune_schedule.next_at <= time.monotonic() + 3600
        times.add(round(registry.prune_schedule.next_at - now, 3))
    assert len(times) > 1


@pytest.mark.parametrize("way", ["verb", "command"])
def test_timeout_of_a_command(site: Site, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """An explicit prune waits longer for the store than a response does."""
    site.browser().login()
    age(site, last_seen_at=days_ago(40))
    waited = []
    delete = entries.Entries.delete

    def note(self: t.Any, keys: t.Any, *, timeout: float | None = None) -> None:
        waited.append(timeout)
        delete(self, keys, timeout=timeout)

    monkeypatch.setattr(entries.Entries, "delete", note)
    if way == "verb":
        prune(site)
    else:
        site.app.test_cli_runner().invoke(args=["sessions", "prune"])
    assert waited == [60.0]


def test_timeout_of_a_response(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """34: the time limit is for all batches of a purge together, and for the store alone."""
    waited: list[float] = []

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()

    def delete(_: t.Any, __: t.Any, *, timeout: float) -> None:
        waited.append(timeout)
        clock.now += 2

    monkeypatch.setattr(entries.Entries, "delete", delete)
    purge = store_purge.Purge(site.app.extensions["session_registry.app"], site.app)
    monkeypatch.setattr("flask_session_registry._store.purge.time", clock)
    for key in "abc":
        purge.delete_keys([key])
        # Time between deletions doesn't count.
        clock.now += 100
    assert waited == [3, 1, 0]


# -- in a view -----------------------------------------------------------------------------------


def test_prune_within_a_transaction(database_site: Site) -> None:
    """It says what to do, instead of waiting for a lock that this very request holds."""
    site = database_site

    @site.app.post("/prune")
    @login_required
    def prune_() -> str:
        current_user.note = "pruned"
        site.db.session.flush()
        with pytest.raises(SessionRegistryError, match="Commit or roll back first"):
            site.sessions.prune()
        site.db.session.commit()
        return str(site.sessions.prune().ended)

    here, old = site.browser("here"), site.browser("old")
    here.login()
    old.login()
    site.change({"user_agent": "old"}, last_seen_at=days_ago(40))
    assert here.post("/prune").text == "1"
    assert here.is_signed_in


def test_prune_with_one_connection(make_site: SiteFactory, database: str) -> None:
    """41: it works in a view that has ended its transaction, and automatically."""
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 5, "poolclass": sa.QueuePool}
    site = make_site(
        "files",
        database,
        SQLALCHEMY_ENGINE_OPTIONS=options,
        SESSION_REGISTRY_AUTO_PRUNE=3600,
    )

    @site.app.post("/prune")
    @login_required
    def prune_() -> str:
        site.db.session.commit()
        return str(site.sessions.prune().ended)

    firefox, old = site.browser("Firefox"), site.browser("old")
    firefox.login()
    old.login("bob")
    site.change({"user_agent": "old"}, last_seen_at=days_ago(40))
    site.app.extensions["session_registry.app"].prune_schedule.next_at = 0
    assert firefox.is_signed_in
    assert len(site.rows(revoked_reason="expired")) == 1
    assert firefox.post("/prune").text == "0"
