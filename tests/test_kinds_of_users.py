"""User instances that an app constructs itself, users of another kind, and how they differ."""

from __future__ import annotations

import logging
import typing as t
from collections.abc import Callable

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask import Flask, request, session
from flask_login import (
    UserMixin,
    confirm_login,
    current_user,
    encode_cookie,
    login_user,
    logout_user,
)
from flask_sqlalchemy import SQLAlchemy
from site_under_test import DATABASES, Browser, Site, user_class
from test_faults import Broken

from flask_session_registry import ConfigurationError, SessionRegistry, UserError

SiteFactory = Callable[..., Site]


# -- constructed by the app --------------------------------------------------------------------


def add_login_by_hand(site: Site, **values: t.Any) -> None:
    @site.app.post("/by-hand")
    def by_hand() -> str:
        login_user(site.User(**({"id": 1} | values)), remember=True)
        return "signed in"


@pytest.mark.parametrize("database", DATABASES)
def test_login_of_a_transient_user(make_site: SiteFactory, database: str) -> None:
    """Flask-Login needs only 'get_id()'. The registry finds the user by the primary key."""
    store_site = make_site("files", database)
    add_login_by_hand(store_site)
    firefox = store_site.browser("Firefox")
    assert firefox.post("/by-hand").text == "signed in"
    assert firefox.name_shown == "ann"
    with store_site.context():
        ann = store_site.user("ann")
        assert store_site.sessions.revoke_all(store_site.User(id=ann.id)) == 1
        store_site.db.session.commit()
    assert not firefox.is_signed_in


def test_transient_user_with_another_password(site: Site, firefox: Browser) -> None:
    """The password was checked against the instance's hash. If that is stale, the login fails."""
    add_login_by_hand(site, password_hash="hash of before")
    firefox.post("/by-hand")
    assert firefox.rejected == "password_changed"
    with site.context():
        site.user("ann").password_hash = "hash of before"
        site.db.session.commit()
    firefox.post("/by-hand")
    assert firefox.is_signed_in


def test_transient_user_without_a_usable_password(site: Site, firefox: Browser) -> None:
    """A placeholder for a missing password is ignored."""
    add_login_by_hand(site, password_hash="")
    firefox.post("/by-hand")
    assert firefox.is_signed_in


def test_transient_user_after_the_password_was_seen(site: Site, firefox: Browser) -> None:
    """The password this request saw first counts, as with any other instance."""

    @site.app.post("/late")
    def late() -> str:
        ann = site.user("ann")
        with site.db.engine.begin() as other:
            other.execute(sa.update(site.User).values(password_hash="new"))
        site.db.session.rollback()
        login_user(site.User(id=ann.id, password_hash="new"))
        return "signed in"

    firefox.post("/late")
    assert firefox.rejected == "password_changed"


@pytest.mark.parametrize("key", [None, 4711])
def test_transient_user_without_a_row(site: Site, firefox: Browser, key: int | None) -> None:
    """The login fails, and the error says what is wrong."""
    site.app.config["PROPAGATE_EXCEPTIONS"] = True
    add_login_by_hand(site, id=key)
    if key is None:
        assert firefox.post("/by-hand").status_code == 503
    else:
        with pytest.raises(UserError, match=r"'User'.*made by hand, and its key is in no row"):
            firefox.post("/by-hand")
    assert not firefox.is_signed_in
    assert site.rows() == []
    with site.context(), pytest.raises(UserError, match="is not in the database yet"):
        site.sessions.revoke_all(site.User(id=key))


def test_user_loader_that_builds_users_by_hand(site: Site, firefox: Browser) -> None:
    """An app may construct all of its users itself."""
    add_login_by_hand(site)
    site.login_manager.user_loader(lambda key: site.User(id=int(key), name="by hand"))

    @site.app.post("/end")
    def end() -> str:
        count = site.sessions.revoke_all(current_user, except_current=True)
        site.db.session.commit()
        return str(count)

    chrome = site.browser("Chrome")
    for browser in (firefox, chrome):
        browser.post("/by-hand")
        assert browser.name_shown == "by hand"
    assert firefox.post("/end").text == "1"
    assert firefox.is_signed_in
    assert not chrome.is_signed_in


