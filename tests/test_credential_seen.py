"""Which credential a login verified, against what the database holds (SCENARIO 28)."""

from __future__ import annotations

import hashlib
import typing as t

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from flask import request, session
from flask_login import current_user, login_required, login_user
from site_under_test import Browser, Site, user_class
from test_races import Held, held
from test_users import make_class

from flask_session_registry import StaleRequestError, UserError

__all__ = ["held"]


def deferred(db: t.Any) -> type[t.Any]:
    """Return a user model whose password is loaded on demand."""
    return make_class(
        db,
        id=sa_orm.mapped_column(sa.Integer, primary_key=True),
        password_hash=sa_orm.mapped_column(sa.String(100), deferred=True, nullable=False),
    )


# -- what a login has verified -------------------------------------------------------------------


@pytest.mark.parametrize("loaded", ["deferred", "load_only", "refreshed", "whole"])
def test_login_with_the_old_password(
    make_site: SiteFactory, held: Held, database: str, loaded: str
) -> None:
    """28: a login with the old password is dead on arrival, however its user was loaded."""
    site = make_site("cookie", database, model=deferred if loaded == "deferred" else user_class)

    def load() -> t.Any:
        query = sa.select(site.User).filter_by(name="ann")
        if loaded in ("load_only", "refreshed"):
            query = query.options(sa_orm.load_only(site.User.name))
        user = site.db.session.scalars(query).one()
        if loaded == "refreshed":
            site.db.session.refresh(user)
        return user

    @site.app.post("/slow-login")
    def slow_login() -> t.Any:
        user = load()
        if user.password_hash != "hash of ann":
            return "wrong", 403
        site.db.session.commit()
        if "held" in request.form:
            held.wait()
        # From now on it reads as the new hash.
        assert user.password_hash
        login_user(user)
        return "signed in"

    thief, ann = site.browser("Thief"), site.browser("Ann")
    assert ann.post("/slow-login").text == "signed in"
    assert ann.is_signed_in
    answer = held.start(lambda: thief.post("/slow-login", held="1"))
    ann.post("/password", password="new")
    held.finish(answer)
    assert not thief.is_signed_in
    assert ann.is_signed_in


@pytest.mark.parametrize("removes", [{}, {"removes": "1"}])
@pytest.mark.parametrize("verb", ["login", "rehash", "reset"])
def test_checked_instance_is_gone(
    make_site: SiteFactory, held: Held, verb: str, removes: dict[str, str]
) -> None:
    """28: the hash that this request read first counts, on whichever instance of the user."""
    site = make_site("cookie", "postgresql")

    def check() -> t.Any:
        user = site.user("ann")
        return user.id if user.password_hash == "hash of ann" else None

    @site.app.post("/slow-login")
    def slow_login() -> t.Any:
        # The identity map holds it weakly: it is garbage from here on.
        user_id = check()
        if "removes" in request.form:
            site.db.session.remove()
        held.wait()
        user = site.db.session.get(site.User, user_id)
        if verb == "rehash":
            with site.sessions.same_credentials(user):
                user.password_hash = "old password, better hash"
                site.db.session.commit()
        elif verb == "reset":
            user.password_hash = "evil"
            site.db.session.commit()
        login_user(user)
        return "signed in"

    thief, ann = site.browser("Thief"), site.browser("Ann")
    ann.login()
    answer = held.start(lambda: thief.post("/slow-login", **removes))
    ann.post("/password", password="new")
    assert held.finish(answer).status_code == (200 if verb == "login" else 409)
    assert not thief.is_signed_in
    assert ann.is_signed_in
    with site.context():
        assert site.user("ann").password_hash == "new"


def test_checked_credentials_of_a_stale_instance(make_site: SiteFactory, held: Held) -> None:
    """28: 'credentials_checked' counts what was loaded before the block, in a second step too."""
    site = make_site("cookie", "postgresql")

    @site.app.post("/slow-login")
    def slow_login() -> t.Any:
        user = site.user("ann")
        assert user.password_hash
        held.wait()
        with site.sessions.credentials_checked(user):
            if user.password_hash != "hash of ann":
                return "wrong", 403
        if "two" not in request.form:
            login_user(user)
        return "signed in"

    @site.app.post("/step-two")
    def step_two() -> str:
        login_user(site.user("ann"))
        return "signed in"

    one, two, ann = site.browser("One"), site.browser("Two"), site.browser("Ann")
    ann.login()
    answer = held.start(lambda: one.post("/slow-login"))
    ann.post("/password", password="new")
    assert held.finish(answer).text == "signed in"
    assert not one.is_signed_in
    with site.context():
        site.user("ann").password_hash = "hash of ann"
        site.db.session.commit()
    held.reached.clear()
    held.may_go_on.clear()
    answer = held.start(lambda: two.post("/slow-login", two="1"))
    with site.context():
        site.user("ann").password_hash = "newer"
        site.db.session.commit()
    assert held.finish(answer).text == "signed in"
    two.post("/step-two")
    assert not two.is_signed_in


