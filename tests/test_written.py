"""What a revocation has written counts as ended only as far as the commit has kept it.

Where a statement returns what it ends, nothing is read again, unless something may have come
between it and the commit.
"""

from __future__ import annotations

import typing as t
from contextlib import closing

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from flask_login import current_user, login_required
from site_under_test import Browser, Site
from test_password_change import begin_savepoints_on_sqlite

from flask_session_registry import session_revoked
from flask_session_registry._records import base as records

pytestmark = pytest.mark.table

#: Read only where the UPDATE doesn't return what it has ended.
READS_ENDED = {"sqlite": 1, "postgresql": 0, "mariadb": 1}


def statements_after(site: Site) -> list[str]:
    """Commit; return the statements on user sessions that follow, by their verbs."""
    with site.count_statements() as statements:
        site.db.session.commit()
    return [text.split()[0] for text in statements.texts if "user_sessions" in text]


class Story:
    """Firefox, and Chrome, which changes the password."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.told: list[t.Any] = []
        self.between: t.Callable[[], None]
        self.after: list[str] = []

        @site.app.post("/change")
        @login_required
        def change() -> str:
            current_user.note = "begun"
            site.db.session.flush()
            self.between()
            self.after = statements_after(site)
            return "changed"

        self.firefox, self.chrome = site.browser("Firefox"), site.browser("Chrome")
        for browser in (self.firefox, self.chrome):
            browser.login()
        self.cookies = self.chrome.cookies
        self.entries = site.entries().keys()

    def note(self, _: object, *, ids: t.Any, **__: object) -> None:
        self.told.extend(ids)

    def change(self, between: t.Callable[[], None]) -> list[str]:
        """Change the password, and do something before the commit; return what follows it."""
        self.between = between
        with session_revoked.connected_to(self.note, self.site.app):
            assert self.chrome.post("/change").text == "changed"
        return self.after

    def check_nothing_has_ended(self) -> None:
        assert self.told == []
        assert self.site.entries().keys() == self.entries
        assert self.chrome.cookies["session"] == self.cookies["session"]
        assert all(browser.is_signed_in for browser in (self.firefox, self.chrome))

    def check_firefox_has_ended(self) -> None:
        (ended,) = (row for row in self.site.rows() if row.revoked_at)
        assert self.told == [ended.id]
        assert ended.purged_at is not None
        assert len(self.site.entries()) == 1
        assert [browser.is_signed_in for browser in (self.firefox, self.chrome)] == [False, True]


@pytest.fixture
def story(make_site: SiteFactory, database: str) -> Story:
    site = make_site("files", database)
    if database == "sqlite":
        begin_savepoints_on_sqlite(site)
    return Story(site)


def set_password(value: str) -> None:
    current_user.password_hash = value
    sa_orm.object_session(current_user._get_current_object()).flush()


@pytest.mark.parametrize("way", ["connection", "text"])
def test_savepoint_behind_the_back_of_the_session(story: Story, way: str) -> None:
    """5: rolled back by the connection, or by a statement of the app: nobody is signed out."""
    session = story.site.db.session

    def between() -> None:
        if way == "connection":
            savepoint = session.connection().begin_nested()
            set_password("new")
            savepoint.rollback()
        else:
            session.execute(sa.text("SAVEPOINT ours"))
            set_password("new")
            session.execute(sa.text(" ROLLBACK TO SAVEPOINT ours"))
        session.expire_all()

    story.change(between)
    story.check_nothing_has_ended()


@pytest.mark.parametrize("is_undone", [False, True])
def test_connection_whose_transaction_goes_on(
    make_site: SiteFactory, database: str, is_undone: bool
) -> None:
    """A session bound to a connection commits nothing. What follows waits for what is committed."""
    site = make_site("files", database)
    firefox = site.browser()
    firefox.login()
    with site.context(), closing(site.db.engine.connect()) as connection:
        connection.begin()
        bound = sa_orm.Session(connection, join_transaction_mode="rollback_only")
        user = bound.scalar(sa.select(site.User).filter_by(name="ann"))
        assert site.sessions.revoke_all(user, session=bound) == 1
        bound.commit()
        assert len(site.entries()) == 1
        connection.rollback() if is_undone else connection.commit()
    assert firefox.is_signed_in is is_undone


def test_connection_is_followed_until_the_commit(make_site: SiteFactory, database: str) -> None:
    """A connection of the app's own may live as long as the process: nothing piles up on it."""
    site = make_site("files", database)
    firefox = site.browser()
    with site.context(), closing(site.db.engine.connect()) as connection:
        bound = sa_orm.Session(connection)
        for _ in range(3):
            firefox.login()
            user = bound.scalar(sa.select(site.User).filter_by(name="ann"))
            assert site.sessions.revoke_all(user, session=bound) == 1
            assert len(list(connection.dispatch.commit)) == 1
            bound.commit()
            assert not firefox.is_signed_in
        dispatch = connection.dispatch
        assert [*dispatch.before_cursor_execute, *dispatch.rollback] == [*dispatch.commit] == []