@pytest.mark.parametrize("kind", ["text", "float", "nonsense", "huge"])
def test_transient_user_with_a_key_of_another_type(
    make_site: SiteFactory, database: str, kind: str
) -> None:
    """'"1"' and '1.0' name user 1, as Flask-Login's ids are text. An invalid key names no user."""
    key: t.Any = {"text": "1", "float": 1.0, "nonsense": "abc", "huge": 2**80}[kind]
    site = make_site("cookie", database)
    add_login_by_hand(site, id=key)
    firefox = site.browser("Firefox")
    if kind in ("nonsense", "huge"):
        assert firefox.post("/by-hand").status_code == 500
        assert not firefox.is_signed_in
        with site.context(), pytest.raises(UserError, match="not in the database"):
            site.sessions.active(site.User(id=key))
        return
    assert firefox.post("/by-hand").text == "signed in"
    with site.context():
        (row,) = site.sessions.active(site.User(id=key))
        assert site.sessions.revoke(row.id, user=site.User(id=key))
        site.db.session.commit()
    assert not firefox.is_signed_in


@pytest.mark.table
def test_transient_user_while_the_database_is_down(site: Site, firefox: Browser) -> None:
    """An unavailable database doesn't mean that the user doesn't exist."""
    add_login_by_hand(site)
    with Broken(site, " account"):
        assert firefox.post("/by-hand").status_code == 503
    assert firefox.post("/by-hand").status_code == 200


def test_transient_user_with_an_old_hash_though_a_new_one_was_seen(
    site: Site, firefox: Browser
) -> None:
    """Both hashes must match the stored one: a cached instance might carry an older one."""

    @site.app.post("/cached")
    def cached() -> str:
        ann = site.user("ann")
        login_user(site.User(id=ann.id, password_hash=request.form["hash"]))
        return "signed in"

    firefox.post("/cached", hash="hash of before")
    assert firefox.rejected == "password_changed"
    firefox.post("/cached", hash="hash of ann")
    assert firefox.is_signed_in


@pytest.mark.table
@pytest.mark.parametrize("is_there", [True, False])
def test_adopted_user_who_was_built_by_hand(make_site: SiteFactory, is_there: bool) -> None:
    """An adopted session goes on, and can be rotated at once."""
    site = make_site(SESSION_REGISTRY_UNREGISTERED="adopt")
    site.login_manager.user_loader(lambda key: site.User(id=int(key)))

    @site.app.post("/change")
    def change() -> str:
        site.sessions.rotate()
        return "rotated" if current_user.is_authenticated else "nobody"

    firefox = site.browser("Firefox")
    with firefox.client.session_transaction() as opened:
        opened["_user_id"] = "1" if is_there else "4711"
    assert firefox.post("/change").text == ("rotated" if is_there else "nobody")


# -- another kind ------------------------------------------------------------------------------


class Robot(UserMixin):
    """A user that isn't in any table."""

    id = "robot"
    name = "robot"


@pytest.fixture(params=["mapped", "unmapped"])
def two_kinds(request: pytest.FixtureRequest, make_site: SiteFactory) -> Site:
    """Return a site where customers, or a robot, sign in beside the users and share their key."""
    return site_with_two_kinds(make_site, request.param)


def site_with_two_kinds(make_site: SiteFactory, kind: str, **config: t.Any) -> Site:
    site = make_site(init=False, **config)
    db = site.db

    class Customer(UserMixin, db.Model):  # type: ignore[name-defined]
        id: sa_orm.Mapped[int] = sa_orm.mapped_column(primary_key=True)
        name: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(50))

        def get_id(self) -> str:
            return f"customer {self.id}"

    sessions = site.sessions = SessionRegistry(site.app, user_model=site.User)

    @site.login_manager.user_loader
    def load(id: str) -> t.Any:
        if id == "robot":
            return Robot()
        name, _, key = id.rpartition(" ")
        return db.session.get(Customer if name else site.User, int(key))

    @site.app.post("/other")
    def other() -> str:
        user = db.session.scalar(sa.select(Customer)) if kind == "mapped" else Robot()
        session["seen"] = "before"
        login_user(user, remember="remember" in request.form)
        return "signed in"

    @site.app.post("/confirm")
    def confirm() -> str:
        confirm_login()
        return "confirmed"

    with site.context():
        db.create_all()
        db.session.add(site.User(name="ann", password_hash="hash of ann"))
        db.session.add(Customer(name="robot"))
        db.session.commit()
        assert sessions.UserSession
    return site


