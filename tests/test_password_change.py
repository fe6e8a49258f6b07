"""Changing the password ends every other session (SCENARIOS 1 to 15)."""

from __future__ import annotations

import logging
import threading
import typing as t

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from flask import copy_current_request_context, flash, get_flashed_messages, request, session
from flask_login import current_user, login_required, login_user
from site_under_test import DATABASES, Browser, Site, user_class
from test_users import changing_ids

from flask_session_registry import RecordsError, session_revoked
from flask_session_registry._records import base as records


def sign_in_three(site: Site) -> tuple[Browser, Browser, Browser]:
    browsers = tuple(site.browser(name) for name in ("Firefox", "Chrome", "Phone"))
    for browser in browsers:
        assert browser.login("ann").status_code == 200
    return t.cast("tuple[Browser, Browser, Browser]", browsers)


@pytest.fixture
def revoked(site: Site) -> t.Iterator[list[dict[str, t.Any]]]:
    """Return what the signal has reported."""
    told: list[dict[str, t.Any]] = []

    def receiver(app: t.Any, **arguments: t.Any) -> None:
        told.append(arguments)

    with session_revoked.connected_to(receiver, site.app):
        yield told


def check_main_scenario(site: Site) -> None:
    firefox, chrome, phone = sign_in_three(site)
    rows = site.rows()
    assert [row.user_agent for row in rows] == ["Firefox", "Chrome", "Phone"]
    assert {row.ip_address for row in rows} == {"127.0.0.1"}
    assert all(row.created_at.utcoffset() is not None for row in rows)
    assert site.active() == 3
    copies = [browser.copy() for browser in (firefox, phone)]
    assert chrome.post("/password", password="new").status_code == 200
    assert chrome.is_signed_in
    assert not any(browser.is_signed_in for browser in (firefox, phone, *copies))
    assert site.active() == 1


def test_other_browsers_are_signed_out_on_every_store(store_site: Site) -> None:
    """1: Chrome changes the password and stays signed in. Firefox and the phone are signed out."""
    check_main_scenario(store_site)


def test_other_browsers_are_signed_out_on_every_database(database_site: Site) -> None:
    """1, on every database."""
    check_main_scenario(database_site)


def test_own_session_goes_on_under_a_new_id(store_site: Site) -> None:
    """2: a copy of Chrome's own cookies dies with the change. Its late request does no harm."""
    chrome = store_site.browser("Chrome")
    chrome.login("ann", remember="1")
    chrome.post("/cart", item="book")
    before = chrome.cookies
    thief = chrome.copy()
    assert thief.is_signed_in
    late = store_site.browser("Chrome", **before)
    chrome.post("/password", password="new")
    assert all(
        chrome.cookies[name] != before[name] for name in ("session", "remember_token_session")
    )
    answer = late.get("/me")
    assert answer.json["name"] is None
    assert not answer.headers.getlist("Set-Cookie")
    assert not thief.is_signed_in
    assert not chrome.copy("remember_token").is_signed_in
    assert chrome.is_signed_in
    assert chrome.get("/cart").json == {"cart": "book"}


def test_no_entry_of_a_revoked_session_is_left(store_site: Site) -> None:
    """3: after the commit only Chrome's entry is in the store."""
    _, chrome, _ = sign_in_three(store_site)
    stored = 0 if store_site.store == "cookie" else 3
    assert len(store_site.signed_in_entries()) == stored
    chrome.post("/password", password="new")
    assert len(store_site.signed_in_entries()) == min(stored, 1)
    assert len(store_site.entries()) == min(stored, 1)
    assert chrome.is_signed_in
    purged = [row.purged_at for row in store_site.rows() if row.revoked_at]
    assert all(moment is not None for moment in purged) is (store_site.store != "cookie")


class NotChangedError(Exception):
    pass


def change_and_raise(site: Site) -> None:
    current_user.password_hash = "new"
    site.db.session.flush()
    raise NotChangedError


def change_and_roll_back(site: Site) -> None:
    current_user.password_hash = "new"
    site.db.session.flush()
    site.db.session.rollback()


def reject_the_form(site: Site) -> None:
    return


def change_in_outer_rollback(site: Site) -> None:
    with site.db.session.begin_nested():
        current_user.password_hash = "new"
    site.db.session.rollback()


def change_in_savepoint_rollback(site: Site) -> None:
    current_user.note = "kept"
    savepoint = site.db.session.begin_nested()
    current_user.password_hash = "new"
    site.db.session.flush()
    savepoint.rollback()
    site.db.session.commit()


def change_and_abandon(site: Site) -> None:
    current_user.password_hash = "new"
    site.db.session.flush()
    site.db.session.remove()
    site.db.session.add(site.User(name="new one", password_hash="x"))
    site.db.session.commit()


def change_and_forget(site: Site) -> None:
    current_user.password_hash = "new"
    site.db.session.flush()


WITHOUT_EFFECT = (
    change_and_raise,
    change_and_roll_back,
    reject_the_form,
    change_in_outer_rollback,
    change_in_savepoint_rollback,
    change_and_abandon,
    change_and_forget,
)