def test_app_that_spares_a_session(story: Story) -> None:
    """What the app itself does to the table after the change is kept, and nothing else told."""

    def between() -> None:
        set_password("new")
        model = story.site.sessions.UserSession
        story.site.db.session.execute(sa.update(model).values(revoked_at=None, revocation=None))

    story.change(between)
    assert story.told == []
    assert story.site.active() == 1
    assert len(story.site.entries()) == 2


def test_change_that_everything_else_follows(story: Story, database: str) -> None:
    """What doesn't write the table costs nothing: reading it, other tables, savepoints kept."""
    session = story.site.db.session

    def between() -> None:
        set_password("new")
        with session.begin_nested():
            current_user.note = "changed"
        assert len(story.site.sessions.active(current_user)) == 1

    after = story.change(between)
    assert after.count("SELECT") == READS_ENDED[database]
    story.check_firefox_has_ended()


@pytest.mark.parametrize("what", ["savepoint", "second change", "rehash", "revocation"])
def test_change_that_is_not_alone(story: Story, what: str) -> None:
    """Where more follows in the transaction, the rows are read after the commit, and are right."""
    site = story.site
    bob = site.browser("Bob")
    bob.login("bob")

    def between() -> None:
        set_password("new")
        if what == "savepoint":
            savepoint = site.db.session.begin_nested()
            site.db.session.execute(sa.update(site.User).values(note="undone"))
            savepoint.rollback()
        elif what == "second change":
            set_password("newer")
        elif what == "rehash":
            with site.sessions.same_credentials(current_user):
                set_password("rehashed")
        else:
            site.sessions.revoke_all(site.user("bob"))

    after = story.change(between)
    assert after.count("SELECT") > 1
    assert bob.is_signed_in is (what != "revocation")
    assert story.firefox.is_signed_in is False
    assert story.chrome.is_signed_in is True
    assert {row.id for row in site.rows() if row.revoked_at} == set(story.told)
    assert len(story.told) == len(set(story.told))


def test_revocation_of_oneself_in_the_same_transaction(story: Story) -> None:
    """14: a change after which everything is revoked leaves nobody signed in."""

    def between() -> None:
        set_password("new")
        story.site.sessions.revoke_all(current_user)

    story.change(between)
    assert len(set(story.told)) == len(story.told) == 2
    assert story.site.active() == 0
    assert not any(browser.is_signed_in for browser in (story.firefox, story.chrome))


@pytest.mark.parametrize("sessions", [10, 13])
def test_more_than_a_statement_hands_over(
    make_site: SiteFactory, database: str, monkeypatch: pytest.MonkeyPatch, sessions: int
) -> None:
    """40: so many are returned at most. If more end, they are read after the commit, in batches."""
    monkeypatch.setattr(records, "BATCH", 1)
    site = make_site("files", database)
    told: list[t.Any] = []

    def note(_: object, *, ids: t.Any, **__: object) -> None:
        told.append(ids)

    for number in range(sessions):
        site.browser(f"Browser {number}").login()
    with site.context(), session_revoked.connected_to(note, site.app):
        user = site.user("ann")
        assert site.sessions.revoke_all(user) == sessions
        after = statements_after(site)
    reads = after.count("SELECT")
    is_read = sessions > 10 or database != "postgresql"
    assert (reads > 0) is is_read
    assert [len(ids) for ids in told] == [1] * sessions
    assert {id for (id,) in told} == {row.id for row in site.rows()}
    assert all(row.purged_at for row in site.rows())
    assert site.entries() == {}


def test_marking_waits_for_no_user(make_site: SiteFactory) -> None:
    """One ended session is marked as purged although another transaction holds the user's row."""
    site = make_site("files", "postgresql")
    firefox = site.browser()
    firefox.login()
    with site.context():
        other = site.db.engine.connect()

        def hold(*_: object, **__: object) -> None:
            other.execute(sa.select(site.User.id).with_for_update())

        with session_revoked.connected_to(hold, site.app), closing(other):
            assert site.sessions.revoke_all(site.user("ann")) == 1
            site.db.session.commit()
    assert site.rows()[0].purged_at is not None
    assert not firefox.is_signed_in


def test_user_deleted_with_one_session(make_site: SiteFactory, database: str) -> None:
    """51: it is told and purged, as it was before the deletion took its user away."""
    site = make_site("files", database)
    told: list[t.Any] = []

    def note(_: object, **facts: t.Any) -> None:
        told.append((facts["ids"], facts["user_id"]))

    firefox: Browser = site.browser()
    firefox.login()
    (row,) = site.rows()
    with site.context(), session_revoked.connected_to(note, site.app):
        site.db.session.delete(site.user("ann"))
        site.db.session.commit()
    assert told == [((row.id,), 1)]
    assert site.entries() == {}
    assert site.rows()[0].purged_at is not None