def test_other_kind_is_left_alone(two_kinds: Site) -> None:
    """It signs in, is remembered, confirms and signs out as without the registry, without a row."""
    firefox = two_kinds.browser("Firefox")
    assert firefox.post("/other", remember="1").status_code == 200
    assert firefox.name_shown == "robot"
    assert firefox.post("/cart", item="tea").status_code == 200
    assert firefox.post("/confirm").status_code == 200
    firefox.lose("session")
    assert firefox.name_shown == "robot"
    assert firefox.name_shown == "robot"
    firefox.post("/logout")
    assert firefox.name_shown is None
    assert firefox.rejected is None
    assert two_kinds.rows() == []


def test_other_kind_over_a_session(two_kinds: Site) -> None:
    """The previous user's session ends, under its old id too, and none of its data remains."""
    firefox = two_kinds.browser("Firefox")
    firefox.login("ann", remember="1")
    firefox.post("/cart", item="a secret of ann's")
    copy = firefox.copy()
    firefox.post("/other")
    assert firefox.name_shown == "robot"
    assert firefox.get("/cart").json == {"cart": None}
    assert not copy.is_signed_in
    (row,) = two_kinds.rows()
    assert row.revoked_at is not None
    before = firefox.copy()
    firefox.login("ann")
    assert firefox.name_shown == "ann"
    assert two_kinds.rows()[-1].revoked_at is None
    firefox.post("/other")
    assert firefox.name_shown == "robot"
    assert before.name_shown is None


def test_other_kind_is_remembered_after_one_of_ours(two_kinds: Site) -> None:
    """The previous user's "remember me" cookie doesn't prevent this one from being remembered."""
    firefox = two_kinds.browser("Firefox")
    firefox.login("ann", remember="1")
    firefox.post("/other", remember="1")
    firefox.lose("session")
    assert firefox.name_shown == "robot"
    firefox.login("ann", remember="1")
    firefox.lose("session")
    assert firefox.name_shown == "ann"
    firefox.post("/other")
    firefox.lose("session")
    assert firefox.name_shown is None


def test_session_id_is_another_one(make_site: SiteFactory) -> None:
    """A session id set by a stranger before the login is worthless."""
    site = site_with_two_kinds(make_site, "mapped")
    firefox = site.browser("Firefox")
    firefox.post("/cart", item="tea")
    before = firefox.cookies["session"]
    firefox.post("/other")
    assert firefox.cookies["session"] != before
    assert not site.browser("Stranger", session=before).is_signed_in


def test_session_of_the_other_kind_signs_in_none_of_ours(make_site: SiteFactory) -> None:
    """Its session signs in no user of ours, even if the user loader now returns one for it."""
    site = site_with_two_kinds(make_site, "mapped")
    firefox = site.browser("Firefox")
    firefox.post("/other", remember="1")
    site.login_manager.user_loader(lambda _: site.user("ann"))
    assert firefox.name_shown is None
    assert firefox.rejected == "unregistered"
    firefox.lose("session")
    assert not firefox.is_signed_in


def test_lone_remember_cookie_of_ours_stays_worth_nothing(two_kinds: Site) -> None:
    """Our remember cookie alone is still worthless where another kind of user exists."""
    firefox = two_kinds.browser("Firefox")
    firefox.login("ann", remember="1")
    firefox.lose("session", "remember_token_session")
    assert not firefox.is_signed_in


