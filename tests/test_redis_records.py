"""User sessions in Redis: promises beyond those shared by all records."""

from __future__ import annotations

import datetime as dt
import typing as t
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from flask import Flask, flash, request
from flask_login import current_user, login_required, login_user
from flask_sqlalchemy import SQLAlchemy
from own_servers import OwnServer, own_redis, redis_client
from site_under_test import Site, days_ago
from test_faults import Broken
from test_users import make_class

from flask_session_registry import (
    ConfigurationError,
    RecordsError,
    SessionRegistry,
    UserSessionMixin,
    purge_failed,
    session_revoked,
)
from flask_session_registry._records.expiry import Expiry
from flask_session_registry._records.redis import RedisRecords, RedisUserSession

#: Each test chooses its own kind of records.
pytestmark = pytest.mark.table

#: In seconds.
TIMEOUT = 1.0


@pytest.fixture
def away(make_site: SiteFactory) -> Site:
    """Return a site whose user sessions are in Redis."""
    return make_site(records="redis")


@pytest.fixture
def told() -> Iterator[list[tuple[t.Any, ...]]]:
    """Yield the list of what 'session_revoked' has sent."""
    answers: list[tuple[t.Any, ...]] = []

    def receiver(app: t.Any, ids: t.Any, user_id: t.Any, reason: str) -> None:
        answers.append((len(ids), user_id, reason))

    with session_revoked.connected_to(receiver):
        yield answers


def records_of(site: Site) -> RedisRecords:
    return t.cast(RedisRecords, site.registry.records)


def test_no_table(away: Site) -> None:
    """No table is defined, and 'active' returns user sessions instead of rows."""
    away.browser().login()
    with away.context():
        assert "user_sessions" not in away.db.metadata.tables
        assert away.sessions.UserSession is RedisUserSession
        (one,) = away.sessions.active(away.user("ann"))
    assert isinstance(one, RedisUserSession)
    assert one.user_agent == "Firefox"


def test_current(away: Site) -> None:
    """'current' is this request's user session, with all its attributes."""

    @away.app.get("/current")
    def current() -> dict[str, t.Any]:
        one = away.sessions.current
        return {"agent": one.user_agent if one else None}

    firefox = away.browser("Firefox")
    assert firefox.get("/current").json == {"agent": None}
    firefox.login()
    assert firefox.get("/current").json == {"agent": "Firefox"}


# -- transactions ----------------------------------------------------------------------------------


def test_revocation_follows_the_commit(away: Site, told: list[t.Any]) -> None:
    """A revocation takes effect with the commit; the count is exact before that."""
    firefox = away.browser()
    firefox.login()
    with away.context():
        assert away.sessions.revoke_all(away.user("ann")) == 1
        assert away.active() == 1
        assert told == []
        away.db.session.commit()
    assert told == [(1, 1, "revoked")]
    assert firefox.rejected == "revoked"


def test_counted_once(away: Site, told: list[t.Any]) -> None:
    """12: sessions ended earlier in the transaction are neither counted nor signaled again."""
    for _ in range(3):
        away.browser().login()
    first, *_ = away.rows()
    with away.context():
        user = away.user("ann")
        assert away.sessions.revoke(first, reason="first")
        assert not away.sessions.revoke(first)
        assert away.sessions.revoke_all(user) == 2
        assert away.sessions.revoke_all(user) == 0
        away.db.session.commit()
        assert away.sessions.revoke_all(user) == 0
        away.db.session.commit()
    assert told == [(1, 1, "first"), (2, 1, "revoked")]


def test_everything_ends_after_a_new_password(away: Site, told: list[t.Any]) -> None:
    """14: 'revoke_all' after a password change also ends the session that made the change."""

    @away.app.post("/change-and-end")
    @login_required
    def change_and_end() -> dict[str, int]:
        user = current_user._get_current_object()
        user.password_hash = "new"
        away.db.session.flush()
        count = away.sessions.revoke_all(user)
        away.db.session.commit()
        return {"count": count}

    firefox, chrome = away.browser("Firefox"), away.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login()
    assert chrome.post("/change-and-end").json == {"count": 1}
    assert told == [(1, 1, "password_changed"), (1, 1, "revoked")]
    assert not firefox.is_signed_in
    assert not chrome.is_signed_in


