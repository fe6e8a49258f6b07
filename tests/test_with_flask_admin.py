"""An administrator changes and deletes users on Flask-Admin's pages (SCENARIO 59)."""

from __future__ import annotations

import typing as t

import pytest
import sqlalchemy as sa
from conftest import SiteFactory
from flask_admin import Admin
from flask_admin.actions import action
from flask_admin.contrib.sqla import ModelView
from flask_babel import Babel
from flask_login import current_user
from site_under_test import Browser, Site
from wtforms import PasswordField


def add_admin(site: Site, **options: t.Any) -> None:
    """Add pages on which 'root' may do everything with users."""

    class UserView(ModelView):
        form_columns = ("name", "note", "new_password")
        form_extra_fields = {"new_password": PasswordField()}

        def is_accessible(self) -> bool:
            return bool(current_user.is_authenticated and current_user.name == "root")

        def on_model_change(self, form: t.Any, model: t.Any, is_created: bool) -> None:
            if form.new_password.data:
                model.password_hash = f"hash of {form.new_password.data}"

        @action("delete", "Delete")
        def action_delete(self, ids: list[str]) -> None:
            # psycopg 3 doesn't compare text with numbers.
            super().action_delete([int(id) for id in ids])

    for name, value in options.items():
        setattr(UserView, name, value)
    Babel(site.app)  # Flask-Admin needs it if it is installed.
    admin = Admin(site.app)
    admin.add_view(UserView(site.User, site.db, endpoint="users", url="/admin/users"))


@pytest.fixture
def admin_site(make_site: SiteFactory, database: str) -> Site:
    site = make_site("files", database, users=("ann", "bob", "root"))
    add_admin(site)
    return site


def sign_in(site: Site) -> tuple[Browser, Browser, Browser]:
    """Sign in Ann in two browsers, remembered, and root in one."""
    browsers = site.browser("Firefox"), site.browser("Phone"), site.browser("Chrome")
    for browser, name in zip(browsers, ("ann", "ann", "root"), strict=True):
        browser.login(name, remember="1")
    return browsers


def key(site: Site, name: str) -> int:
    with site.context():
        return int(site.user(name).id)


def edit(browser: Browser, name: str, **form: t.Any) -> None:
    path = f"/admin/users/edit/?id={key(browser.site, name)}"
    assert browser.post(path, name=name, **form).status_code == 302


def test_new_password_of_another(admin_site: Site) -> None:
    """7, 59: all of that user's sessions end. The administrator's, and others', go on."""
    firefox, phone, chrome = sign_in(admin_site)
    bob = admin_site.browser("Bob")
    bob.login("bob")
    copies = [firefox.copy(), firefox.copy("remember_token", "remember_token_session")]
    edit(chrome, "ann", new_password="new")
    assert firefox.rejected == "password_changed"
    assert [browser.name_shown for browser in (firefox, phone, *copies)] == [None] * 4
    assert (chrome.name_shown, bob.name_shown) == ("root", "bob")
    assert {row.revoked_reason for row in admin_site.rows(user_id=key(admin_site, "ann"))} == {
        "password_changed"
    }
    firefox.login("ann", "hash of new")
    assert firefox.name_shown == "ann"


def test_own_new_password(admin_site: Site) -> None:
    """7, 59: the administrator stays signed in here, under a new id, and nowhere else."""
    _, _, chrome = sign_in(admin_site)
    elsewhere = admin_site.browser("Elsewhere")
    elsewhere.login("root", remember="1")
    copy = chrome.copy()
    edit(chrome, "root", new_password="new")
    assert [browser.name_shown for browser in (chrome, elsewhere, copy)] == ["root", None, None]
    chrome.lose("session")
    assert chrome.name_shown == "root"


def test_edit_without_a_new_password(admin_site: Site) -> None:
    """10, 59: neither an edit that is stored nor one that is refused signs out anyone."""
    firefox, phone, chrome = sign_in(admin_site)
    edit(chrome, "ann", note="likes tea")
    path = f"/admin/users/edit/?id={key(admin_site, 'ann')}"
    taken = chrome.post(path, name="bob", new_password="new")
    assert taken.status_code == 200
    names = [browser.name_shown for browser in (firefox, phone, chrome)]
    assert names == ["ann", "ann", "root"]
    with admin_site.context():
        assert admin_site.user("ann").note == "likes tea"
        assert admin_site.user("ann").password_hash == "hash of ann"


def delete_one(browser: Browser, name: str) -> t.Any:
    return browser.post("/admin/users/delete/", id=key(browser.site, name))


def delete_many(browser: Browser, *names: str) -> t.Any:
    ids = [key(browser.site, name) for name in names]
    return browser.post("/admin/users/action/", action="delete", rowid=ids)


@pytest.mark.parametrize("delete", [delete_one, delete_many])
def test_deleted_user(admin_site: Site, delete: t.Callable[..., t.Any]) -> None:
    """51, 59: the sessions end, and their entries are purged at once."""
    firefox, phone, chrome = sign_in(admin_site)
    copy = firefox.copy()
    assert delete(chrome, "ann").status_code == 302
    assert [browser.name_shown for browser in (firefox, phone, copy)] == [None, None, None]
    assert chrome.name_shown == "root"
    assert len(admin_site.signed_in_entries()) == 1
    reasons = [row.revoked_reason for row in admin_site.rows()]
    assert sorted(reasons, key=str) == [None, "deleted", "deleted"]


def test_several_deleted_users(admin_site: Site) -> None:
    """51, 59: this includes users who have never signed in, and the administrator."""
    firefox, _, chrome = sign_in(admin_site)
    assert delete_many(chrome, "ann", "bob", "root").status_code == 302
    assert (firefox.name_shown, chrome.name_shown) == (None, None)
    assert admin_site.signed_in_entries() == []


def enforce_foreign_keys(engine: sa.Engine) -> None:
    """Enforce foreign keys on SQLite. Otherwise, the rows keep the key of the deleted user."""

    @sa.event.listens_for(engine, "connect")
    def connect(connection: t.Any, _: t.Any) -> None:
        connection.execute("PRAGMA foreign_keys = ON")

    engine.dispose()


def test_users_deleted_by_one_statement(make_site: SiteFactory, database: str) -> None:
    """51, 59: 'fast_mass_delete' sends no event. The sessions are refused; prune purges them."""
    site = make_site("files", database, users=("ann", "bob", "root"))
    if database == "sqlite":
        with site.context():
            enforce_foreign_keys(site.db.engine)
    add_admin(site, fast_mass_delete=True)
    firefox, phone, chrome = sign_in(site)
    copy = firefox.copy()
    assert delete_many(chrome, "ann", "bob").status_code == 302
    assert [browser.name_shown for browser in (firefox, copy)] == [None, None]
    assert chrome.name_shown == "root"
    with site.context():
        site.sessions.prune()
        site.db.session.add(site.User(id=key(site, "root") - 2, name="ann", password_hash="x"))
        site.db.session.commit()
    assert phone.name_shown is None
    assert len(site.signed_in_entries()) == 1