@pytest.mark.table
def test_other_kind_from_before_the_installation(make_site: SiteFactory) -> None:
    """If earlier sessions are adopted, those of the other kind go on too, without a row."""
    site = site_with_two_kinds(make_site, "mapped", SESSION_REGISTRY_UNREGISTERED="adopt")
    firefox = site.browser("Firefox")
    with firefox.client.session_transaction() as opened:
        opened["_user_id"] = "customer 1"
    assert firefox.name_shown == "robot"
    assert firefox.name_shown == "robot"
    assert site.rows() == []


@pytest.mark.table
def test_other_kind_is_remembered_from_before_the_installation(make_site: SiteFactory) -> None:
    """Its remember cookie never had a binding cookie, and doesn't need one."""
    site = site_with_two_kinds(make_site, "mapped", SESSION_REGISTRY_UNREGISTERED="adopt")
    with site.context():
        cookie = encode_cookie("customer 1")
    firefox = site.browser("Firefox", remember_token=cookie)
    assert firefox.name_shown == "robot"
    assert "remember_token" in firefox.cookies
    assert site.rows() == []


def test_other_kind_signs_in_again(two_kinds: Site) -> None:
    """Its session data survives."""
    firefox = two_kinds.browser("Firefox")
    firefox.post("/other")
    firefox.post("/cart", item="tea")
    firefox.post("/other")
    assert firefox.get("/cart").json == {"cart": "tea"}


@pytest.mark.parametrize("kind", ["mapped", "unmapped"])
def test_unmapped_kind_is_logged(
    make_site: SiteFactory, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An unmapped class is logged once, because it might stand for one of the users."""
    site = site_with_two_kinds(make_site, kind)
    for _ in range(2):
        site.browser("Firefox").post("/other")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == (1 if kind == "unmapped" else 0)
    assert all("A 'Robot' has signed in" in one for one in told)


def test_late_login_of_the_other_kind(two_kinds: Site) -> None:
    """It isn't recorded, so the end of the session before it doesn't undo it."""
    firefox = two_kinds.browser("Firefox")
    firefox.login("ann")
    late = firefox.copy()
    firefox.post("/logout")
    assert late.post("/other").status_code == 200
    assert late.name_shown == "robot"


def test_unknown_class_where_none_was_named(site: Site, firefox: Browser) -> None:
    """The class might stand for one of the users. The login fails; the error says what to pass."""

    @site.app.post("/robot")
    def robot() -> str:
        login_user(Robot())
        return "beep"

    site.app.config["PROPAGATE_EXCEPTIONS"] = True
    with pytest.raises(UserError, match=r"pass|'SessionRegistry\(user_model=User\)'"):
        firefox.post("/robot")


# -- where the password is ---------------------------------------------------------------------


def family(db: SQLAlchemy, *, is_joined: bool) -> tuple[type[t.Any], type[t.Any]]:
    """Return a class of Flask-Login users without a password, and a subclass with one."""

    class Person(UserMixin, db.Model):  # type: ignore[name-defined]
        id: sa_orm.Mapped[int] = sa_orm.mapped_column(primary_key=True)
        kind: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(20))
        name: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(50))
        __mapper_args__: t.ClassVar[dict[str, t.Any]] = {
            "polymorphic_on": "kind",
            "polymorphic_identity": "person",
        }

    attributes: dict[str, t.Any] = {
        "password_hash": sa_orm.mapped_column(sa.String(100), nullable=True),
        "__mapper_args__": {"polymorphic_identity": "user"},
    }
    if is_joined:
        attributes["__tablename__"] = "user"
        attributes["id"] = sa_orm.mapped_column(sa.ForeignKey("person.id"), primary_key=True)
    return Person, type("User", (Person,), attributes)


@pytest.mark.table
@pytest.mark.parametrize("is_joined", [False, True])
def test_password_on_a_subclass(make_site: SiteFactory, database: str, is_joined: bool) -> None:
    """The class passed as 'user_model' is the one that counts."""

    def model(db: SQLAlchemy) -> type[t.Any]:
        made.append(family(db, is_joined=is_joined))
        return made[0][1]

    made: list[tuple[type[t.Any], type[t.Any]]] = []
    site = make_site("cookie", database, model=model, init=False)
    site.sessions = SessionRegistry(site.app, user_model=site.User)
    with site.context():
        site.db.create_all()
        site.db.session.add(site.User(name="ann", password_hash="hash of ann"))
        site.db.session.commit()
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login()
    assert firefox.post("/password", password="new").text == "changed"
    assert firefox.is_signed_in
    assert chrome.rejected == "password_changed"


def test_password_on_a_subclass_that_is_not_named() -> None:
    """The error says which class to pass."""
    app = Flask("app")
    app.config.update(SECRET_KEY="x", SQLALCHEMY_DATABASE_URI="sqlite://")
    person, user = family(SQLAlchemy(app), is_joined=False)
    with pytest.raises(ConfigurationError, match=r"'User', which inherits from it, does.*=User'"):
        SessionRegistry(app)
    assert issubclass(user, person)


def test_password_on_the_base_of_what_is_named(make_site: SiteFactory) -> None:
    """Instances of its base class sign in too, and aren't another kind."""

    def model(db: SQLAlchemy) -> type[t.Any]:
        base = user_class(db)
        made.append(type("Admin", (base,), {}))
        return base

    made: list[type[t.Any]] = []
    site = make_site(model=model, init=False)
    site.sessions = SessionRegistry(site.app, user_model=made[0])
    assert site.registry.credentials.user_model is site.User


@pytest.mark.table
@pytest.mark.parametrize("names", [None, "secret", ("secret", "secret_again")])
def test_synonym(make_site: SiteFactory, names: t.Any) -> None:
    """A synonym for the password stands for the column behind it."""

    def model(db: SQLAlchemy) -> type[t.Any]:
        class User(UserMixin, db.Model):  # type: ignore[name-defined]
            __tablename__ = "account"
            id: sa_orm.Mapped[int] = sa_orm.mapped_column(primary_key=True)
            name: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(50))
            _hidden: sa_orm.Mapped[str] = sa_orm.mapped_column("pw", sa.String(100))
            secret = sa_orm.synonym("_hidden")
            secret_again = sa_orm.synonym("secret")
            password = sa_orm.synonym("_hidden")
            password_hash = sa_orm.synonym("_hidden")

        return User

    setting = {} if names is None else {"SESSION_REGISTRY_PASSWORD_ATTRIBUTE": names}
    site = make_site(model=model, **setting)
    assert site.registry.credentials.names == ("_hidden",)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login()
    firefox.post("/password", password="new")
    assert firefox.is_signed_in
    assert not chrome.is_signed_in