def test_savepoints(away: Site, told: list[t.Any]) -> None:
    """5: after a rolled back savepoint, its sessions count again; nested savepoints count too."""
    away.browser().login()
    with away.context():
        session, user = away.db.session, away.user("ann")
        outer = session.begin_nested()
        inner = session.begin_nested()
        assert away.sessions.revoke_all(user) == 1
        inner.commit()
        assert away.sessions.revoke_all(user) == 0
        outer.rollback()
        with session.begin_nested():
            assert away.sessions.revoke_all(user, reason="again") == 1
        session.commit()
    assert told == [(1, 1, "again")]


def test_savepoint_rolled_back_with_the_password(away: Site) -> None:
    """5: if a savepoint with a password change is rolled back, every session continues."""

    @away.app.post("/try-password")
    @login_required
    def try_password() -> str:
        savepoint = away.db.session.begin_nested()
        current_user.password_hash = "new"
        away.db.session.flush()
        savepoint.rollback()
        away.user("bob").note = "written"
        away.db.session.commit()
        return "tried"

    firefox, chrome = away.browser("Firefox"), away.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login()
    before = chrome.cookies
    assert chrome.post("/try-password").text == "tried"
    assert firefox.is_signed_in
    assert chrome.is_signed_in
    assert chrome.cookies == before


def test_login_with_the_new_password_just_after_the_commit(away: Site) -> None:
    """28: a login with the new password, right after the commit, isn't taken for an old one."""
    firefox, late = away.browser("Firefox"), away.browser("Late")
    firefox.login()
    with away.context():
        records = records_of(away)
        ids_of = records.redis.ids_of

        def slowly(*arguments: t.Any, **options: t.Any) -> t.Any:
            vars(records.redis).pop("ids_of")
            late.post("/login", name="ann", password="new")
            return ids_of(*arguments, **options)

        away.user("ann").password_hash = "new"
        away.db.session.flush()
        records.redis.ids_of = slowly
        away.db.session.commit()
    assert firefox.rejected == "password_changed"
    assert late.is_signed_in
    assert away.active() == 1


