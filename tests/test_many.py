"""Ten thousand sessions of one user, among a hundred thousand of others (SCENARIO 40)."""

from __future__ import annotations

import tracemalloc
import typing as t
import uuid
from collections.abc import Iterator

import pytest
import redis
import sqlalchemy as sa
from conftest import SiteFactory
from site_under_test import Site, days_ago

from flask_session_registry import session_revoked


def add_sessions(site: Site, name: str, count: int) -> None:
    """Add rows and entries, as the same number of logins would."""
    with site.context():
        user_id = site.user(name).id
        moment = days_ago(0)
        ids = [uuid.uuid4() for _ in range(count)]
        rows = [
            {
                "id": id,
                "generation": 0,
                "user_id": user_id,
                "store_id": f"{site.prefix}{id.hex}",
                "created_at": moment,
                "last_seen_at": moment,
                "authenticated_at": moment,
            }
            for id in ids
        ]
    site.add_rows(rows)
    pipeline = site.redis.pipeline(transaction=False)
    for row in rows:
        pipeline.set(row["store_id"], b"x", ex=600)
    pipeline.execute()


class Asked:
    """Counts the commands sent to Redis."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands = 0
        send = redis.Connection.send_packed_command

        def note(connection: t.Any, *arguments: t.Any, **options: t.Any) -> None:
            self.commands += 1
            send(connection, *arguments, **options)

        monkeypatch.setattr(redis.Connection, "send_packed_command", note)


@pytest.fixture
def crowded(make_site: SiteFactory, database: str) -> Iterator[Site]:
    site = make_site("redis", database)
    for _ in range(10):
        add_sessions(site, "bob", 10_000)
    add_sessions(site, "ann", 10_000)
    yield site
    # The site would delete them one by one, which takes long.
    keys = list(site.redis.scan_iter(f"{site.prefix}*", count=10_000))
    for number in range(0, len(keys), 10_000):
        site.redis.unlink(*keys[number : number + 10_000])


@pytest.mark.table
def test_one_update_and_purged_in_batches(crowded: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """40: one UPDATE ends them all. Their entries, and no others, go a thousand at a time."""
    site = crowded
    told: list[int] = []

    def receiver(app: t.Any, **arguments: t.Any) -> None:
        told.append(len(arguments["ids"]))

    asked = Asked(monkeypatch)
    with (
        site.count_statements() as statements,
        session_revoked.connected_to(receiver, site.app),
        site.context(),
    ):
        user = site.user("ann")
        assert site.sessions.revoke_all(user) == 10_000
        site.db.session.commit()
    # One ends the sessions. One more, after the commit, records that their entries are purged.
    assert sum(text.startswith("UPDATE") for text in statements.texts) == 2
    # The user; the lock; the UPDATE; three reads; the lock and the marks.
    assert len(statements) <= 8
    assert asked.commands == 10
    assert told == [1000] * 10
    with site.context():
        model = site.sessions.UserSession
        query = sa.select(model.user_id, sa.func.count(model.purged_at), sa.func.count())
        counts = dict.fromkeys(("ann", "bob"))
        for user_id, purged, count in site.db.session.execute(query.group_by(model.user_id)):
            counts[site.db.session.get(site.User, user_id).name] = (purged, count)
    assert counts == {"ann": (10_000, 10_000), "bob": (0, 100_000)}
    left = sum(1 for _ in site.redis.scan_iter(f"{site.prefix}*", count=10_000))
    assert left == 100_000


def peak(site: Site, count: int) -> int:
    """Return the peak memory of revoking this number of sessions."""
    add_sessions(site, "ann", count)
    with site.context():
        user = site.user("ann")
        tracemalloc.start()
        try:
            assert site.sessions.revoke_all(user) == count
            site.db.session.commit()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


@pytest.mark.once
def test_memory_is_flat(make_site: SiteFactory) -> None:
    """40: with more than one batch, twice as many sessions take no more memory."""
    site = make_site("redis")
    peak(site, 10)
    # The table reads several batches at once.
    count = 20_000 if site.records == "sql" else 3000
    few = peak(site, count)
    assert peak(site, 2 * count) < 1.3 * few