# -- how 'get_id()' names them -----------------------------------------------------------------


def user_with_token(db: SQLAlchemy) -> type[t.Any]:
    """Return a user class whose 'get_id()' isn't the primary key."""
    model = user_class(db, token=sa_orm.mapped_column(sa.String(50), default="first"))
    model.get_id = lambda self: self.token
    return model


@pytest.fixture
def by_token(make_site: SiteFactory) -> Site:
    site = make_site(model=user_with_token, users=("ann",))
    site.login_manager.user_loader(
        lambda token: site.db.session.scalar(sa.select(site.User).filter_by(token=token))
    )

    @site.app.post("/token")
    def token() -> str:
        site.user("ann").token = "second"
        site.db.session.commit()
        return "changed"

    @site.app.post("/note")
    def note() -> str:
        site.user("ann").note = "a note"
        site.db.session.commit()
        return "noted"

    return site


def test_token_that_is_changed_alone(by_token: Site) -> None:
    """The old token signs in no one: the rows end at once and are no longer listed."""
    firefox, chrome = by_token.browser("Firefox"), by_token.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login()
    assert firefox.post("/note").text == "noted"
    assert by_token.active() == 2
    assert by_token.browser("Stranger").post("/token").text == "changed"
    assert by_token.active() == 0
    assert {row.revoked_reason for row in by_token.rows()} == {"id_changed"}
    assert by_token.signed_in_entries() == []
    assert firefox.rejected == "id_changed"