def test_no_network_call_before_the_commit(away: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network call is made while the user's row is locked."""

    @away.app.post("/held-password")
    @login_required
    def held_password() -> str:
        user = current_user._get_current_object()
        with Broken(away, "user_sessions"):
            user.password_hash = "new"
            away.db.session.flush()
        away.db.session.commit()
        return "changed"

    chrome = away.browser()
    chrome.login()
    assert chrome.post("/held-password").status_code == 200
    assert chrome.is_signed_in


# -- while the records are down --------------------------------------------------------------------


def test_down_before_a_revocation(away: Site) -> None:
    """With the records down, a revocation raises an error at once and revokes nothing."""
    firefox = away.browser()
    firefox.login()
    with away.context():
        user = away.user("ann")
        with Broken(away, "user_sessions"), pytest.raises(RecordsError, match="Retry it"):
            away.sessions.revoke_all(user)
        with Broken(away, "user_sessions"), pytest.raises(RecordsError, match="Retry it"):
            away.sessions.revoke(uuid.uuid4())
        away.db.session.commit()
    assert firefox.is_signed_in


def test_down_after_the_commit_of_a_revocation(away: Site, told: list[t.Any]) -> None:
    """If the records fail after the commit, the commit raises an error and nothing is revoked.

    The database session stays usable.
    """
    firefox = away.browser()
    firefox.login()
    with away.context():
        user = away.user("ann")
        assert away.sessions.revoke_all(user) == 1
        user.note = "locked out"
        with Broken(away, "user_sessions"), pytest.raises(RecordsError, match="Retry it"):
            away.db.session.commit()
        assert away.user("ann").note == "locked out"
        assert told == []
        assert firefox.is_signed_in
        assert away.sessions.revoke_all(away.user("ann")) == 1
        away.db.session.commit()
    assert not firefox.is_signed_in
    assert told == [(1, 1, "revoked")]


def test_down_in_a_view_that_revokes(away: Site) -> None:
    """14: if the records fail in a view, the response is an error.

    The browser stays signed in.
    """

    @away.app.post("/end-all")
    @login_required
    def revoke() -> str:
        away.sessions.revoke_all(current_user)
        with Broken(away, "user_sessions"):
            away.db.session.commit()
        return "ended"

    away.app.config["PROPAGATE_EXCEPTIONS"] = False
    firefox = away.browser()
    firefox.login()
    assert firefox.post("/end-all").status_code == 500
    assert firefox.is_signed_in


@pytest.mark.parametrize("remember", [{}, {"remember": "1"}])
def test_down_when_the_password_is_committed(
    away: Site, caplog: pytest.LogCaptureFixture, remember: dict[str, str]
) -> None:
    """34: if the records fail, the password change stands and everyone is signed out.

    That includes this browser. The next prune deletes the entries.
    """

    @away.app.post("/doomed-password")
    @login_required
    def doomed_password() -> str:
        current_user.password_hash = "new"
        away.db.session.flush()
        with Broken(away, "user_sessions"):
            away.db.session.commit()
        return "changed"

    firefox, chrome = away.browser("Firefox"), away.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login(**remember)
    copies = [browser.copy() for browser in (firefox, chrome)]
    assert chrome.post("/doomed-password").text == "changed"
    assert "could not be done (ConnectionError)" in caplog.text
    for browser in (*copies, firefox, chrome):
        assert not browser.is_signed_in
    assert len(away.signed_in_entries()) == 2
    with away.context():
        assert tuple(away.sessions.prune()) == (2, 2, 0)
    assert away.signed_in_entries() == []
    assert chrome.post("/login", name="ann", password="new").status_code == 200
    assert chrome.is_signed_in


@pytest.mark.parametrize("how", ["inactive", "deleted"])
def test_down_when_a_user_goes(make_site: SiteFactory, how: str) -> None:
    """51: if the records fail at a deactivation or deletion, an error is raised.

    Otherwise, reactivating the user would silently revive the sessions.
    """

    def model(db: SQLAlchemy) -> type[t.Any]:
        active = sa_orm.mapped_column(sa.Boolean, default=True)
        return make_class(
            db, id=sa_orm.mapped_column(sa.Integer, primary_key=True), is_active=active
        )

    site = make_site(records="redis", model=model)
    site.browser().login()
    with site.context():
        user = site.user("ann")
        if how == "inactive":
            user.is_active = False
        else:
            site.db.session.delete(user)
        with Broken(site, "user_sessions"), pytest.raises(RecordsError):
            site.db.session.commit()
    assert site.rows()[0].revoked_at is None
    with site.context():
        site.sessions.prune()
    assert (site.rows()[0].revoked_at is None) is (how == "inactive")


def test_down_after_a_rehash(away: Site, caplog: pytest.LogCaptureFixture) -> None:
    """11: if the records fail after a rehash, the user is signed out, and the log says so."""
    firefox = away.browser()
    firefox.login()
    with away.context():
        user = away.user("ann")
        with away.sessions.same_credentials(user):
            user.password_hash = "another hash"
        with Broken(away, "user_sessions"):
            away.db.session.commit()
    assert "could not follow a new hash" in caplog.text
    assert not firefox.is_signed_in


def test_down_in_the_middle(make_site: SiteFactory, told: list[t.Any]) -> None:
    """36: if the records fail midway, what ended stays ended. A second call ends the rest."""
    site = make_site(records="redis")
    for _ in range(3):
        site.browser().login()
    client: t.Any = records_of(site).redis
    update = client.update
    done: list[t.Any] = []

    def once(ids: t.Any, values: t.Any, **options: t.Any) -> t.Any:
        if len(done) == 1:
            raise RecordsError
        done.append(ids)
        return update(ids, values, **options)

    with site.context(), pytest.MonkeyPatch.context() as context:
        context.setattr("flask_session_registry._records.base.BATCH", 2)
        site.sessions.revoke_all(site.user("ann"))
        context.setattr(client, "update", once)
        # The second call would mark the entries as purged.
        with pytest.raises(RecordsError):
            site.db.session.commit()
    assert len(site.rows(revoked_reason="revoked")) == 2
    with site.context():
        assert site.sessions.revoke_all(site.user("ann")) == 1
        site.db.session.commit()
        site.sessions.prune()
    assert site.signed_in_entries() == []


def test_purge_cannot_be_recorded(
    away: Site, told: list[t.Any], caplog: pytest.LogCaptureFixture
) -> None:
    """36: if the purge can't be recorded, all sessions have ended and are purged again later."""
    firefox = away.browser()
    firefox.login()

    def fail(*_: t.Any, **__: t.Any) -> int:
        raise RecordsError

    with away.context(), pytest.MonkeyPatch.context() as context:
        context.setattr(records_of(away).redis, "mark", fail)
        away.sessions.revoke_all(away.user("ann"))
        away.db.session.commit()
    assert told == [(1, 1, "revoked")]
    assert "Could not mark store entries as purged" in caplog.text
    assert not firefox.is_signed_in
    with away.context():
        assert tuple(away.sessions.prune()) == (0, 1, 0)


@pytest.mark.parametrize("fails_at", ["add", "of_users"])
def test_login_fails_midway(away: Site, fails_at: str) -> None:
    """38: a login that fails midway leaves no session that would count against the limit."""
    away.registry.settings.max_sessions = 1
    away.registry.settings.max_sessions_action = "reject"
    client: t.Any = records_of(away).redis
    done = getattr(client, fails_at)

    def reply_is_lost(*arguments: t.Any, **options: t.Any) -> t.Any:
        vars(client).pop(fails_at)
        done(*arguments, **options)
        raise RecordsError

    setattr(client, fails_at, reply_is_lost)
    firefox = away.browser()
    assert firefox.login().status_code == 503
    assert away.rows() == []
    assert firefox.login().status_code == 200
    assert firefox.is_signed_in


def test_password_changed_again(away: Site) -> None:
    """29: the follow-up of a first password change doesn't end sessions of the second password."""
    first, second = away.browser("First"), away.browser("Second")
    first.login()
    records = records_of(away)
    update_credentials = records.update_credentials

    def slowly(change: t.Any) -> None:
        vars(records).pop("update_credentials")
        update_credentials(change)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(second.post, "/login", name="ann", password="new").result()
            pool.submit(second.post, "/password", password="newer").result()

    records.update_credentials = slowly
    first.post("/password", password="new")
    assert second.is_signed_in
    assert not first.is_signed_in
    assert away.active() == 1


def test_database_is_down_after_the_commit(away: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """36: if the database fails after the commit, sessions with the new password stay active."""

    def down(_: t.Any) -> t.Any:
        raise sa.exc.OperationalError("", {}, Exception("down"))

    firefox, chrome = away.browser("Firefox"), away.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login()
    with monkeypatch.context() as context:
        context.setattr(away.registry.users, "credentials_of", down)
        chrome.post("/password", password="new")
    assert not firefox.is_signed_in
    assert chrome.is_signed_in


@pytest.mark.parametrize("way", ["renew", "recredit"])
@pytest.mark.parametrize("times", [1, 100])
def test_key_changes_meanwhile(away: Site, way: str, times: int) -> None:
    """33: if a parallel request changes the store key, no entry is left without a session."""

    @away.app.post("/sudo")
    def sudo() -> str:
        away.sessions.rotate()
        return "ok"

    firefox = away.browser()
    firefox.login()
    (row,) = away.rows()
    client: t.Any = records_of(away).redis
    update = client.update
    others: list[t.Any] = []

    def after_another(ids: t.Any, values: t.Any, **options: t.Any) -> t.Any:
        if "store_id" in values and len(others) < times:
            others.append(f"{away.prefix}{len(others)}")
            update([row.id], {"store_id": others[-1]}, where={})
        return update(ids, values, **options)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(client, "update", after_another)
        path = "/sudo" if way == "renew" else "/password"
        # If the key keeps changing, a rotation fails with a 503; a password change signs out.
        refused = way == "renew" and times > 1
        assert firefox.post(path, password="new").status_code == (503 if refused else 200)
    if times == 1:
        assert away.stale_keys() == [others[0]]
    assert firefox.is_signed_in is (times == 1 or refused)


def test_round_trips(away: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request takes one round trip to Redis. Keeping the key of before costs a rotation none."""

    @away.app.post("/rotate")
    def rotate() -> str:
        away.sessions.rotate()
        return "rotated"

    firefox = away.browser()
    firefox.login(remember="1")
    sent: list[t.Any] = []
    send = redis.connection.AbstractConnection.send_packed_command

    def note(connection: t.Any, command: t.Any, *arguments: t.Any, **options: t.Any) -> None:
        sent.append(command)
        send(connection, command, *arguments, **options)

    def count(visit: t.Callable[[], t.Any]) -> int:
        sent.clear()
        visit()
        return len(sent)

    monkeypatch.setattr(redis.connection.AbstractConnection, "send_packed_command", note)
    assert count(lambda: firefox.get("/me")) == 1
    # The check; the rotation reads, writes, and notes the keys.
    assert [count(lambda: firefox.post("/rotate")) for _ in range(3)] == [4, 4, 4]
    assert len(away.stale_keys()) == 3


@pytest.mark.parametrize("timeout", [None, dt.timedelta(days=1)])
def test_beginning_is_read_if_a_timeout_needs_it(
    make_site: SiteFactory, timeout: dt.timedelta | None
) -> None:
    """The check reads when a session began only if sessions have a maximum age."""
    site = make_site(records="redis", SESSION_REGISTRY_ABSOLUTE_TIMEOUT=timeout)
    site.browser().login()
    (row,) = site.rows()
    with site.context():
        loaded = records_of(site).load(row.id.hex)
    assert loaded is not None
    assert loaded.created_at == (None if timeout is None else row.created_at)


def test_request_between_the_commit_and_its_follow_up(away: Site) -> None:
    """2: a parallel request between the commit and its follow-up leaves the cookies alone."""

    @away.app.get("/flash")
    def flash_() -> str:
        if not current_user.is_authenticated:
            flash("Please sign in.")
        return "ok"

    chrome = away.browser("Chrome")
    chrome.login(remember="1")
    parallel = chrome.copy()
    records = records_of(away)
    update_credentials, answers = records.update_credentials, []

    def slowly(change: t.Any) -> None:
        vars(records).pop("update_credentials")
        with ThreadPoolExecutor(1) as pool:
            answers.append(pool.submit(parallel.get, "/flash").result())
        update_credentials(change)

    records.update_credentials = slowly
    chrome.post("/password", password="new")
    assert "remember_token" not in str(answers[0].headers.getlist("Set-Cookie"))
    assert chrome.is_signed_in


def test_later_savepoint(away: Site, told: list[t.Any]) -> None:
    """5: a later savepoint doesn't affect earlier revocations, whether released or rolled back."""
    away.browser().login()
    with away.context():
        session = away.db.session
        assert away.sessions.revoke_all(away.user("ann")) == 1
        session.begin_nested().rollback()
        session.begin_nested().commit()
        session.commit()
    assert told == [(1, 1, "revoked")]


def test_deleted_user(away: Site) -> None:
    """51: a user deleted by SQL is signed out and can't sign in."""

    @away.app.post("/doomed-login")
    def doomed_login() -> str:
        user = away.user("bob")
        login_user(user)
        away.db.session.execute(sa.delete(away.User).filter_by(name="bob"))
        away.db.session.commit()
        return "signed in"

    firefox = away.browser()
    firefox.login()
    with away.context():
        user = away.user("ann")
        away.db.session.execute(
            sa.delete(away.User).filter_by(name="ann"),
            execution_options={"synchronize_session": False},
        )
        assert away.sessions.active(user) == []
        away.db.session.commit()
    assert not firefox.is_signed_in
    assert away.browser().post("/doomed-login").status_code == 503


def test_commands_while_it_is_down(away: Site) -> None:
    """While the records are down, commands print an error without a traceback."""
    away.browser().login()
    runner = away.app.test_cli_runner()
    with Broken(away, "user_sessions"):
        for arguments in (
            ["sessions", "list", "1"],
            ["sessions", "prune"],
            ["revoke-sessions", "1", "--dry-run"],
        ):
            result = runner.invoke(args=arguments)
            assert result.exit_code == 1
            assert "Error: The user sessions can't be read (ConnectionError)." in result.stderr


def test_session_without_an_entry_is_scanned_once(make_site: SiteFactory) -> None:
    """A limited prune doesn't rescan ended sessions that have no entry."""
    site = make_site("cookie", records="redis")
    firefox = site.browser()
    firefox.login()
    firefox.post("/logout")
    with site.context():
        site.sessions.prune(10)
        assert not [one for batch in records_of(site).redis.due(days_ago(0)) for one in batch]
    site.change(ended=True, revoked_at=days_ago(31))
    with site.context():
        assert tuple(site.sessions.prune(10)) == (0, 0, 1)
    assert site.rows() == []


def test_command_while_it_is_down(away: Site) -> None:
    """16: if the records fail, the error says how many sessions have ended."""
    away.browser().login()
    runner = away.app.test_cli_runner()
    with Broken(away, "UPDATE user_sessions"):
        result = runner.invoke(args=["revoke-sessions", "--all", "--yes"])
    assert result.exit_code == 1
    assert "Stopped: 0 sessions ended so far" in result.stderr
    result = runner.invoke(args=["revoke-sessions", "--all", "--yes"])
    assert "1 session ended; 1 entry purged" in result.stdout


def test_current_session_was_rotated_meanwhile(away: Site) -> None:
    """29: a copy of the session that changes the password doesn't take it over."""

    @away.app.post("/late-password")
    @login_required
    def late_password() -> str:
        current_user.password_hash = "new"
        away.db.session.flush()
        away.change(generation=7)
        away.db.session.commit()
        return "changed"

    chrome = away.browser()
    chrome.login()
    assert chrome.post("/late-password").status_code == 200
    assert not chrome.is_signed_in
    assert away.rows()[0].revoked_reason == "password_changed"


@pytest.mark.parametrize("where", ["recredit", "renew", "touch", "late touch"])
def test_session_is_gone(away: Site, where: str, caplog: pytest.LogCaptureFixture) -> None:
    """A session that Redis dropped is signed out, whatever the request does with it."""

    @away.app.post("/doomed")
    @login_required
    def doomed() -> str:
        if where == "recredit":
            current_user.password_hash = "new"
            away.db.session.flush()
        elif where == "renew":
            away.sessions.rotate()
        if where != "late touch":
            away.forget_all()
        away.db.session.commit()
        return "done"

    @away.app.teardown_request
    def doom(_: BaseException | None) -> None:
        if where == "late touch" and request.path == "/doomed":
            away.forget_all()

    chrome = away.browser()
    chrome.login()
    if "touch" in where:
        away.change(last_seen_at=days_ago(1))
    assert chrome.post("/doomed").status_code == 200
    assert not chrome.is_signed_in
    assert not caplog.records


# -- a Redis that is really stopped, hung or emptied -----------------------------------------------


@pytest.fixture(scope="module")
def persistent_redis() -> Iterator[OwnServer]:
    with own_redis() as server:
        yield server


@pytest.fixture(scope="module")
def forgetful_redis() -> Iterator[OwnServer]:
    with own_redis(is_persistent=False) as server:
        yield server


def site_on(make_site: SiteFactory, server: OwnServer, store: str = "files") -> Site:
    client = redis_client(server.url, timeout=TIMEOUT)
    site = make_site(store, records="redis", SESSION_REGISTRY_REDIS=client)
    site.app.config["PROPAGATE_EXCEPTIONS"] = False
    return site


@pytest.fixture
def on_own(make_site: SiteFactory, persistent_redis: OwnServer) -> Iterator[Site]:
    yield site_on(make_site, persistent_redis)
    persistent_redis.restore()


def test_killed_and_started_again(on_own: Site, persistent_redis: OwnServer) -> None:
    """37: while Redis is down, requests get a 503 with cookies untouched.

    They are signed in again once it is back.
    """
    firefox, chrome = on_own.browser("Firefox"), on_own.browser("Chrome")
    firefox.login()
    chrome.login()
    with on_own.context():
        on_own.sessions.revoke(on_own.rows()[1].id)
        on_own.db.session.commit()
    persistent_redis.kill()
    before = firefox.cookies
    assert firefox.get("/me").status_code == 503
    assert firefox.cookies == before
    assert firefox.post("/logout").status_code == 503
    assert on_own.browser().login().status_code == 503
    persistent_redis.start()
    assert firefox.is_signed_in
    assert not chrome.is_signed_in


def test_hangs(on_own: Site, persistent_redis: OwnServer) -> None:
    """34: with Redis hung, requests fail at the client's timeout, and passwords can be changed."""
    firefox = on_own.browser()
    firefox.login()
    persistent_redis.hang()
    assert firefox.get("/me").status_code == 503
    with on_own.context():
        on_own.user("ann").password_hash = "new"
        on_own.db.session.commit()
    persistent_redis.go_on()
    assert firefox.rejected == "password_changed"


@pytest.mark.parametrize("store", ["cookie", "files"])
def test_restart_without_persistence(
    make_site: SiteFactory, forgetful_redis: OwnServer, store: str
) -> None:
    """Sessions whose records were lost are signed out, remembered or not."""
    site = site_on(make_site, forgetful_redis, store)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login(remember="1")
    chrome.login()
    forgetful_redis.kill()
    forgetful_redis.start()
    for browser in (firefox.copy("remember_token", "remember_token_session"), firefox, chrome):
        assert browser.rejected == "unknown"
    assert firefox.login().status_code == 200
    assert firefox.is_signed_in
    assert site.active() == 1


# -- maintenance -----------------------------------------------------------------------------------


def test_limited_prune_reads_only_due_sessions(away: Site) -> None:
    """Only a full prune ends sessions that an earlier password invalidates."""
    away.browser().login()
    with away.context():
        away.db.session.execute(sa.update(away.User).values(password_hash="by hand"))
        away.db.session.commit()
        assert tuple(away.sessions.prune(10)) == (0, 0, 0)
        assert tuple(away.sessions.prune()) == (1, 1, 0)
    assert away.rows()[0].revoked_reason == "expired"


def test_due_but_not_expired(away: Site) -> None:
    """A session that is due but not expired is rescheduled for its expiry."""
    firefox = away.browser()
    firefox.login()
    records = records_of(away)
    with away.context():
        (one,) = away.rows()
        records.redis.update([one.id], {"due_at": days_ago(1)}, where={})
        assert tuple(away.sessions.prune(10)) == (0, 0, 0)
    assert away.rows()[0].due_at > days_ago(-30)
    assert firefox.is_signed_in


def test_refused_login_leaves_no_session(away: Site) -> None:
    """50: a login refused by the limit leaves no session, active or ended."""
    away.registry.settings.max_sessions = 1
    away.registry.settings.max_sessions_action = "reject"
    vars(away.registry).pop("limit", None)
    firefox = away.browser()
    firefox.login()
    assert away.browser().login().status_code == 403
    assert len(away.rows()) == 1
    assert firefox.is_signed_in


def test_purge_fails(away: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """36: a failed purge stays pending, is signaled, and is retried by the next prune."""
    told: list[t.Any] = []

    def receiver(app: t.Any, **arguments: t.Any) -> None:
        told.append(arguments["ids"])

    firefox = away.browser()
    firefox.login()

    def fail(*_: t.Any, **__: t.Any) -> None:
        raise OSError("no store")

    with away.context(), monkeypatch.context() as context, purge_failed.connected_to(receiver):
        context.setattr(away.cache, "delete_many", fail)
        away.sessions.revoke_all(away.user("ann"))
        away.db.session.commit()
    assert told == [(away.rows()[0].id,)]
    assert not firefox.is_signed_in
    with away.context():
        assert tuple(away.sessions.prune(10)) == (0, 1, 0)


def test_expiry_at_the_end_of_time() -> None:
    """Expiry works with a lifetime longer than the calendar."""
    now = dt.datetime.now(dt.timezone.utc)
    expiry = Expiry(now, now - dt.timedelta(days=700_000), None, None)
    far = now.replace(year=9000)
    assert expiry.expires_at(far, far, None).year == 9999
    assert not expiry.has_expired(now, now, None)


# -- setup -----------------------------------------------------------------------------------------


def make(app: Flask | None = None, **config: t.Any) -> Flask:
    """Return an app with these settings and the registry."""
    app = app or Flask("away")
    app.config.update(SECRET_KEY="only for tests", SQLALCHEMY_DATABASE_URI="sqlite://", **config)
    SessionRegistry(app, SQLAlchemy(app))
    return app


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"RECORDS": "redis"}, "no client is set"),
        ({"RECORDS": "mongodb"}, "must be 'sql' or 'redis'"),
        ({"RECORDS": object()}, "must be 'sql' or 'redis'"),
        (
            {"RECORDS": "redis://localhost"},
            "must be 'redis', and 'SESSION_REGISTRY_REDIS' a client",
        ),
        (
            {"RECORDS": "redis", "REDIS": redis.Redis(), "UNREGISTERED": "adopt"},
            "must be kept in SQL",
        ),
        ({"REDIS_PREFIX": "{a}"}, "must be text without braces"),
        ({"REDIS_PREFIX": ""}, "must be text without braces"),
    ],
)
def test_wrong_settings(config: dict[str, t.Any], message: str) -> None:
    """58: a wrong setting raises an error at start-up."""
    with pytest.raises(ConfigurationError, match=message):
        make(**{f"SESSION_REGISTRY_{name}": value for name, value in config.items()})


