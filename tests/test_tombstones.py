"""The table beside that of the user sessions: stale keys and adoption blocks."""

from __future__ import annotations

import typing as t

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from flask_login import current_user, login_required
from site_under_test import Site, days_ago
from sqlalchemy.dialects import mysql

from flask_session_registry import ConfigurationError, SessionRegistry
from flask_session_registry.models import UserSessionMixin

pytestmark = pytest.mark.table


@pytest.fixture
def kept(make_site: SiteFactory, database: str) -> Site:
    site = make_site("files", database, SESSION_REGISTRY_UNREGISTERED="adopt")

    @site.app.post("/rotate")
    def rotate() -> str:
        site.sessions.rotate()
        return "rotated"

    return site


def test_user_sessions_are_nothing_else(kept: Site) -> None:
    """Whatever happens to a session, an app's own count() counts sessions."""
    firefox, chrome = kept.browser("Firefox"), kept.browser("Chrome")
    firefox.login(remember="1")
    chrome.login("bob")
    firefox.post("/rotate")
    firefox.post("/password", password="new")
    firefox.lose("session")
    assert firefox.is_signed_in
    with kept.context():
        kept.sessions.revoke_all(kept.user("bob"))
        kept.db.session.commit()
        model = kept.sessions.UserSession
        count = kept.db.session.scalar(sa.select(sa.func.count()).select_from(model))
        kinds = kept.db.session.scalars(sa.select(kept.tombstone.kind)).all()
    assert count == 2
    # Of the rotation and of the change; of the return; of both users.
    assert sorted(kinds) == [
        *["adoption_block"] * 2,
        "linked_key",
        *["stale_key"] * 2,
    ]


def test_rolled_back_change_keeps_no_key(kept: Site) -> None:
    """A password change that is rolled back leaves the session under its key."""

    @kept.app.post("/regret")
    @login_required
    def regret() -> str:
        current_user.password_hash = "new"
        kept.db.session.flush()
        kept.db.session.rollback()
        return "rolled back"

    firefox = kept.browser()
    firefox.login()
    (before,) = kept.rows()
    assert firefox.post("/regret").text == "rolled back"
    assert kept.stale_keys() == []
    assert kept.rows()[0].store_id == before.store_id
    assert firefox.is_signed_in


def test_key_that_another_request_has_changed(kept: Site) -> None:
    """The change keeps the key that the session has, not the one that its request knows."""
    firefox = kept.browser()

    @kept.app.post("/change")
    @login_required
    def change() -> str:
        assert current_user.name == "ann"
        kept.db.session.rollback()
        # As a parallel request of the same generation would do, back by "remember me" cookie.
        with kept.registry.users.transaction() as session:
            model = kept.sessions.UserSession
            session.execute(sa.update(model).values(store_id="session:another"))
        current_user.password_hash = "new"
        kept.db.session.commit()
        return "changed"

    firefox.login()
    assert firefox.post("/change").text == "changed"
    assert firefox.is_signed_in
    assert kept.stale_keys() == ["session:another"]


def test_two_changes_in_one_transaction(kept: Site) -> None:
    """The second one finds no key left, and keeps none."""

    @kept.app.post("/twice")
    @login_required
    def twice() -> str:
        for password in ("one", "two"):
            current_user.password_hash = password
            kept.db.session.flush()
        kept.db.session.commit()
        return "changed"

    firefox = kept.browser()
    firefox.login()
    before = kept.rows()[0].store_id
    assert firefox.post("/twice").text == "changed"
    assert firefox.is_signed_in
    assert kept.stale_keys() == [before]


def test_reason_of_an_ended_session(kept: Site) -> None:
    """A request with a key from before a rotation hears how the session has ended since."""
    firefox = kept.browser()
    firefox.login()
    late = firefox.copy()
    firefox.post("/rotate")
    firefox.post("/logout")
    assert late.rejected == "logged_out"


def test_prune_looks_at_a_window(kept: Site) -> None:
    """An automatic prune looks at the tombstones of so many sessions, and in the end at all."""
    browsers = [kept.browser() for _ in range(7)]
    for browser in browsers:
        browser.login()
        for _ in range(2):
            browser.post("/rotate")
    kept.change(rotated_at=days_ago(1))
    with kept.context():
        records, unseen = kept.registry.records, kept.registry.expiry(kept.app).unseen_since
        seen: list[t.Any] = []
        for _ in range(3):
            window = records.next_scan_window(3)
            found = records.find_stale_keys(lost_before=unseen, window=window)
            keys = [key for batch in found for key in batch]
            assert len(keys) == 6
            seen += keys
    assert len({key.id for key in seen}) == 14


def test_table_of_an_own_model(make_site: SiteFactory, database: str) -> None:
    """The tombstones of an app's own class are in a table named after it."""
    site = make_site("files", database, init=False)

    class Device(UserSessionMixin, site.db.Model):  # type: ignore[name-defined]
        __tablename__ = "devices"
        user_id: sa_orm.Mapped[int] = sa_orm.mapped_column(sa.ForeignKey("account.id"))

    assert "device_tombstones" in site.db.metadata.tables
    site.sessions = SessionRegistry(site.app, session_model=Device)
    with site.context():
        site.db.create_all()
        site.db.session.add(site.User(name="ann", password_hash="x"))
        site.db.session.commit()
    firefox = site.browser()
    firefox.login()
    before = site.rows()[0].store_id
    late = firefox.copy()
    firefox.post("/password", password="new")
    assert late.rejected == "rotated"
    assert site.stale_keys() == [before]
    assert Device.__tombstones__.__table__.name == "device_tombstones"


def test_name_is_taken(make_site: SiteFactory) -> None:
    """A table of that name stops the app, and says so."""
    site = make_site(init=False)
    sa.Table("device_tombstones", site.db.metadata, sa.Column("id", sa.Integer, primary_key=True))
    with pytest.raises(ConfigurationError, match="needs the name 'device_tombstones'"):
        type(
            "Device",
            (UserSessionMixin, site.db.Model),
            {
                "__tablename__": "devices",
                "user_id": sa_orm.mapped_column(sa.ForeignKey("account.id")),
            },
        )


def test_keys_are_compared_in_one_collation() -> None:
    """On MariaDB, the keys in both tables have the collation of an app's own table."""

    class Base(sa_orm.DeclarativeBase):
        pass

    class Visit(UserSessionMixin, Base):
        __tablename__ = "visits"
        __table_args__ = {"mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_polish_ci"}
        user_id: sa_orm.Mapped[int] = sa_orm.mapped_column()

    class ShortVisit(Visit):
        """In the same table, with the same tombstones."""

    assert set(Base.metadata.tables) == {"visits", "visit_tombstones"}
    table = Base.metadata.tables["visit_tombstones"]
    ddl = str(sa.schema.CreateTable(table).compile(dialect=mysql.dialect()))
    assert "store_id VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_polish_ci" in ddl
    assert "COLLATE" not in str(sa.schema.CreateTable(table).compile())