def test_token_that_is_changed_by_sql(by_token: Site) -> None:
    """The session ends at its next request."""
    firefox, chrome = by_token.browser("Firefox"), by_token.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login()
    with by_token.context():
        by_token.db.session.execute(sa.update(by_token.User).values(token="second"))
        by_token.db.session.commit()
    assert firefox.rejected == "id_changed"
    assert by_token.active() == 1
    assert not chrome.is_signed_in
    assert by_token.active() == 0


def test_get_id_that_fails(by_token: Site, caplog: pytest.LogCaptureFixture) -> None:
    """If 'get_id()' fails on a detached instance, nothing can be concluded, and nothing breaks."""
    firefox = by_token.browser("Firefox")
    firefox.login()
    by_token.User.get_id = lambda self: (sa_orm.object_session(self) and self.token) or 1 / 0
    with caplog.at_level(logging.ERROR):
        assert by_token.browser("Stranger").post("/token").text == "changed"
    assert caplog.records == []
    assert not firefox.is_signed_in


def test_what_else_get_id_reads(make_site: SiteFactory) -> None:
    """An unloaded attribute, or a dependency on another row, doesn't look like a change."""

    def model(db: SQLAlchemy) -> type[t.Any]:
        user = user_with_token(db)
        user.tenant_id = sa_orm.mapped_column(sa.ForeignKey("tenant.id"), nullable=True)
        tenant = {"__tablename__": "tenant", "id": sa_orm.mapped_column(primary_key=True)}
        tenant["__annotations__"] = {"id": sa_orm.Mapped[int]}
        user.tenant = sa_orm.relationship(type("Tenant", (db.Model,), tenant))
        user.get_id = lambda self: f"{self.tenant.id if self.tenant else '-'}:{self.token}"
        return user

    site = make_site(model=model, users=("ann",))
    site.login_manager.user_loader(
        lambda name: site.db.session.scalar(
            sa.select(site.User).filter_by(token=name.partition(":")[2])
        )
    )
    firefox = site.browser("Firefox")
    firefox.login()
    with site.context():
        ann = site.db.session.scalar(sa.select(site.User).options(sa_orm.load_only(site.User.name)))
        ann.note = "a note"
        site.db.session.commit()
        ann.token = "first"
        site.db.session.commit()
    assert firefox.is_signed_in


@pytest.mark.parametrize("between", ["flush", "commit"])
@pytest.mark.parametrize("first", ["token", "password"])
def test_token_and_password_are_changed_one_by_one(
    by_token: Site, first: str, between: str
) -> None:
    """The browser that changes them stays signed in and remembered. The others are signed out."""

    @by_token.app.post("/both")
    def both() -> str:
        user = current_user._get_current_object()
        for what in sorted(["token", "password"], reverse=first == "token"):
            if what == "token":
                user.token = "second"
            else:
                user.password_hash = "new"
            getattr(by_token.db.session, between)()
        by_token.db.session.commit()
        return "changed"

    firefox, chrome = by_token.browser("Firefox"), by_token.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login(remember="1")
    assert firefox.post("/both").text == "changed"
    assert firefox.is_signed_in
    assert not chrome.is_signed_in
    firefox.lose("session")
    assert firefox.is_signed_in


def test_token_that_its_own_browser_changes_alone(by_token: Site) -> None:
    """The other sessions end at once, its own at the next request."""

    @by_token.app.post("/mine")
    def mine() -> str:
        current_user.token = "second"
        by_token.db.session.commit()
        return "changed"

    firefox, chrome = by_token.browser("Firefox"), by_token.browser("Chrome")
    for browser in (firefox, chrome):
        browser.login()
    assert firefox.post("/mine").text == "changed"
    assert by_token.active() == 1
    assert firefox.rejected == "id_changed"
    assert by_token.active() == 0


def test_login_and_logout_of_the_other_kind(two_kinds: Site) -> None:
    """A login and a logout of the other kind in one request leave nothing behind."""

    @two_kinds.app.post("/twice")
    def twice() -> str:
        login_user(Robot())
        logout_user()
        return "done"

    firefox = two_kinds.browser("Firefox")
    assert firefox.post("/twice").text == "done"
    assert firefox.name_shown is None