def test_signed_in_again_over_a_rehash(make_site: SiteFactory, held: Held, records: str) -> None:
    """11: a login over a session whose hash was upgraded meanwhile stands."""
    site = make_site("cookie", "postgresql")

    @site.app.post("/again")
    @login_required
    def again() -> str:
        user = current_user._get_current_object()
        assert user.password_hash
        site.db.session.rollback()
        held.wait()
        login_user(user)
        return "signed in"

    firefox = site.browser("Firefox")
    firefox.login()
    answer = held.start(lambda: firefox.post("/again"))
    with site.context(), site.sessions.same_credentials(site.user("ann")):
        site.user("ann").password_hash = "better hash"
        site.db.session.commit()
    held.finish(answer)
    assert firefox.is_signed_in
    assert site.active() == 1


def test_signed_in_again_over_the_change(make_site: SiteFactory, held: Held) -> None:
    """28: 'login_user(current_user)' counts the credential that the session check read."""
    site = make_site("cookie", model=deferred)

    @site.app.post("/again")
    @login_required
    def again() -> str:
        user = current_user._get_current_object()
        site.db.session.rollback()
        if "held" in request.form:
            held.wait()
        assert user.password_hash
        login_user(user)
        return "signed in"

    chrome, firefox = site.browser("Chrome"), site.browser("Firefox")
    chrome.login()
    firefox.login()
    chrome.post("/again")
    assert chrome.is_signed_in
    answer = held.start(lambda: firefox.post("/again", held="1"))
    chrome.post("/password", password="new")
    held.finish(answer)
    assert not firefox.is_signed_in
    assert chrome.is_signed_in


def test_proxy_of_the_user_signs_in(site: Site, firefox: Browser) -> None:
    """'login_user(current_user)' works: Flask-Login wraps it in a proxy of its own."""

    @site.app.post("/again")
    @login_required
    def again() -> str:
        login_user(current_user)
        return str(current_user.name)

    firefox.login()
    assert firefox.post("/again").text == "ann"
    assert firefox.is_signed_in
    assert site.active() == 1


def test_change_and_login_in_one_request(make_site: SiteFactory) -> None:
    """A password stored earlier in the same request counts, with or without a current session."""
    site = make_site("cookie", model=deferred)

    @site.app.post("/reset")
    def reset() -> str:
        user = site.user("ann")
        user.password_hash = request.form["new"]
        site.db.session.commit()
        login_user(user)
        return "signed in"

    chrome = site.browser("Chrome")
    for new in ("first", "second"):
        chrome.post("/reset", new=new)
        assert chrome.is_signed_in
        assert site.active() == 1


# -- what a login can't verify itself ------------------------------------------------------------


def add_two_steps(site: Site, held: Held) -> None:
    @site.app.post("/step-one")
    def step_one() -> t.Any:
        query = sa.select(site.User.id, site.User.password_hash).filter_by(name="ann")
        user_id, stored = site.db.session.execute(query).one()
        with site.sessions.credentials_checked(user_id):
            if stored != request.form["password"]:
                return "wrong", 403
            if "rehash" in request.form:
                user = site.db.session.get(site.User, user_id)
                with site.sessions.same_credentials(user):
                    user.password_hash = request.form["rehash"]
                    site.db.session.commit()
            if "held" in request.form:
                site.db.session.rollback()
                held.wait()
        session["pending"] = user_id
        return "what is the code?"

    @site.app.post("/step-two")
    def step_two() -> str:
        login_user(site.db.session.get(site.User, session.pop("pending")))
        assert "_credentials_checked" not in session
        return "signed in"


@pytest.fixture
def two_steps(store_site: Site, held: Held) -> Site:
    add_two_steps(store_site, held)
    return store_site


