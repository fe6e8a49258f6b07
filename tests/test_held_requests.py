"""Requests held after the check, or after loading the user, while another request goes first."""

from __future__ import annotations

import typing as t
import uuid

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from flask import Flask, Response, flash, request, session
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user
from flask_sqlalchemy import SQLAlchemy
from site_under_test import Browser, Site, days_ago, user_class
from test_races import Held, held
from test_users import make_class

from flask_session_registry import SessionRegistry, StaleRequestError, session_revoked
from flask_session_registry._revocation.fingerprint import fingerprint

__all__ = ["held"]

SECRET = "correct horse"


def add_views(site: Site, held: Held) -> None:
    """Add views that check or load the user and then wait, if the form says so."""

    def wait() -> None:
        site.db.session.rollback() if "releases" in request.form else None
        if "held" in request.form:
            held.wait()

    @site.app.post("/change")
    @login_required
    def change() -> t.Any:
        # As in the README: the body of the request may arrive late.
        assert current_user.password_hash
        wait()
        if current_user.password_hash != request.form["old"]:
            return "wrong", 403
        current_user.password_hash = request.form["new"]
        site.db.session.commit()
        return "changed"

    @site.app.post("/revoke-others")
    @login_required
    def revoke_others() -> dict[str, int]:
        assert current_user.name
        wait()
        count = site.sessions.revoke_all(current_user, except_current=True)
        site.db.session.commit()
        return {"count": count}

    @site.app.post("/rotate")
    @login_required
    def rotate() -> str:
        assert current_user.name
        wait()
        site.sessions.rotate()
        return "rotated"

    @site.app.post("/login-again")
    @login_required
    def login_again() -> str:
        assert current_user.name
        wait()
        login_user(current_user, remember=True)
        return "signed in"

    @site.app.post("/slow-login")
    def slow_login() -> t.Any:
        user = site.user(request.form["name"])
        if user.password_hash != request.form["password"]:
            return "wrong", 403
        if "expires" in request.form:
            site.db.session.commit()
        wait()
        if "rehash" in request.form:
            with site.sessions.same_credentials(user):
                user.password_hash = request.form["rehash"]
                site.db.session.commit()
        login_user(user)
        return "signed in"


@pytest.fixture(params=["cookie", "redis", "files", "sqlalchemy"])
def two(
    request: pytest.FixtureRequest, make_site: SiteFactory, held: Held
) -> tuple[Site, Browser, Browser]:
    """Return Chrome, on each kind of store that writes differently, and a copy of it."""
    site = make_site(request.param)
    add_views(site, held)
    chrome = site.browser("Chrome")
    chrome.login(remember="1")
    return site, chrome, chrome.copy()


# -- a request follows only its own changes ------------------------------------------------------


@pytest.mark.parametrize("verb", ["/password", "/rotate"])
@pytest.mark.parametrize("releases", [{}, {"releases": "1"}])
def test_copy_takes_nothing_over_by_a_revocation(
    two: tuple[Site, Browser, Browser], held: Held, verb: str, releases: dict[str, str]
) -> None:
    """2: a copy's held revocation ends another device, but doesn't get Chrome's new session."""
    site, chrome, thief = two
    phone = site.browser("Phone")
    # Otherwise the other request may wait for a lock of the held one.
    releases = releases if site.store != "sqlalchemy" else {"releases": "1"}
    answer = held.start(lambda: thief.post("/revoke-others", held="1", **releases))
    chrome.post(verb, password="new")
    phone.login()
    assert held.finish(answer).json["count"] == 1
    assert not thief.is_signed_in
    assert chrome.is_signed_in
    assert not phone.is_signed_in


def test_copy_clears_its_session(make_site: SiteFactory, held: Held) -> None:
    """2: clearing the session before the commit doesn't change that."""
    site = make_site("files")

    @site.app.post("/clear")
    @login_required
    def clear() -> str:
        user_id = current_user.id
        site.db.session.rollback()
        held.wait()
        session.clear()
        user = site.db.session.get(site.User, user_id)
        site.sessions.revoke_all(user, except_current=True)
        site.db.session.commit()
        return "cleared"

    chrome, phone = site.browser("Chrome"), site.browser("Phone")
    chrome.login()
    thief = chrome.copy()
    answer = held.start(lambda: thief.post("/clear"))
    chrome.post("/password", password="new")
    phone.login()
    assert held.finish(answer).text == "cleared"
    assert not thief.is_signed_in
    assert chrome.is_signed_in
    assert not phone.is_signed_in