@pytest.mark.parametrize(
    "options", [{"read_from_replicas": True}, {"load_balancing_strategy": "round robin"}]
)
def test_client_that_reads_from_replicas(options: dict[str, t.Any]) -> None:
    """A client that reads from replicas is refused: they might not know of a revocation yet."""

    client = redis.Redis()
    vars(client).update(options)
    with pytest.raises(ConfigurationError, match="reads from replicas"):
        make(SESSION_REGISTRY_RECORDS="redis", SESSION_REGISTRY_REDIS=client)


def test_client_of_a_replica() -> None:
    """A client of a replica from Sentinel is refused too."""
    client = redis.Sentinel([("127.0.0.1", 1)]).slave_for("sessions")
    with pytest.raises(ConfigurationError, match="reads from replicas"):
        make(SESSION_REGISTRY_RECORDS="redis", SESSION_REGISTRY_REDIS=client)


@pytest.mark.parametrize(
    "client", ["redis://localhost", 5, redis.asyncio.Redis(), redis.Redis().pipeline()]
)
def test_invalid_client(client: t.Any) -> None:
    """58: an invalid client raises an error at start-up."""
    with pytest.raises(ConfigurationError, match="not a synchronous client of redis-py"):
        make(SESSION_REGISTRY_RECORDS="redis", SESSION_REGISTRY_REDIS=client)


