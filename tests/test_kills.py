"""Kill the app's process throughout a password change (SCENARIO 35).

On each database, with sessions in Redis, the process is killed once before and after each SQL
statement, each commit and each Redis command, and at random moments as well: more than 200 times in
all. Only whether the password was committed decides what must be true afterwards.

Seen to fail when entries are deleted before the commit (without a commit, browsers are signed out),
when rows are marked as purged before their entries are deleted or the current row names its old
entry until the response is written (prune leaves a dead entry in both cases), and when the current
row's new generation has a transaction of its own (Chrome is signed out although the password is the
old one).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from conftest import SiteFactory
from own_servers import OwnServer, own_redis, redis_client
from site_under_test import Browser, Site

from flask_session_registry._request.marker import read_marker
from flask_session_registry._revocation.fingerprint import fingerprint

pytestmark = [pytest.mark.once, pytest.mark.no_cover]

#: The number of kills at random moments on each database.
RANDOM = 30
REMEMBERED = ("remember_token", "remember_token_session")


@pytest.fixture(scope="module")
def redis_server() -> Iterator[OwnServer]:
    with own_redis() as server:
        yield server


class Killer:
    """A process that forks processes, which change a password and are killed."""

    def __init__(self, site: Site, folder: Path, redis_url: str) -> None:
        config = {
            "SQLALCHEMY_DATABASE_URI": site.app.config["SQLALCHEMY_DATABASE_URI"],
            "SESSION_KEY_PREFIX": site.prefix,
            "SESSION_REGISTRY_REDIS_PREFIX": f"records:{site.prefix}",
        }
        settings = {"folder": str(folder / "killed"), "records": site.records, "config": config}
        script = Path(__file__).with_name("killed.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), json.dumps(settings)],
            env={**os.environ, "TEST_REDIS_URL": redis_url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def change_password(
        self, browser: Browser, password: str, *, at: int | None = None, after: float | None = None
    ) -> dict[str, t.Any]:
        """Return what the browser receives; empty if the process was killed."""
        order = {"cookies": browser.cookies, "password": password, "at": at, "after": after}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return dict(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()


class Household:
    """Firefox, a phone and Chrome of one user, over many password changes."""

    def __init__(self, site: Site, killer: Killer) -> None:
        self.site = site
        self.killer = killer
        self.rounds = 0
        #: How often the kill came before the commit, after it, and too late.
        self.outcomes = {"before": 0, "after": 0, "too late": 0}
        self._sign_in()

    @property
    def killed(self) -> tuple[int, int]:
        """How often the process was killed before the commit, and after it."""
        return self.outcomes["before"], self.outcomes["after"]

    def _sign_in(self) -> None:
        self.browsers = [self.site.browser(name) for name in ("Firefox", "Phone", "Chrome")]
        for browser in self.browsers:
            assert browser.login(remember="1").status_code == 200

    def change_password(
        self, *, at: int | None = None, after: float | None = None
    ) -> dict[str, t.Any]:
        """Change the password, kill the process that does it, and check what must be true."""
        self.rounds += 1
        new = f"hash {self.rounds}"
        answer = self.killer.change_password(self.browsers[2], new, at=at, after=after)
        password = self._password()
        committed = password == new
        if answer:
            assert answer["status"] == 200
            assert committed
            assert self.site.browser("Chrome", **answer["cookies"]).is_signed_in
            self.outcomes["too late"] += 1
        else:
            self.outcomes["after" if committed else "before"] += 1
        # Chrome didn't get the response. Its cookies are a copy from before the change.
        if committed:
            remembered = [browser.copy(*REMEMBERED) for browser in self.browsers]
            assert [browser.name_shown for browser in self.browsers + remembered] == [None] * 6
        else:
            # Send the session cookie only: a remember cookie would make up for a lost session.
            sessions = [browser.copy("session") for browser in self.browsers]
            assert [browser.name_shown for browser in sessions] == ["ann"] * 3
        self._prune(fingerprint((password,)))
        if committed:
            self._sign_in()
        return answer

    def _password(self) -> str:
        """Return the password once the killed process's transaction is committed or rolled back."""
        with self.site.context():
            lock = sa.select(self.site.User).filter_by(name="ann").with_for_update()
            user = self.site.db.session.scalars(lock).one()
            self.site.db.session.rollback()
            return str(user.password_hash)

    def _prune(self, current: str | None) -> None:
        """Prune, then check that each entry belongs to an active session with this fingerprint."""
        with self.site.context():
            self.site.sessions.prune()
            ann = self.site.user("ann").id
        rows = {row.id: row for row in self.site.rows()}
        serializer = t.cast(t.Any, self.site.app.session_interface).serializer
        for key in self.site.redis.scan_iter(f"{self.site.prefix}*", count=10000):
            carried = serializer.decode(self.site.redis.get(key)).get("_user_session")
            if carried is None:
                continue
            id, generation = t.cast("tuple[t.Any, int]", read_marker(carried))
            row = rows[id]
            assert row.revoked_at is None
            assert (row.generation, row.store_id) == (generation, key.decode())
            # Bob's session is there too. He changed his password before all this.
            assert row.fingerprint == (current if row.user_id == ann else fingerprint(("another",)))
        assert not [row for row in rows.values() if row.revoked_at and not row.purged_at]


@pytest.fixture
def household(
    make_site: SiteFactory, redis_server: OwnServer, tmp_path: Path, database: str
) -> Iterator[Household]:
    site = make_site("redis", database, SESSION_REDIS=redis_client(redis_server.url, timeout=30))
    site.redis = redis_client(redis_server.url, timeout=30)
    killer = Killer(site, tmp_path, redis_server.url)
    try:
        yield Household(site, killer)
    finally:
        killer.close()


def test_killed_at_each_point(household: Household) -> None:
    """35: killed between any two steps, the change has happened completely or not at all."""
    points = household.change_password()["points"]
    assert points > 20
    for point in range(points):
        assert household.change_password(at=point) == {}
    print(f"{points} points: {household.outcomes}")
    assert min(household.killed) > 5


def test_killed_at_random_moments(household: Household) -> None:
    """35: the same holds for a kill within a step."""
    durations = sorted(household.change_password()["seconds"] for _ in range(5))
    seed = random.randrange(2**32)
    print(f"seed {seed}, a change takes {durations[2] * 1000:.1f} ms")
    choose = random.Random(seed)
    for _ in range(3 * RANDOM):
        household.change_password(after=choose.uniform(0, 1.1 * durations[2]))
        # Little follows the commit: all of the first ones may come before it.
        if sum(household.killed) >= RANDOM and all(household.killed):
            break
    print(household.outcomes)
    assert sum(household.killed) >= RANDOM
    assert all(household.killed)