def test_second_step_after_the_change(two_steps: Site) -> None:
    """28: a password that changes between the first and the second step ends the login."""
    thief, chrome = two_steps.browser("Thief"), two_steps.browser("Chrome")
    chrome.login()
    thief.post("/step-one", password="hash of ann")
    chrome.post("/password", password="new")
    thief.post("/step-two")
    assert not thief.is_signed_in
    assert thief.rejected == "password_changed"
    thief.post("/step-one", password="new")
    thief.post("/step-two")
    assert thief.is_signed_in


def test_first_step_over_the_change(site: Site, held: Held) -> None:
    """28: the credential stored when the check began counts."""
    add_two_steps(site, held)
    thief, chrome = site.browser("Thief"), site.browser("Chrome")
    chrome.login()
    answer = held.start(lambda: thief.post("/step-one", password="hash of ann", held="1"))
    chrome.post("/password", password="new")
    held.finish(answer)
    thief.post("/step-two")
    assert not thief.is_signed_in


def test_rehash_in_the_first_step(site: Site, held: Held) -> None:
    """A new hash of the same password is followed, even after the secret key was rotated."""
    add_two_steps(site, held)
    chrome = site.browser("Chrome")
    chrome.post("/step-one", password="hash of ann", rehash="better hash")
    site.app.config.update(SECRET_KEY="newer", SECRET_KEY_FALLBACKS=["only for tests"])
    chrome.post("/step-two")
    assert chrome.is_signed_in


def test_checked_credentials_show_no_fingerprint(make_site: SiteFactory, held: Held) -> None:
    """A signed cookie is readable, so it holds only a keyed digest of the credential."""
    site = make_site("cookie")
    add_two_steps(site, held)
    chrome = site.browser("Chrome")
    chrome.post("/step-one", password="hash of ann")
    with chrome.client.session_transaction() as kept:
        owner, digest = kept["_credentials_checked"]
    assert owner == "1"
    assert digest not in hashlib.sha256(b"hash of ann").hexdigest()
    assert len(digest) == 22


@pytest.mark.parametrize("names", ["bob", "nobody"])
def test_checked_credentials_of_another_user(site: Site, names: str) -> None:
    """A checked credential doesn't count for another user, or for one not saved yet."""

    @site.app.post("/for/<who>")
    def both(who: str) -> str:
        with site.sessions.credentials_checked(site.user("ann")):
            pass
        user = site.user("bob")
        if who == "nobody":
            user = site.User(id=77, name="cem", password_hash="hash")
            site.db.session.add(user)
            login_user(user, force=True)
            site.db.session.commit()
        else:
            login_user(user)
        return "signed in"

    chrome = site.browser("Chrome")
    chrome.post(f"/for/{names}")
    assert chrome.is_signed_in


def test_checked_credentials_of_a_failed_check(site: Site) -> None:
    """A block that raises records nothing. It needs a request and a saved user."""

    @site.app.post("/raises")
    def raises() -> str:
        with pytest.raises(ZeroDivisionError), site.sessions.credentials_checked(site.user("ann")):
            raise ZeroDivisionError
        return str("_credentials_checked" in session)

    assert site.browser().post("/raises").text == "False"
    with site.context(), pytest.raises(RuntimeError, match="needs a request"):
        site.sessions.credentials_checked(site.user("ann"))
    with site.app.test_request_context():
        with pytest.raises(UserError, match="not in the database"):
            site.sessions.credentials_checked(site.User())
        # An unknown user: the login view can take the same time for them.
        with site.sessions.credentials_checked(404):
            pass


def test_checked_credentials_without_a_password_attribute(make_site: SiteFactory) -> None:
    """Without a password attribute, 'credentials_checked' has no effect."""
    site = make_site("cookie", SESSION_REGISTRY_PASSWORD_ATTRIBUTE=None)

    @site.app.post("/enter")
    def enter() -> str:
        with site.sessions.credentials_checked(site.user("ann")):
            pass
        login_user(site.user("ann"))
        return "signed in"

    chrome = site.browser("Chrome")
    chrome.post("/enter")
    assert chrome.is_signed_in


# -- what the database holds ---------------------------------------------------------------------


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Hashed(sa.types.TypeDecorator[str]):
    """Hashes a password on its way to the database, as many apps do."""

    impl = sa.String(100)
    cache_ok = True

    def process_bind_param(self, value: str | None, _: object) -> str | None:
        return None if value is None else f"hashed:{value}"