def test_own_late_revocation_leaves_the_browser_signed_in(
    two: tuple[Site, Browser, Browser], held: Held
) -> None:
    """2: Chrome's own held request doesn't clear a cookie that its own change has set."""
    site, chrome, _ = two
    phone = site.browser("Phone")
    answer = held.start(lambda: chrome.copy().post("/revoke-others", held="1", releases="1"))
    chrome.post("/password", password="new")
    phone.login()
    assert not held.finish(answer).headers.getlist("Set-Cookie")
    assert chrome.is_signed_in
    chrome.lose("session")
    assert chrome.is_signed_in


@pytest.mark.parametrize("undone", ["rolled back", "savepoint"])
def test_undone_change_is_not_followed(make_site: SiteFactory, held: Held, undone: str) -> None:
    """2: a request's undone change isn't mistaken for a change that Chrome made since."""
    site = make_site("cookie")
    add_views(site, held)

    @site.app.post("/try")
    @login_required
    def attempt() -> str:
        if undone == "savepoint":
            savepoint = site.db.session.begin_nested()
        current_user.password_hash = "tried"
        site.db.session.flush()
        savepoint.rollback() if undone == "savepoint" else site.db.session.rollback()
        site.db.session.commit()
        held.wait()
        site.sessions.revoke_all(current_user, except_current=True)
        site.db.session.commit()
        return "done"

    chrome, phone = site.browser("Chrome"), site.browser("Phone")
    chrome.login()
    thief = chrome.copy()
    answer = held.start(lambda: thief.post("/try"))
    chrome.post("/rotate")
    phone.login()
    held.finish(answer)
    assert not thief.is_signed_in
    assert chrome.is_signed_in
    assert not phone.is_signed_in


@pytest.mark.parametrize("verb", ["/rotate", "revoke", "/logout", "/login-again"])
def test_copy_does_not_sign_in_again(
    two: tuple[Site, Browser, Browser], held: Held, verb: str
) -> None:
    """A held repeated login signs nobody in if its session is gone by then."""
    site, chrome, thief = two
    answer = held.start(lambda: thief.post("/login-again", held="1", releases="1"))
    if verb == "revoke":
        with site.context():
            site.sessions.revoke_all(site.user("ann"))
            site.db.session.commit()
    else:
        chrome.post(verb)
    assert not held.finish(answer).headers.getlist("Set-Cookie")
    assert not thief.is_signed_in
    assert chrome.is_signed_in is (verb in ("/rotate", "/login-again"))


@pytest.mark.parametrize("verb", ["/password", "/logout"])
def test_copy_does_not_sign_in_somebody_else(
    make_site: SiteFactory, held: Held, records: str, verb: str
) -> None:
    """A held impersonation signs nobody in if the session that started it is gone by then."""
    site = make_site("cookie")

    @site.app.post("/impersonate")
    @login_required
    def impersonate() -> str:
        assert current_user.name
        site.db.session.rollback()
        held.wait()
        login_user(site.user("bob"))
        return "signed in"

    chrome = site.browser("Chrome")
    chrome.login()
    thief = chrome.copy()
    answer = held.start(lambda: thief.post("/impersonate"))
    chrome.post(verb, password="new")
    held.finish(answer)
    assert thief.name_shown is None
    assert chrome.is_signed_in is (verb == "/password")


@pytest.mark.table
@pytest.mark.parametrize("verb", ["revoke", "/rotate", "/logout"])
def test_ended_session_changes_no_password(
    make_site: SiteFactory, held: Held, database: str, verb: str
) -> None:
    """A password change gets a 409 if its session ended or was rotated while it was held."""
    site = make_site("cookie", database)
    add_views(site, held)
    chrome = site.browser("Chrome")
    chrome.login()
    thief = chrome.copy()
    form = {"old": "hash of ann", "new": "evil", "held": "1", "releases": "1"}
    answer = held.start(lambda: thief.post("/change", **form))
    if verb == "revoke":
        with site.context():
            site.sessions.revoke(site.rows()[0])
            site.db.session.commit()
    else:
        chrome.post(verb)
    assert held.finish(answer).status_code == 409
    assert stored(site) == "hash of ann"
    assert not thief.is_signed_in
    assert chrome.is_signed_in is (verb == "/rotate")