@pytest.mark.parametrize("decorated", [False, True])
@pytest.mark.parametrize("what", WITHOUT_EFFECT)
@pytest.mark.parametrize("where", [("files", d) for d in DATABASES] + [("sqlalchemy", "sqlite")])
def test_change_that_is_not_committed_revokes_nothing(
    make_site: SiteFactory,
    where: tuple[str, str],
    what: t.Callable[[Site], None],
    decorated: bool,
) -> None:
    """4, 5, 15: raised, rejected, rolled back (also to a savepoint), abandoned or forgotten."""
    site = make_site(*where)
    site.app.config["PROPAGATE_EXCEPTIONS"] = False
    if where[1] == "sqlite":
        begin_savepoints_on_sqlite(site)

    def view() -> str:
        what(site)
        return "done"

    view = site.sessions.revoke_on_password_change(view) if decorated else view
    site.app.post("/change")(login_required(view))
    firefox, chrome, phone = sign_in_three(site)
    entries = site.entries().keys()
    old_id = chrome.cookies["session"]
    chrome.post("/change")
    assert site.entries().keys() == entries
    assert chrome.cookies["session"] == old_id
    assert all(browser.is_signed_in for browser in (firefox, chrome, phone))
    with site.context():
        assert site.user("ann").password_hash == "hash of ann"


def begin_savepoints_on_sqlite(site: Site) -> None:
    """Apply SQLAlchemy's recipe. Otherwise the driver commits when a savepoint is released."""
    with site.context():
        engine = site.db.engine

    @sa.event.listens_for(engine, "connect")
    def connect(connection: t.Any, _: t.Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: t.Any) -> None:
        connection.exec_driver_sql("BEGIN")

    engine.dispose()


def test_commit_that_fails_revokes_nothing(make_site: SiteFactory) -> None:
    """4: a deferred constraint makes the commit itself fail."""
    site = make_site("files", "postgresql")
    with site.context():
        site.db.session.execute(
            sa.text(
                "ALTER TABLE account ADD COLUMN friend int REFERENCES account (id)"
                " DEFERRABLE INITIALLY DEFERRED"
            )
        )
        site.db.session.commit()

    @site.app.post("/change")
    @login_required
    @site.sessions.revoke_on_password_change
    def change() -> str:
        current_user.password_hash = "new"
        site.db.session.execute(sa.text("UPDATE account SET friend = 999"))
        site.db.session.commit()
        return "never"

    site.app.config["PROPAGATE_EXCEPTIONS"] = False
    firefox, chrome, _ = sign_in_three(site)
    assert chrome.post("/change").status_code == 500
    assert firefox.is_signed_in
    assert chrome.is_signed_in
    assert len(site.signed_in_entries()) == 3