def test_session_model_without_a_table(make_site: SiteFactory) -> None:
    """A custom session model is refused, because there is no table."""
    site = make_site(init=False)
    site.app.config.update(SESSION_REGISTRY_RECORDS="redis")

    class Visit(UserSessionMixin):
        """Whether mapped or not."""

    with pytest.raises(ConfigurationError, match="'session_model' is for user sessions in a table"):
        SessionRegistry(site.app, session_model=Visit)


class Undeclared(sa.types.TypeDecorator[t.Any]):
    """A type that doesn't declare its Python type."""

    impl = sa.Integer
    cache_ok = True


@pytest.mark.parametrize("kind", [sa.Date, Undeclared])
def test_unsupported_user_key(make_site: SiteFactory, kind: t.Any) -> None:
    """26: a user key other than an integer, text or UUID is refused."""

    def model(db: SQLAlchemy) -> type[t.Any]:
        return make_class(db, id=sa_orm.mapped_column(kind, primary_key=True))

    with pytest.raises(ConfigurationError, match="not an integer, text or a UUID"):
        make_site(records="redis", model=model)


def test_client_of_the_session_store(make_site: SiteFactory) -> None:
    """Without a client of its own, the registry uses the session store's."""
    site = make_site("redis", records="redis")
    assert site.registry.redis.client is site.redis