@pytest.mark.parametrize("asks", [{}, {"asks": "1"}])
def test_own_late_revocation_leaves_the_next_login_alone(
    make_site: SiteFactory, held: Held, records: str, asks: dict[str, str]
) -> None:
    """A late revocation leaves the cookies of the browser's next login alone."""
    site = make_site("files")

    @site.app.post("/end-all")
    def revoke() -> str:
        if "asks" in request.form:
            assert current_user.is_authenticated
        user_id = site.user("ann").id
        site.db.session.rollback()
        held.wait()
        site.sessions.revoke_all(site.db.session.get(site.User, user_id), except_current=True)
        site.sessions.revoke_all(site.user("bob"))
        site.db.session.commit()
        flash("done")
        return "done"

    chrome, phone = site.browser("Chrome"), site.browser("Phone")
    chrome.login(remember="1")
    phone.login("bob")
    late = chrome.copy()
    late.name = "Chrome"
    with site.context():
        # Something to end that isn't this browser's.
        site.sessions.revoke_all(site.user("bob"))
        site.db.session.rollback()
    answer = held.start(lambda: late.post("/end-all", **asks))
    chrome.login("ann", remember="1")
    assert site.active() == 1
    assert not held.finish(answer).headers.getlist("Set-Cookie")


@pytest.mark.parametrize("by", ["the request itself", "somebody else"])
def test_login_over_a_session_that_has_ended(
    make_site: SiteFactory, held: Held, records: str, by: str
) -> None:
    """A login over an ended session stands only if this same request ended it."""
    site = make_site("files")

    @site.app.post("/login-over")
    @login_required
    def login_over() -> str:
        user_id = current_user.id
        site.db.session.rollback()
        held.wait()
        user = site.db.session.get(site.User, user_id)
        login_user(user)
        # Two revocations: the first one whose commit is noticed didn't end this session.
        site.sessions.revoke(site.rows()[-1])
        site.sessions.revoke_all(user)
        site.db.session.commit()
        return "signed in"

    chrome, phone, tablet = site.browser("Chrome"), site.browser("Phone"), site.browser("Tablet")
    chrome.login()
    answer = held.start(lambda: chrome.post("/login-over"))
    if by == "somebody else":
        with site.context():
            site.sessions.revoke_all(site.user("ann"))
            site.db.session.commit()
    phone.login()
    tablet.login()
    assert held.finish(answer).status_code == 200
    assert chrome.is_signed_in is (by == "the request itself")
    assert not phone.is_signed_in
    assert not tablet.is_signed_in


@pytest.mark.table
def test_commit_of_a_connection_is_followed(make_site: SiteFactory) -> None:
    """A password stored by a session bound to a connection takes effect when that commits."""
    site = make_site("cookie", "postgresql")

    @site.app.post("/bound")
    @login_required
    def bound() -> str:
        user_id = current_user.id
        site.db.session.rollback()
        with site.db.engine.connect() as connection:
            outer = connection.begin()
            with sa_orm.Session(connection) as bound_session:
                user = bound_session.get(site.User, user_id)
                user.password_hash = f"{user.password_hash}, changed"
                bound_session.commit()
            outer.commit() if "commits" in request.form else outer.rollback()
        if "ends" in request.form:
            with site.db.engine.begin() as connection:
                ending = sa.update(site.sessions.UserSession.__table__)
                connection.execute(ending.values(revoked_at=days_ago(0), revoked_reason="by hand"))
        return "changed"

    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login()
    chrome.login()
    copy = chrome.copy()
    chrome.post("/bound")
    assert chrome.is_signed_in
    assert firefox.is_signed_in
    chrome.post("/bound", commits="1")
    assert chrome.is_signed_in
    assert not firefox.is_signed_in
    assert not copy.is_signed_in
    chrome.post("/bound", ends="1")
    assert chrome.rejected == "by hand"


# -- no password overwrites a newer one ----------------------------------------------------------


def stored(site: Site) -> str:
    with site.context():
        return str(site.user("ann").password_hash)


def test_thief_stores_nothing_over_the_new_password(
    two: tuple[Site, Browser, Browser], held: Held
) -> None:
    """A thief's change gets a 409 if its body arrives after the owner's change."""
    site, chrome, thief = two
    form = {"old": "hash of ann", "new": "evil", "held": "1"}
    if site.records == "redis" or site.store == "sqlalchemy":
        form["releases"] = "1"
    answer = held.start(lambda: thief.post("/change", **form))
    assert chrome.post("/change", old="hash of ann", new=SECRET).text == "changed"
    assert held.finish(answer).status_code in ((403, 409) if "releases" in form else (409,))
    assert stored(site) == SECRET
    assert chrome.is_signed_in
    assert not thief.is_signed_in
    assert site.active() == 1