def test_forgotten_commit_warns(
    site: Site, chrome: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """15: a revocation that the view doesn't commit is rolled back, and a warning says so."""

    @site.app.post("/forget")
    def forget() -> str:
        site.sessions.revoke_all(current_user)
        return "done"

    chrome.login()
    with caplog.at_level(logging.WARNING, "flask_session_registry"):
        chrome.post("/forget")
    assert "was not committed by the end of the request 'forget'" in caplog.text
    assert chrome.is_signed_in


def test_revocation_without_effect_needs_no_commit(
    site: Site, chrome: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """15: if no session ended, there is nothing to commit and nothing to warn about."""

    @site.app.post("/nobody")
    def nobody() -> str:
        assert site.sessions.revoke_all(site.user("bob")) == 0
        site.user("ann").note = "pending"
        return "done"

    chrome.login("ann")
    chrome.post("/nobody")
    assert "was not committed" not in caplog.text


@pytest.mark.parametrize("order", ["stays signed out", "signed in before", "signed in after"])
def test_reset_by_somebody_who_is_not_signed_in(
    make_site: SiteFactory, database: str, order: str
) -> None:
    """6: a reset ends every session, except the one that the reset page itself opens."""
    site = make_site("files", database)

    @site.app.post("/reset")
    def reset() -> str:
        user = site.user("ann")
        if order == "signed in before":
            login_user(user)
        user.password_hash = "new"
        site.db.session.commit()
        if order == "signed in after":
            login_user(user)
        return "reset"

    browsers = sign_in_three(site)
    safari = site.browser("Safari")
    safari.post("/reset")
    assert not any(browser.is_signed_in for browser in browsers)
    assert safari.is_signed_in is (order != "stays signed out")
    assert site.active() == (order != "stays signed out")


def test_administrator_changes_the_password_of_another(
    site: Site, firefox: Browser, chrome: Browser
) -> None:
    """7: all of that user's sessions end. The administrator's stays."""

    @site.app.post("/admin")
    @login_required
    def admin() -> str:
        site.user("ann").password_hash = "new"
        site.db.session.commit()
        return "changed"

    firefox.login("ann")
    chrome.login("bob")
    id_before = chrome.cookies["session"]
    chrome.post("/admin")
    assert not firefox.is_signed_in
    assert chrome.name_shown == "bob"
    assert chrome.cookies["session"] == id_before


def test_change_without_a_request(store_site: Site) -> None:
    """8: in a shell, a command or a worker, all sessions end, and their entries are purged."""
    browsers = sign_in_three(store_site)
    with store_site.context():
        store_site.user("ann").password_hash = "new"
        store_site.db.session.commit()
    assert not store_site.signed_in_entries()
    assert not any(browser.is_signed_in for browser in browsers)


def test_change_by_hand_in_sql(database_site: Site) -> None:
    """9: an UPDATE outside the app's code ends all sessions, including the current one."""
    browsers = sign_in_three(database_site)
    with database_site.context():
        database_site.db.session.execute(sa.text("UPDATE account SET password_hash = 'x'"))
        database_site.db.session.commit()
        assert database_site.sessions.active(database_site.user("ann")) == []
    assert [browser.rejected for browser in browsers] == ["password_changed"] * 3


def test_bulk_update_ends_all(site: Site, firefox: Browser) -> None:
    """9: so does an ORM bulk update, which sends no event."""
    firefox.login()
    with site.context():
        site.db.session.execute(sa.update(site.User).values(password_hash="x"))
        site.db.session.commit()
    assert not firefox.is_signed_in


def test_edit_without_a_new_password_revokes_nothing(site: Site) -> None:
    """10: another attribute changes, or the password is set to its own value, expired or not."""

    @site.app.post("/edit")
    @site.sessions.revoke_on_password_change
    def edit() -> str:
        user = site.user("ann")
        user.note = "new note"
        user.password_hash = str(user.password_hash)
        site.db.session.commit()
        user.password_hash = "hash of ann"
        user.note = "newer note"
        site.db.session.commit()
        return "edited"

    firefox, chrome, phone = sign_in_three(site)
    cookies = chrome.cookies
    chrome.post("/edit")
    assert chrome.cookies == cookies
    assert all(browser.is_signed_in for browser in (firefox, chrome, phone))


@pytest.mark.parametrize("inside", [True, False])
def test_rehash_of_the_same_password(site: Site, firefox: Browser, inside: bool) -> None:
    """11: a new hash of the same password signs out no one, and a login with it succeeds."""

    @site.app.post("/rehash")
    def rehash() -> str:
        user = site.user("ann")
        with site.sessions.same_credentials(user):
            user.password_hash = "better hash"
            if inside:
                site.db.session.commit()
        site.db.session.commit()
        login_user(user)
        return "ok"

    firefox.login()
    chrome = site.browser("Chrome")
    chrome.post("/rehash")
    assert firefox.is_signed_in
    assert chrome.is_signed_in
    with site.context():
        site.user("ann").password_hash = "another password"
        site.db.session.commit()
    assert not firefox.is_signed_in
    assert not chrome.is_signed_in


def test_rehash_revives_nothing(site: Site, firefox: Browser) -> None:
    """A rehash doesn't update a session whose fingerprint is already outdated."""
    firefox.login()
    with site.context():
        site.db.session.execute(sa.text("UPDATE account SET password_hash = 'by hand'"))
        site.db.session.commit()
        user = site.user("ann")
        with site.sessions.same_credentials(user):
            user.password_hash = "better hash"
        site.db.session.commit()
    assert not firefox.is_signed_in


def test_rehash_that_fails_is_forgotten(site: Site, firefox: Browser) -> None:
    """After an exception within the block, a change counts as a change again."""
    firefox.login()
    with site.context():
        user = site.user("ann")
        with pytest.raises(NotChangedError), site.sessions.same_credentials(user):
            raise NotChangedError
        user.password_hash = "new"
        site.db.session.commit()
    assert not firefox.is_signed_in


def test_revoke_all_twice(site: Site, revoked: list[dict[str, t.Any]]) -> None:
    """12: count and ids are exactly those ended. The second call ends none and sends no signal."""
    sign_in_three(site)
    ids = {row.id for row in site.rows()}
    with site.context():
        user = site.user("ann")
        assert site.sessions.revoke_all(user, reason="stolen") == 3
        assert site.sessions.revoke_all(user) == 0
        assert revoked == []
        site.db.session.commit()
        assert site.sessions.revoke_all(user) == 0
        site.db.session.commit()
        user_id = user.id
    assert len(revoked) == 1
    assert set(revoked[0]["ids"]) == ids
    assert len(revoked[0]["ids"]) == 3
    assert (revoked[0]["user_id"], revoked[0]["reason"]) == (user_id, "stolen")


def test_signal_comes_with_the_change(site: Site, revoked: list[dict[str, t.Any]]) -> None:
    """12: the signal of a password change reports the other sessions, not the current one."""
    _, chrome, _ = sign_in_three(site)
    mine = next(row.id for row in site.rows() if row.user_agent == "Chrome")
    chrome.post("/password", password="new")
    assert len(revoked) == 1
    assert mine not in revoked[0]["ids"]
    assert (len(revoked[0]["ids"]), revoked[0]["reason"]) == (2, "password_changed")


def test_signal_names_only_what_a_savepoint_left(
    site: Site, revoked: list[dict[str, t.Any]]
) -> None:
    """5, 12: a session whose revocation a savepoint rolled back is neither purged nor signaled."""
    begin_savepoints_on_sqlite(site)
    firefox = site.browser("Firefox")
    firefox.login("ann")
    chrome = site.browser("Chrome")
    chrome.login("bob")
    with site.context():
        savepoint = site.db.session.begin_nested()
        site.sessions.revoke_all(site.user("ann"))
        savepoint.rollback()
        site.sessions.revoke_all(site.user("bob"))
        site.db.session.commit()
    assert [len(told["ids"]) for told in revoked] == [1]
    assert firefox.is_signed_in
    assert not chrome.is_signed_in


def test_receiver_that_fails_undoes_nothing(
    site: Site, firefox: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in a receiver is logged, and the commit succeeds."""

    def receiver(app: t.Any, **_: t.Any) -> None:
        raise NotChangedError

    firefox.login()
    with site.context(), session_revoked.connected_to(receiver, site.app):
        site.sessions.revoke_all(site.user("ann"))
        site.db.session.commit()
        assert site.user("ann").name == "ann"
    assert "'session-revoked' failed" in caplog.text
    assert not firefox.is_signed_in


def test_revoke_all_except_current_without_a_request(site: Site) -> None:
    """13: if there is no current session, all end."""
    browsers = sign_in_three(site)
    with site.context():
        assert site.sessions.revoke_all(site.user("ann"), except_current=True) == 3
        site.db.session.commit()
    assert not any(browser.is_signed_in for browser in browsers)


def test_revoke_all_except_current(store_site: Site) -> None:
    """The others end, this one goes on unchanged. With another user, all of theirs end."""

    @store_site.app.post("/others/<name>")
    def others(name: str) -> str:
        count = store_site.sessions.revoke_all(store_site.user(name), except_current=True)
        store_site.db.session.commit()
        return str(count)

    firefox, chrome, phone = sign_in_three(store_site)
    bob = store_site.browser("Bob")
    bob.login("bob")
    assert chrome.post("/others/ann").text == "2"
    assert [b.is_signed_in for b in (firefox, chrome, phone, bob)] == [False, True, False, True]
    assert chrome.post("/others/bob").text == "1"
    assert not bob.is_signed_in


@pytest.mark.parametrize("rollback", [False, True])
def test_revoke_all_of_oneself(store_site: Site, rollback: bool) -> None:
    """14: this browser is signed out too, and its entry isn't written back; a flash still is."""
    site = store_site

    @site.app.post("/everywhere")
    def everywhere() -> str:
        site.sessions.revoke_all(current_user)
        site.db.session.rollback() if rollback else site.db.session.commit()
        session["cart"] = "for nobody" if rollback else "after"
        flash("done")
        return "done"

    @site.app.get("/flashes")
    def flashes() -> list[t.Any]:
        return get_flashed_messages()

    firefox, chrome, _ = sign_in_three(site)
    copy = chrome.copy()
    chrome.post("/everywhere")
    assert chrome.is_signed_in is rollback
    assert firefox.is_signed_in is rollback
    assert copy.is_signed_in is rollback
    assert chrome.get("/flashes").json == ["done"]
    if site.store != "cookie":
        assert len(site.signed_in_entries()) == (3 if rollback else 0)


def test_revoke_all_of_oneself_writes_nothing_by_itself(store_site: Site) -> None:
    """14: if the view leaves the session empty, no entry is written at all."""
    site = store_site

    @site.app.post("/everywhere")
    def everywhere() -> str:
        site.sessions.revoke_all(current_user)
        site.db.session.commit()
        return "done"

    chrome = site.browser("Chrome")
    chrome.login(remember="1")
    chrome.post("/everywhere")
    assert not site.entries()
    assert "remember_token" not in chrome.cookies
    assert not chrome.is_signed_in


def test_revoke_on_another_session(site: Site, firefox: Browser) -> None:
    """'session' names the session whose transaction to join."""
    firefox.login()
    with site.context():
        other = site.db.session.session_factory()
        user = site.user("ann")
        assert site.sessions.revoke_all(user, session=other) == 1
        site.db.session.commit()
        assert firefox.is_signed_in
        other.commit()
        other.close()
    assert not firefox.is_signed_in


def test_revoke_joins_the_session_of_the_user(site: Site, firefox: Browser) -> None:
    """By default it joins the session that the user belongs to."""
    firefox.login()
    with site.context(), site.db.session.session_factory() as other:
        user = other.scalar(sa.select(site.User).filter_by(name="ann"))
        assert site.sessions.revoke_all(user) == 1
        other.commit()
    assert not firefox.is_signed_in


def test_commit_outside_of_an_app_context(site: Site, firefox: Browser) -> None:
    """A worker may commit after its app context has ended. The entries are purged regardless."""
    firefox.login()
    with site.context():
        engine = site.db.engine
        other = site.db.session.session_factory(bind=engine)
        site.sessions.revoke_all(other.get(site.User, 1), session=other)
    other.commit()
    other.close()
    assert not site.signed_in_entries()
    assert not firefox.is_signed_in


def test_two_changes_in_one_transaction(site: Site) -> None:
    """The current session survives each of them."""

    @site.app.post("/twice")
    @login_required
    def twice() -> str:
        for value in ("new", "newer"):
            current_user.password_hash = value
            site.db.session.flush()
        site.db.session.commit()
        current_user.password_hash = "newest"
        site.db.session.commit()
        return "changed"

    firefox, chrome, _ = sign_in_three(site)
    chrome.post("/twice")
    assert chrome.is_signed_in
    assert not firefox.is_signed_in


def test_watch_switched_off(make_site: SiteFactory) -> None:
    """Without watch or decorator, a change ends all sessions by their fingerprint."""
    site = make_site(SESSION_REGISTRY_REVOKE_ON_PASSWORD_CHANGE=False)
    browsers = sign_in_three(site)
    browsers[1].post("/password", password="new")
    assert not any(browser.is_signed_in for browser in browsers)


@pytest.mark.parametrize("arguments", [{}, {"reason": "chosen"}])
def test_decorator_is_the_watch_of_its_view(
    make_site: SiteFactory, arguments: dict[str, str]
) -> None:
    """With the setting off, the decorated view keeps its own session and ends the others."""
    site = make_site(SESSION_REGISTRY_REVOKE_ON_PASSWORD_CHANGE=False)
    decorate: t.Any = site.sessions.revoke_on_password_change

    @site.app.post("/change")
    @decorate(**arguments)
    def change() -> str:
        site.user("ann").password_hash = "new"
        site.db.session.commit()
        return "changed"

    firefox, chrome, phone = sign_in_three(site)
    chrome.post("/change")
    assert [b.is_signed_in for b in (firefox, chrome, phone)] == [False, True, False]
    reasons = {row.revoked_reason for row in site.rows()} - {None}
    assert reasons == {arguments.get("reason", "password_changed")}


def test_no_password_attribute(make_site: SiteFactory) -> None:
    """With PASSWORD_ATTRIBUTE = None nothing is watched or compared."""
    site = make_site(SESSION_REGISTRY_PASSWORD_ATTRIBUTE=None)
    firefox, chrome, _ = sign_in_three(site)
    chrome.post("/password", password="new")
    assert firefox.is_signed_in
    assert site.rows()[0].fingerprint is None


def test_several_password_attributes(make_site: SiteFactory) -> None:
    """A change of any listed attribute is a change, such as a factor added or removed.

    OWASP ASVS 5.0, 7.4.3.
    """
    site = make_site(SESSION_REGISTRY_PASSWORD_ATTRIBUTE=("password_hash", "note"))

    @site.app.post("/factor")
    @login_required
    def factor() -> str:
        current_user.note = request.form.get("secret")
        site.db.session.commit()
        return "changed"

    firefox, chrome, phone = sign_in_three(site)
    chrome.post("/factor", secret="of TOTP")
    assert chrome.is_signed_in
    assert not firefox.is_signed_in
    firefox.login()
    chrome.post("/factor")
    assert chrome.is_signed_in
    assert not firefox.is_signed_in
    phone.login()
    chrome.post("/password", password="new")
    assert chrome.is_signed_in
    assert not phone.is_signed_in


def test_password_that_starts_as_none(make_site: SiteFactory) -> None:
    """A user's first password ends the other sessions too."""
    site = make_site(SESSION_REGISTRY_PASSWORD_ATTRIBUTE="note")

    @site.app.post("/set")
    @login_required
    def set_() -> str:
        current_user.note = "first"
        site.db.session.commit()
        return "set"

    firefox, chrome, _ = sign_in_three(site)
    chrome.post("/set")
    assert chrome.is_signed_in
    assert not firefox.is_signed_in


def test_session_cleared_before_the_commit(store_site: Site) -> None:
    """The commit doesn't restore what the view has removed from the session."""

    @store_site.app.post("/leave")
    @login_required
    def leave() -> str:
        current_user.password_hash = "new"
        store_site.db.session.flush()
        session.clear()
        store_site.db.session.commit()
        return "left"

    chrome = store_site.browser("Chrome")
    chrome.login()
    copy = chrome.copy()
    chrome.post("/leave")
    assert not chrome.is_signed_in
    assert not copy.is_signed_in
    assert store_site.active() == 0


def test_session_cleared_before_everything_is_revoked(store_site: Site) -> None:
    """The same holds if the current session is among those that end."""

    @store_site.app.post("/leave")
    @login_required
    def leave() -> str:
        store_site.sessions.revoke_all(current_user)
        session.clear()
        store_site.db.session.commit()
        return "left"

    chrome = store_site.browser("Chrome")
    chrome.login()
    copy = chrome.copy()
    chrome.post("/leave")
    assert not chrome.is_signed_in
    assert not copy.is_signed_in


def test_user_deleted_right_after_the_change(site: Site, chrome: Browser) -> None:
    """A view may change the password and then delete the account."""

    @site.app.post("/delete")
    @login_required
    def delete() -> str:
        user = site.user("ann")
        user.password_hash = "new"
        site.db.session.commit()
        site.db.session.delete(user)
        site.db.session.commit()
        return "deleted"

    chrome.login()
    assert chrome.post("/delete").status_code == 200
    assert not chrome.is_signed_in


def test_large_revocation_goes_in_batches(
    site: Site, revoked: list[dict[str, t.Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """12: the signal is sent once per batch, and names each session once."""
    monkeypatch.setattr(records, "BATCH", 2)
    sign_in_three(site)
    site.browser("Bob").login("bob")
    with site.context():
        site.sessions.revoke_all(site.user("ann"))
        site.db.session.commit()
    assert [len(told["ids"]) for told in revoked] == [2, 1]
    told_ids = {id for told in revoked for id in told["ids"]}
    assert told_ids == {row.id for row in site.rows() if row.user_id == 1}
    assert len(site.signed_in_entries()) == 1


def test_change_in_the_context_of_another_app(make_site: SiteFactory) -> None:
    """A user of one app, changed in another app's context: the fingerprint ends all sessions."""
    one = make_site()
    other = make_site()
    firefox = one.browser()
    firefox.login()
    with one.context():
        engine = one.db.engine
    with other.context(), sa_orm.Session(engine) as plain:
        plain.scalars(sa.select(one.User)).first().password_hash = "new"
        plain.commit()
    assert not firefox.is_signed_in


def test_change_outside_of_any_app(site: Site, firefox: Browser) -> None:
    """A script with a plain SQLAlchemy session: the fingerprint ends all sessions."""
    firefox.login()
    with site.context():
        engine = site.db.engine
    with sa_orm.Session(engine) as plain:
        plain.scalars(sa.select(site.User)).first().password_hash = "new"
        plain.commit()
    assert firefox.rejected == "password_changed"


@pytest.mark.parametrize("sessions", [0, 1])
@pytest.mark.parametrize("end", ["raise", "forget"])
def test_view_that_never_asks_who_it_is(
    make_site: SiteFactory, database: str, sessions: int, end: str
) -> None:
    """4, 15: a session store in SQL must not commit what such a view has left uncommitted."""
    site = make_site("sqlalchemy", database)
    site.app.config["PROPAGATE_EXCEPTIONS"] = False

    @site.app.post("/change")
    def change() -> str:
        session["cart"] = "written"
        site.user("bob").password_hash = "new"
        site.db.session.flush()
        if end == "raise":
            raise NotChangedError
        return "forgotten"

    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    for _ in range(sessions):
        firefox.login("bob")
    chrome.post("/change")
    with site.context():
        assert site.user("bob").password_hash == "hash of bob"
    assert firefox.is_signed_in is bool(sessions)


def rehash_without_commit(site: Site, user: t.Any) -> None:
    with site.sessions.same_credentials(user):
        user.password_hash = "better hash"


def rehash_rolled_back(site: Site, user: t.Any) -> None:
    with site.sessions.same_credentials(user):
        user.password_hash = "better hash"
    site.db.session.rollback()


def change_in_rolled_back_savepoint(site: Site, user: t.Any) -> None:
    savepoint = site.db.session.begin_nested()
    user.password_hash = "new"
    site.db.session.flush()
    savepoint.rollback()
    site.db.session.commit()


@pytest.mark.parametrize(
    "what", [rehash_without_commit, rehash_rolled_back, change_in_rolled_back_savepoint]
)
def test_login_after_a_change_that_was_not_stored(
    make_site: SiteFactory, database: str, what: t.Callable[[Site, t.Any], None]
) -> None:
    """6, 11: the login succeeds, since the password it was opened with is still current."""
    site = make_site("files", database)
    if database == "sqlite":
        begin_savepoints_on_sqlite(site)

    @site.app.post("/sign-in")
    def sign_in() -> str:
        user = site.user("ann")
        what(site, user)
        login_user(user)
        return "signed in"

    firefox = site.browser()
    assert firefox.post("/sign-in").status_code == 200
    assert firefox.is_signed_in


def test_pending_change_is_not_a_rehash(site: Site, firefox: Browser) -> None:
    """11: a change made before 'same_credentials' is a change. Nested blocks keep the mark."""
    firefox.login()
    with site.context():
        user = site.user("ann")
        user.password_hash = "a real change"
        with site.sessions.same_credentials(user):
            pass
        site.db.session.commit()
    assert not firefox.is_signed_in
    firefox.login()
    with site.context():
        user = site.user("ann")
        with site.sessions.same_credentials(user):
            with site.sessions.same_credentials(user):
                pass
            user.password_hash = "better hash"
        site.db.session.commit()
    assert firefox.is_signed_in


def test_password_that_the_database_computes(make_site: SiteFactory, database: str) -> None:
    """With an SQL expression as the new value, the acting browser stays and the others end."""
    site = make_site("files", database)

    @site.app.post("/expression")
    @login_required
    def expression() -> str:
        current_user.password_hash = sa.func.lower("NEW HASH")
        site.db.session.commit()
        return "changed"

    firefox, chrome, _ = sign_in_three(site)
    chrome.post("/expression")
    assert chrome.is_signed_in
    assert not firefox.is_signed_in


def test_flagged_as_modified(site: Site) -> None:
    """10: an UPDATE that writes the previous value isn't a change."""

    @site.app.post("/touch")
    @login_required
    def touch() -> str:
        sa_orm.attributes.flag_modified(site.user("ann"), "password_hash")
        site.db.session.commit()
        return "touched"

    firefox, chrome, _ = sign_in_three(site)
    cookies = chrome.cookies
    chrome.post("/touch")
    assert chrome.cookies == cookies
    assert firefox.is_signed_in


@pytest.mark.parametrize("expire", [True, False])
def test_changing_id_through_another_database_session(
    make_site: SiteFactory, database: str, expire: bool
) -> None:
    """26: 'get_id()' changes with the password, in a session that this request doesn't use."""
    site = make_site("files", database, model=changing_ids)

    @site.login_manager.user_loader
    def load(id: str) -> t.Any:
        return site.db.session.scalar(sa.select(site.User).filter_by(uniquifier=id))

    @site.app.post("/elsewhere")
    @login_required
    def elsewhere() -> str:
        assert current_user.uniquifier
        site.db.session().expire_on_commit = expire
        with site.context():
            site.user("ann").password_hash = "new"
            site.db.session.commit()
        return "changed"

    chrome = site.browser("Chrome")
    chrome.login()
    chrome.post("/elsewhere")
    assert chrome.is_signed_in


def test_thread_that_goes_on_after_the_response(site: Site, chrome: Browser) -> None:
    """15: the end of the request doesn't roll back another thread's transaction."""
    may_go_on, done = threading.Event(), threading.Event()

    @site.app.post("/later")
    @login_required
    def later() -> str:
        begun = threading.Event()

        @copy_current_request_context
        def work() -> None:
            site.sessions.revoke_all(site.user("bob"))
            begun.set()
            assert may_go_on.wait(30)
            site.db.session.commit()
            done.set()

        threading.Thread(target=work).start()
        assert begun.wait(30)
        return "started"

    bob = site.browser("Bob")
    bob.login("bob")
    chrome.login("ann")
    chrome.post("/later")
    may_go_on.set()
    assert done.wait(30)
    assert not bob.is_signed_in
    assert chrome.is_signed_in


@pytest.mark.parametrize("what", ["change", "revoke"])
def test_login_before_the_commit(site: Site, chrome: Browser, what: str) -> None:
    """6: a user who signs in between the flush and the commit stays signed in."""

    @site.app.post("/switch")
    @login_required
    def switch() -> str:
        user = site.user("ann")
        if what == "change":
            user.password_hash = "new"
            site.db.session.flush()
        else:
            site.sessions.revoke_all(user)
        login_user(site.user("bob"))
        site.db.session.commit()
        return "switched"

    chrome.login("ann")
    copy = chrome.copy()
    chrome.post("/switch")
    assert chrome.name_shown == "bob"
    assert not copy.is_signed_in
    assert (site.active("ann"), site.active("bob")) == (0, 1)


def test_error_page_that_commits(site: Site, firefox: Browser, chrome: Browser) -> None:
    """4: an error page doesn't commit what the decorated view left behind when it raised."""

    @site.app.post("/change")
    @login_required
    @site.sessions.revoke_on_password_change
    def change() -> str:
        current_user.password_hash = "new"
        raise NotChangedError

    @site.app.errorhandler(NotChangedError)
    def failed(error: t.Any) -> t.Any:
        site.db.session.add(site.User(name="the audit log", password_hash="x"))
        site.db.session.commit()
        return "failed", 500

    firefox.login()
    chrome.login()
    assert chrome.post("/change").status_code == 500
    assert firefox.is_signed_in
    with site.context():
        assert site.user("ann").password_hash == "hash of ann"
        assert site.user("the audit log") is not None


def test_decorator_ends_with_its_view(make_site: SiteFactory) -> None:
    """With the setting off, the decorator doesn't cover changes made after its function."""
    site = make_site(SESSION_REGISTRY_REVOKE_ON_PASSWORD_CHANGE=False)

    @site.sessions.revoke_on_password_change
    def reject() -> None:
        return

    @site.app.post("/change")
    @login_required
    def change() -> str:
        reject()
        current_user.password_hash = "new"
        site.db.session.commit()
        return "changed"

    _, chrome, _ = sign_in_three(site)
    chrome.post("/change")
    assert chrome.rejected == "password_changed"


def test_failed_flush_leaves_nothing_behind(site: Site, chrome: Browser) -> None:
    """9: after a failed flush, a change made outside this request doesn't count as its own."""

    @site.app.post("/edit")
    @login_required
    def edit() -> str:
        user = site.user("ann")
        user.password_hash, user.name = "new", "bob"
        with pytest.raises(sa.exc.IntegrityError):
            site.db.session.flush()
        site.db.session.rollback()
        with site.db.engine.begin() as connection:
            connection.execute(sa.text("UPDATE account SET password_hash = 'by hand'"))
        user.note = "edited"
        site.db.session.commit()
        return "edited"

    chrome.login()
    chrome.post("/edit")
    assert chrome.rejected == "password_changed"


def test_rehash_that_is_left_uncommitted(store_site: Site) -> None:
    """11: it is rolled back on every store. Flask-Session's SQL store would commit it."""
    site = store_site

    @site.app.post("/rehash")
    def rehash() -> str:
        with site.sessions.same_credentials(current_user):
            current_user.password_hash = "rehashed"
        return "left open"

    chrome = site.browser("Chrome")
    chrome.login()
    assert chrome.post("/rehash").status_code == 200
    with site.context():
        assert site.user("ann").password_hash == "hash of ann"
    assert chrome.is_signed_in


# -- 76: event handlers of the app, and late commits -----------------------------------------------


def add_handler(model: type[t.Any], event: str, session: t.Any) -> None:
    """Add a handler that hashes a plain password attribute as late as possible."""

    def hash_password(user: t.Any) -> None:
        plain = vars(user).get("new_password")
        if plain is not None:
            user.password_hash = f"hash of {plain}"

    if event == "before_update":
        sa.event.listen(model, event, lambda _, __, user: hash_password(user))
    else:

        @sa.event.listens_for(session, event)
        def flush(session: t.Any, *_: t.Any) -> None:
            for user in session.dirty:
                hash_password(user)


@pytest.mark.parametrize("event", ["before_update", "before_flush"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_password_hashed_by_a_handler(make_site: SiteFactory, event: str, when: str) -> None:
    """76: registered before or after 'init_app', it ends the others, and this browser stays."""

    def model(db: t.Any) -> type[t.Any]:
        users = user_class(db)
        if when == "before":
            add_handler(users, event, db.session)
        return users

    site = make_site("files", model=model)
    if when == "after":
        add_handler(site.User, event, site.db.session)
    told: list[t.Any] = []

    @site.app.post("/profile")
    @login_required
    def profile() -> str:
        current_user.new_password, current_user.note = "new", "changed"
        site.db.session.commit()
        return "changed"

    def receiver(app: t.Any, *, ids: t.Any, **_: t.Any) -> None:
        told.extend(ids)

    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    with session_revoked.connected_to(receiver, site.app):
        chrome.post("/profile")
    (ended,) = (row for row in site.rows() if row.revoked_at)
    assert told == [ended.id]
    assert ended.revoked_reason == "password_changed"
    assert len(site.entries()) == 1
    assert (firefox.is_signed_in, chrome.is_signed_in) == (False, True)


@pytest.mark.parametrize("by", ["teardown", "store"])
@pytest.mark.parametrize("has_handler", [False, True])
def test_change_that_is_committed_after_the_answer(
    make_site: SiteFactory, by: str, has_handler: bool
) -> None:
    """76: the response is gone, so this browser's session ends with the others, and its entry too.

    If the view doesn't commit, a teardown function does, or a session store in SQL does so when it
    saves the session.
    """
    site = make_site("sqlalchemy" if by == "store" else "files")
    if has_handler:
        add_handler(site.User, "before_update", site.db.session)
    told: list[t.Any] = []

    @site.app.teardown_request
    def teardown(_: object) -> None:
        if by == "teardown" and request.path == "/profile":
            site.db.session.commit()

    @site.app.post("/profile")
    @login_required
    def profile() -> str:
        current_user.new_password, current_user.note = "new", "changed"
        if not has_handler:
            current_user.password_hash = "hash of new"
        session["cart"] = "book"
        return "changed"

    def receiver(app: t.Any, *, ids: t.Any, reason: str, **_: t.Any) -> None:
        told.extend((id, reason) for id in ids)

    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    with session_revoked.connected_to(receiver, site.app):
        assert chrome.post("/profile").status_code == 200
    assert sorted(told) == sorted((row.id, "password_changed") for row in site.rows())
    assert site.signed_in_entries() == []
    assert site.active() == 0
    assert (firefox.is_signed_in, chrome.is_signed_in) == (False, False)
    assert chrome.login(password="hash of new").status_code == 200
    assert chrome.is_signed_in


@pytest.mark.parametrize("is_down", [False, True])
def test_late_commit_whose_session_cannot_be_ended(
    site: Site, monkeypatch: pytest.MonkeyPatch, is_down: bool
) -> None:
    """76: if it has just ended, or the records are unavailable, its old generation is refused."""
    told: list[t.Any] = []

    @site.app.teardown_request
    def teardown(_: object) -> None:
        if request.path == "/profile":
            site.db.session.commit()

    @site.app.post("/profile")
    @login_required
    def profile() -> str:
        current_user.password_hash = "hash of new"
        return "changed"

    def end(*_: t.Any) -> bool:
        if is_down:
            raise RecordsError("Try again.")
        return False

    def receiver(app: t.Any, *, ids: t.Any, **_: t.Any) -> None:
        told.extend(ids)

    chrome = site.browser("Chrome")
    chrome.login()
    with site.context():
        monkeypatch.setattr(site.registry.records, "end", end)
    with session_revoked.connected_to(receiver, site.app):
        assert chrome.post("/profile").status_code == 200
    assert told == []
    assert not chrome.is_signed_in