# -- the doctor ------------------------------------------------------------------------------------


def examined(site: Site) -> list[str]:
    result = site.app.test_cli_runner().invoke(args=["sessions", "doctor"])
    return [
        line
        for line in result.output.splitlines()
        if "user sessions" in line or "database" in line or "Redis" in line
    ]


def test_doctor_on_redis(on_own: Site, persistent_redis: OwnServer) -> None:
    """The doctor warns if Redis may drop sessions or doesn't persist them, and reports it down."""
    client = on_own.registry.redis.client
    assert examined(on_own) == []
    client.config_set("maxmemory-policy", "volatile-lru")
    client.config_set("appendonly", "no")
    try:
        full, forgetful = examined(on_own)
    finally:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")
    assert "Warning: Redis may drop user sessions" in full
    assert "Warning: Redis writes no append-only file" in forgetful
    persistent_redis.kill()
    (down,) = examined(on_own)
    assert "Error: The user sessions can't be read (ConnectionError)." in down


def test_doctor_on_a_redis_that_hides_its_settings(
    on_own: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a managed Redis hides its settings, the doctor doesn't guess."""

    def refuse(*_: t.Any) -> None:
        raise redis.ResponseError("unknown command 'CONFIG'")

    monkeypatch.setattr(on_own.registry.redis.client, "config_get", refuse)
    assert examined(on_own) == []


def test_doctor_on_a_client_without_a_timeout(
    on_own: Site, persistent_redis: OwnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client without a timeout is a warning, as each request would hang with the server."""
    client = on_own.registry.redis
    host, port = (client.client.get_connection_kwargs()[name] for name in ("host", "port"))
    for_ever = redis.Redis(host=host, port=port, socket_timeout=None)
    monkeypatch.setattr(client, "client", for_ever)
    (told,) = examined(on_own)
    assert "Warning: The client of the user sessions would wait forever" in told
    for_ever.close()


def test_doctor_on_a_cluster(make_site: SiteFactory) -> None:
    """The doctor checks each node of a cluster."""
    site = make_site("cluster", records="redis")
    findings = examined(site)
    assert any("append-only" in line for line in findings)


def test_doctor_without_due_sessions(away: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """If due sessions can't be read, the doctor says so and continues."""

    def broken(*_: t.Any) -> t.Any:
        raise RecordsError

    monkeypatch.setattr(records_of(away).redis, "due", broken)
    result = away.app.test_cli_runner().invoke(args=["sessions", "doctor"])
    assert "Error: Could not check for overdue maintenance (RecordsError)." in result.output
    assert "The session store" not in result.output