def on_a_database(make_site: SiteFactory, database: str, held: Held, **options: t.Any) -> Site:
    site = make_site("cookie", database, **options)
    add_views(site, held)
    # SQLite's driver takes no lock for a read.
    return site


def test_change_in_flight_is_refused(make_site: SiteFactory, held: Held, database: str) -> None:
    """The UPDATE itself compares the old value, on every database.

    A double click gets a 409 and signs nobody out.
    """
    site = on_a_database(make_site, database, held)
    chrome = site.browser("Chrome")
    chrome.login()
    again, form = chrome.copy(), {"old": "hash of ann", "new": SECRET}
    with site.count_statements() as statements:
        answer = held.start(lambda: again.post("/change", **form, held="1"))
        assert chrome.post("/change", **form).text == "changed"
        second: Response = held.finish(answer)
    assert second.status_code == 409
    assert "was not stored" in second.text
    assert not second.headers.getlist("Set-Cookie")
    assert chrome.is_signed_in
    assert stored(site) == SECRET
    updates = [text for text in statements.texts if text.startswith("UPDATE account")]
    assert len(updates) == 2
    assert not any("FROM account" in text and "FOR" in text for text in statements.texts)


@pytest.mark.parametrize(
    ("database", "level"),
    [
        ("postgresql", "REPEATABLE READ"),
        ("postgresql", "SERIALIZABLE"),
        ("mariadb", "REPEATABLE READ"),
    ],
)
def test_overtaken_change_at_the_apps_isolation_level(
    make_site: SiteFactory, held: Held, database: str, level: str
) -> None:
    """A serialization failure of a password change is a 409, not a server error."""
    site = on_a_database(
        make_site, database, held, SQLALCHEMY_ENGINE_OPTIONS={"isolation_level": level}
    )
    chrome = site.browser("Chrome")
    chrome.login()
    form = {"old": "hash of ann", "new": SECRET}
    answer = held.start(lambda: chrome.copy().post("/change", **form, held="1"))
    assert chrome.post("/change", **form).text == "changed"
    assert held.finish(answer).status_code == 409
    assert stored(site) == SECRET
    assert chrome.is_signed_in


def test_rehash_at_a_login_with_the_old_password(
    make_site: SiteFactory, held: Held, database: str, records: str
) -> None:
    """A held rehash doesn't restore the old password, and doesn't sign in."""
    site = on_a_database(make_site, database, held, records=records)
    chrome, thief = site.browser("Chrome"), site.browser("Thief")
    chrome.login()
    form = {"name": "ann", "password": "hash of ann", "rehash": "old password, better hash"}
    answer = held.start(lambda: thief.post("/slow-login", **form, held="1"))
    chrome.post("/password", password=SECRET)
    assert held.finish(answer).status_code == 409
    assert stored(site) == SECRET
    assert chrome.is_signed_in
    assert not thief.is_signed_in


@pytest.mark.parametrize("change", ["flush", "commit", "many"])
def test_stale_instance_outside_a_request(site: Site, change: str) -> None:
    """A script's stale change raises an error once; after a rollback it can continue."""
    with site.context():
        ann, bob = site.user("ann"), site.user("bob")
        assert ann.password_hash
        assert bob.password_hash
        with site.context():
            site.user("ann").password_hash = "changed meanwhile"
            site.db.session.commit()
        ann.password_hash = "stale"
        if change == "many":
            bob.password_hash = "new"
        with pytest.raises(StaleRequestError, match="changed by another request"):
            site.db.session.flush() if change == "flush" else site.db.session.commit()
        site.db.session.rollback()
        assert ann.password_hash == "changed meanwhile"
        assert bob.password_hash == "hash of bob"
        ann.password_hash = "newest"
        site.db.session.commit()
    assert stored(site) == "newest"


def test_own_writes_are_not_stale(site: Site) -> None:
    """After a bulk update, refresh, rollback or expiry, a change starts from the stored value."""
    with site.context():
        ann = site.user("ann")
        site.db.session.execute(
            sa.update(site.User).where(site.User.id == ann.id).values(password_hash="bulk")
        )
        ann.password_hash = "after the bulk update"
        site.db.session.commit()
        with site.context():
            site.user("ann").password_hash = "elsewhere"
            site.db.session.commit()
        ann.password_hash = "after it was expired"
        site.db.session.commit()
        assert ann.password_hash
        with site.context():
            site.user("ann").password_hash = "elsewhere once more"
            site.db.session.commit()
        site.db.session.refresh(ann)
        ann.password_hash = "refreshed"
        site.db.session.flush()
        site.db.session.rollback()
        site.db.session.expire(ann, ["note"])
        ann.password_hash = "after a rollback"
        site.db.session.flush()
        # The app's own statements, in the transaction that has compared one.
        site.db.session.execute(sa.update(site.User).values(note="new"))
        site.db.session.execute(
            sa.update(site.User).where(site.User.name == "bob").values(password_hash="by SQL")
        )
        site.db.session.commit()
    assert stored(site) == "after a rollback"