class Secret:
    """The value that the next type loads: hides the hash, and compares equal to what matches it."""

    def __init__(self, hashed: str) -> None:
        self.hashed = hashed

    def __eq__(self, other: object) -> bool:
        return getattr(other, "hashed", f"hashed:{other}") == self.hashed

    __hash__ = None  # type: ignore[assignment]


class Hidden(Hashed):
    """Hashes the password too, and loads it as an opaque object."""

    cache_ok = True

    def process_bind_param(self, value: t.Any, dialect: object) -> str | None:
        if isinstance(value, Secret):
            return value.hashed
        return super().process_bind_param(value, dialect)

    def process_result_value(self, value: str | None, _: object) -> t.Any:
        return None if value is None else Secret(value)


KINDS: dict[str, t.Any] = {
    "hashed": Hashed(),
    "hidden": Hidden(),
    "padded": sa.CHAR(40),
    "padded variant": sa.String(40).with_variant(sa.CHAR(40), "postgresql"),
    "bytes": sa.LargeBinary(100),
}


def with_kind(kind: str) -> t.Callable[[t.Any], type[t.Any]]:
    return lambda db: make_class(
        db,
        id=sa_orm.mapped_column(sa.Integer, primary_key=True),
        password_hash=sa_orm.mapped_column(KINDS[kind], nullable=False),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_password_columns(
    make_site: SiteFactory, held: Held, database: str, kind: str
) -> None:
    """The browser that changes the password stays, others end, and a late change is refused."""

    def given(text: str) -> t.Any:
        return text.encode() if kind == "bytes" else text

    site = make_site("cookie", database, model=with_kind(kind), users=())

    @site.app.post("/register")
    def register() -> str:
        user = site.User(name="ann", password_hash=given("first"))
        site.db.session.add(user)
        site.db.session.flush()
        login_user(user)
        site.db.session.commit()
        return "signed in"

    @site.app.post("/enter")
    def enter() -> str:
        user = site.user("ann")
        assert user.password_hash is not None
        if "held" in request.form:
            site.db.session.rollback()
            held.wait()
        login_user(user)
        return "signed in"

    @site.app.post("/change")
    @login_required
    def change() -> str:
        assert current_user.password_hash is not None
        if "held" in request.form:
            held.wait()
        current_user.password_hash = given(request.form["new"])
        site.db.session.commit()
        return "changed"

    chrome, firefox, thief = (site.browser(name) for name in ("Chrome", "Firefox", "Thief"))
    chrome.post("/register")
    assert chrome.is_signed_in
    firefox.post("/enter")
    assert firefox.is_signed_in
    answer = held.start(lambda: thief.post("/enter", held="1"))
    assert chrome.post("/change", new="second").text == "changed"
    held.finish(answer)
    assert chrome.is_signed_in
    assert not firefox.is_signed_in
    assert not thief.is_signed_in
    with site.context():
        column = sa.type_coerce(site.User.password_hash, sa.types.NullType())
        raw = site.db.session.scalar(sa.select(column))
    expected = hashlib.sha256(raw.encode() if isinstance(raw, str) else raw).hexdigest()
    standing = [row.fingerprint for row in site.rows() if row.revoked_at is None]
    assert sorted(standing) == [expected, "superseded"]


@pytest.mark.parametrize("kind", ["hashed", "hidden", "padded"])
def test_late_change_of_a_converted_password(
    make_site: SiteFactory, database: str, kind: str
) -> None:
    """A late change is refused by comparing loaded values, under the row lock."""
    site = make_site("cookie", database, model=with_kind(kind), users=())
    with site.context():
        site.db.session.add(site.User(name="ann", password_hash="first"))
        site.db.session.commit()
        site.db.session.remove()
        ann = site.user("ann")
        assert ann.password_hash is not None
        site.db.session.execute(sa.text("SELECT 1"))
        with site.context():
            site.user("ann").password_hash = "second"
            site.db.session.commit()
        ann.password_hash = "stale"
        with pytest.raises(StaleRequestError):
            site.db.session.commit()
        site.db.session.rollback()
        ann.password_hash = "third"
        site.db.session.commit()


def test_password_must_not_be_loaded(make_site: SiteFactory, database: str) -> None:
    """With 'deferred(raiseload=True)', a change ends other browsers and keeps this one."""
    site = make_site(
        "files",
        database,
        model=lambda db: make_class(
            db,
            id=sa_orm.mapped_column(sa.Integer, primary_key=True),
            password_hash=sa_orm.mapped_column(
                sa.String(100), deferred=True, deferred_raiseload=True, nullable=False
            ),
        ),
    )

    @site.app.post("/enter")
    def enter() -> str:
        login_user(site.user("ann"))
        return "signed in"

    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.post("/enter")
    chrome.post("/enter")
    assert chrome.post("/password", password="new").text == "changed"
    assert chrome.is_signed_in
    assert not firefox.is_signed_in


def test_change_without_loading_the_password_over_another(
    make_site: SiteFactory, held: Held, records: str
) -> None:
    """If the password was never loaded, the credential that the session check read counts."""
    site = make_site("cookie", "postgresql", model=deferred)

    @site.app.post("/set")
    @login_required
    def set_password() -> str:
        user_id = current_user.id
        site.db.session.rollback()
        held.wait()
        site.db.session.get(site.User, user_id).password_hash = "evil"
        site.db.session.commit()
        return "changed"

    chrome = site.browser("Chrome")
    chrome.login()
    thief = chrome.copy()
    answer = held.start(lambda: thief.post("/set"))
    chrome.post("/password", password="new")
    assert held.finish(answer).status_code == 409
    assert chrome.is_signed_in
    assert not thief.is_signed_in


# -- users without a password --------------------------------------------------------------------


def without_password(db: t.Any) -> type[t.Any]:
    return make_class(
        db,
        id=sa_orm.mapped_column(sa.Integer, primary_key=True),
        password_hash=sa_orm.mapped_column(sa.String(100), nullable=True),
        handle=sa_orm.mapped_column(sa.String(50), nullable=True),
        __table_args__=(sa.UniqueConstraint("handle"), sa.Index("by_note", "note", unique=True)),
    )


@pytest.fixture
def oauth(make_site: SiteFactory) -> Site:
    """Return a site whose users have no password and can change their name."""
    site = make_site("cookie", model=without_password, users=())

    @site.app.post("/enter/<name>")
    def enter(name: str) -> str:
        login_user(site.user(name))
        return "signed in"

    @site.app.post("/name")
    @login_required
    def rename() -> str:
        if "loads" in request.form:
            assert current_user.password_hash is None
        current_user.name = request.form["name"]
        site.db.session.commit()
        return "changed"

    with site.context():
        site.db.session.add_all([site.User(name="ann"), site.User(name="cem", password_hash="")])
        site.db.session.commit()
    return site


@pytest.mark.parametrize("name", ["ann", "cem"])
def test_new_user_with_the_key_of_a_deleted_one(oauth: Site, name: str) -> None:
    """51: a user deleted and recreated with the same key by SQL doesn't inherit the session."""
    chrome = oauth.browser("Chrome")
    chrome.post(f"/enter/{name}")
    assert chrome.name_shown == name
    with oauth.context():
        key = oauth.user(name).id
        oauth.db.session.execute(sa.text("DELETE FROM account WHERE id = :key"), {"key": key})
        oauth.db.session.execute(
            sa.text("INSERT INTO account (id, name) VALUES (:key, 'eve')"), {"key": key}
        )
        oauth.db.session.commit()
    assert chrome.name_shown is None


@pytest.mark.parametrize("form", [{}, {"loads": "1"}])
def test_new_name_of_a_user_without_a_password(oauth: Site, form: dict[str, str]) -> None:
    """A user without a password can change the identifying name: both devices stay signed in."""
    chrome, phone = oauth.browser("Chrome"), oauth.browser("Phone")
    chrome.post("/enter/ann")
    phone.post("/enter/ann")
    assert chrome.post("/name", name="anna", **form).text == "changed"
    assert chrome.name_shown == phone.name_shown == "anna"


def test_first_password(oauth: Site) -> None:
    """A first password ends the other device. Then the name no longer affects the fingerprint."""
    chrome, phone = oauth.browser("Chrome"), oauth.browser("Phone")
    chrome.post("/enter/ann")
    phone.post("/enter/ann")
    chrome.post("/password", password="first")
    assert not phone.is_signed_in
    assert chrome.post("/name", name="anna").text == "changed"
    with oauth.context():
        oauth.db.session.execute(sa.update(oauth.User).values(handle=None))
        oauth.db.session.commit()
    assert chrome.name_shown == "anna"
