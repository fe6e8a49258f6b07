"""Deleting entries from the kinds of stores."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from cachelib import SimpleCache
from conftest import SiteFactory
from flask_session import Session
from flask_session.cachelib import CacheLibSessionInterface
from site_under_test import Site

from flask_session_registry import entries


class Stubborn(SimpleCache):
    """A cache that keeps what it is told to delete."""

    def delete(self, key: str) -> bool:
        return False


def test_cache_that_deletes_nothing() -> None:
    """It is told, so that the purge stays pending."""
    cache = Stubborn()
    cache.set("a", 1)
    interface = CacheLibSessionInterface(client=cache)
    with pytest.raises(OSError, match="did not delete every entry"):
        entries.delete(interface, ["a", "b"])


@pytest.mark.parametrize("store", ["redis", "files", "memory", "sqlalchemy"])
def test_entry_that_is_gone_already(make_site: SiteFactory, store: str) -> None:
    """No error, and the others are deleted all the same."""
    site = make_site(store)
    site.browser().login()
    (row,) = site.rows()
    with site.context():
        entries.delete(site.app.session_interface, ["gone", row.store_id, "gone too"])
    assert not site.entries()


def test_one_round_trip(make_site: SiteFactory) -> None:
    """Redis is asked once, however many entries there are."""
    site = make_site("redis")
    asked: list[t.Any] = []
    connection = site.redis.connection_pool.get_connection()
    send = connection.send_packed_command
    connection.send_packed_command = lambda *a, **k: (asked.append(a), send(*a, **k))[1]
    site.redis.connection_pool.release(connection)
    entries.delete(site.app.session_interface, [f"{site.prefix}{n}" for n in range(500)])
    assert len(asked) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_store_of_flask_session(make_site: SiteFactory, tmp_path: Path) -> None:
    """Any other of Flask-Session's is asked once for each entry, by its own method."""
    site = make_site("cookie", init=False)
    site.app.config.update(
        SESSION_TYPE="filesystem", SESSION_FILE_DIR=str(tmp_path / "old"), SESSION_FILE_THRESHOLD=0
    )
    Session(site.app)
    site.sessions.init_app(site.app)
    with site.context():
        site.db.create_all()
        site.db.session.add(site.User(name="ann", password_hash="x"))
        site.db.session.commit()
    firefox, chrome = site.browser(), site.browser()
    firefox.login()
    chrome.login()
    assert stored(tmp_path) == 2
    chrome.post("/password", password="new")
    assert stored(tmp_path) == 1
    assert chrome.is_signed_in
    assert not firefox.is_signed_in


def stored(tmp_path: Path) -> int:
    return sum(b"_user_session" in path.read_bytes() for path in (tmp_path / "old").iterdir())


def test_signed_cookies_have_no_entries(make_site: SiteFactory) -> None:
    """Nothing is stored, and nothing to be deleted."""
    site: Site = make_site("cookie")
    entries.delete(site.app.session_interface, ["anything"])
    site.browser().login()
    assert site.rows()[0].store_id is None


def test_purge_leaves_the_session_of_the_app_alone(make_site: SiteFactory) -> None:
    """What the app has not committed yet is not committed by the deletion of an entry."""
    site = make_site("sqlalchemy")
    site.browser("Firefox").login()
    with site.context():
        site.user("bob").note = "not committed"
        with site.db.session.session_factory() as other:
            site.sessions.revoke_all(other.get(site.User, 1), session=other)
            other.commit()
        site.db.session.rollback()
        assert site.user("bob").note is None
    assert not site.entries()