def counts_versions(db: t.Any) -> type[t.Any]:
    version = sa_orm.mapped_column(sa.Integer, nullable=False)
    key = sa_orm.mapped_column(sa.Integer, primary_key=True)
    return make_class(db, id=key, version=version, __mapper_args__={"version_id_col": version})


@pytest.mark.parametrize("attribute", ["note", "password_hash"])
def test_credential_in_two_tables(make_site: SiteFactory, held: Held, attribute: str) -> None:
    """With a credential in two tables, a held change of one gets a 409 if the other changes."""

    def model(db: t.Any) -> t.Any:
        class Person(db.Model):
            __tablename__ = "person"
            id = sa_orm.mapped_column(sa.Integer, primary_key=True)
            name = sa_orm.mapped_column(sa.String(50), unique=True)
            password_hash = sa_orm.mapped_column(sa.String(100), nullable=False)

        class User(UserMixin, Person):
            __tablename__ = "account"
            id = sa_orm.mapped_column(sa.ForeignKey("person.id"), primary_key=True)
            note = sa_orm.mapped_column(sa.String(100), nullable=True)

        return User

    names = ("password_hash", "note")
    site = make_site("cookie", "postgresql", model=model, SESSION_REGISTRY_PASSWORD_ATTRIBUTE=names)

    @site.app.post("/set")
    @login_required
    def set_one() -> str:
        assert current_user.password_hash
        if "held" in request.form:
            held.wait()
        for what in request.form["what"].split():
            setattr(current_user, what, request.form["to"])
        site.db.session.commit()
        return "set"

    chrome = site.browser("Chrome")
    chrome.login()
    thief = chrome.copy()
    other = "note" if attribute == "password_hash" else "password_hash"
    answer = held.start(lambda: thief.post("/set", held="1", what=attribute, to="evil"))
    assert chrome.post("/set", what=other, to="new").text == "set"
    assert held.finish(answer).status_code == 409
    assert chrome.is_signed_in
    assert not thief.is_signed_in
    assert chrome.post("/set", what="note password_hash", to="both").text == "set"
    assert chrome.is_signed_in


def test_app_that_counts_versions_keeps_its_error(make_site: SiteFactory) -> None:
    """With 'version_id_col', SQLAlchemy's own error is raised, and nothing is stored."""
    site = make_site(model=counts_versions)
    with site.context():
        ann = site.user("ann")
        assert ann.password_hash
        with site.context():
            site.user("ann").password_hash = "changed meanwhile"
            site.db.session.commit()
        ann.password_hash = "stale"
        with pytest.raises(sa_orm.exc.StaleDataError):
            site.db.session.commit()
        site.db.session.rollback()
    assert stored(site) == "changed meanwhile"


def test_second_app_with_the_same_user_model(tmp_path: t.Any) -> None:
    """57: two apps that share a user model both watch its credential."""
    db, registry = SQLAlchemy(), SessionRegistry()
    User = user_class(db)  # noqa: N806
    for name in ("first", "second"):
        app = Flask(name)
        app.config.update(SECRET_KEY="x", SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/{name}.db")
        db.init_app(app)
        LoginManager(app)
        registry.init_app(app)
    seen = []

    def ended(_: object, **facts: t.Any) -> None:
        seen.append(facts["reason"])

    session_revoked.connect(ended)
    with app.app_context():
        db.create_all()
        user = User(name="ann", password_hash="old")
        db.session.add(user)
        db.session.commit()
        row = {"generation": 0, "user_id": user.id, "fingerprint": fingerprint(("old",))}
        times = dict.fromkeys(("created_at", "last_seen_at", "authenticated_at"), days_ago(0))
        db.session.add(registry.UserSession(id=uuid.uuid4(), **row, **times))
        db.session.commit()
        user.password_hash = "new"
        db.session.commit()
        assert seen == ["password_changed"]
        db.engine.dispose()
