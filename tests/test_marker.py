"""The marker in the session: what it says, and that it is believed only as far as the row goes."""

from __future__ import annotations

import typing as t
import uuid

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from flask_sqlalchemy import SQLAlchemy
from site_under_test import Browser, Site
from test_users import keys_of_the_apps_own_type, make_class, small_keys_on_postgresql, string_keys

from flask_session_registry._request.marker import MARKER, Marker, marker, parse_marker, read_marker

ID = uuid.UUID(hex="0198c0de00007000800000000000beef")


def carried(browser: Browser) -> str:
    with browser.client.session_transaction() as stored:
        return t.cast(str, stored[MARKER])


def carry(browser: Browser, text: str) -> None:
    with browser.client.session_transaction() as stored:
        stored[MARKER] = text


def replace_key(browser: Browser, key: str | None) -> None:
    """Put another key of a user into the browser's marker, or none."""
    parts = carried(browser).split(".", 2)[:2]
    carry(browser, ".".join(parts if key is None else [*parts, key]))


# -- what it says ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [1, -3, 2**62, "ann", "a.b:c", "", "\n\N{SNOWMAN}", ID])
def test_key_is_read_as_written(key: t.Any) -> None:
    """A key keeps its type and its value, whatever characters it has."""
    found = parse_marker(marker(ID, 7, key))
    assert found == (ID.hex, 7, key, marker(ID, 7, key))
    assert found is not None
    assert type(found.user_key) is type(key)
    assert found.id == ID


@pytest.mark.parametrize("key", [None, b"ann", 1.5, True, (1, 2), "x" * 80])
def test_other_keys_are_left_out(key: t.Any) -> None:
    """A key that is no text, number or UUID, or is long, would not come back, or fill a cookie."""
    assert marker(ID, 7, key) == f"{ID.hex}.7"
    assert Marker.of(ID, 7, key).user_key is None


@pytest.mark.parametrize("key", ["", "1", "int:", "int:x", "UUID:17", "list:1", "x" * 60])
def test_unreadable_key_counts_as_missing(key: str) -> None:
    """The rest of the marker says which session it is."""
    text = f"{ID.hex}.7.{key}"
    assert read_marker(text) == ((ID, 7) if key else None)
    if key:
        found = parse_marker(text)
        assert found is not None
        assert found.user_key is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "other", "7", f"{ID}.7", f"{ID.hex}.", f"{ID.hex}.-1", f"{ID.hex[:-1]}.7"),
        *(f"{ID.hex}.\N{ARABIC-INDIC DIGIT ONE}", f" {ID.hex}.7", f"{ID.hex}.7\n"),
        f"{ID.hex}.7.int:1" + "0" * 200,
    ],
)
def test_no_marker(text: str) -> None:
    """Anything else is none."""
    assert parse_marker(text) is None
    assert read_marker(text) is None


# -- how far it is believed ------------------------------------------------------------------------


def big_keys(db: SQLAlchemy) -> type[t.Any]:
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return make_class(db, id=sa_orm.mapped_column(kind, primary_key=True))


def padded_keys(db: SQLAlchemy) -> type[t.Any]:
    kind = sa.CHAR(20)
    return make_class(
        db,
        id=sa_orm.mapped_column(kind, primary_key=True, default=lambda: uuid.uuid4().hex[:8]),
        get_id=lambda self: self.id.strip(),
    )


@pytest.fixture(params=["cookie", "redis"])
def home(request: pytest.FixtureRequest, make_site: SiteFactory) -> Site:
    """Return a site with signed cookies, or with sessions in Redis."""
    return make_site(request.param, "postgresql")


def test_old_marker_goes_on_working(home: Site) -> None:
    """One without a key costs no statement more, and gets the key with the next rotation."""

    @home.app.post("/rotate")
    def rotate() -> str:
        home.sessions.rotate()
        return ""

    firefox = home.browser()
    firefox.login()
    replace_key(firefox, None)
    with home.count_statements() as statements:
        assert firefox.name_shown == "ann"
    assert len(statements) == 1
    assert carried(firefox).count(".") == 1
    firefox.post("/rotate")
    assert carried(firefox).endswith(".1.int:1")
    assert firefox.name_shown == "ann"


@pytest.mark.parametrize(
    "key",
    [
        *("int:2", "int:99", "int:-1", "int:4294967297", "int:99999999999999999999"),
        *("str:1", "str:x", "str:\N{SNOWMAN}", f"UUID:{ID.hex}"),
    ],
)
def test_wrong_key(home: Site, key: str) -> None:
    """20: the row says whose session it is, also if the database can't look up such a key."""
    firefox, bobs = home.browser("Firefox"), home.browser("Edge")
    firefox.login()
    bobs.login("bob")
    replace_key(firefox, key)
    assert firefox.name_shown == "ann"
    firefox.post("/password", password="new")
    assert firefox.name_shown == "ann"
    assert bobs.name_shown == "bob"


@pytest.mark.table
@pytest.mark.parametrize(
    "model",
    [big_keys, padded_keys, string_keys, keys_of_the_apps_own_type, small_keys_on_postgresql],
)
@pytest.mark.parametrize("key", ["int:40000", "int:3000000000", "str:x", f"UUID:{ID.hex}"])
def test_key_of_another_type(make_site: SiteFactory, model: t.Any, key: str) -> None:
    """A session may be older than the type of the column: that is no error, either."""
    site = make_site("cookie", "postgresql", model=model)
    site.login_manager.user_loader(lambda _: site.user("ann"))
    firefox = site.browser()
    firefox.login()
    replace_key(firefox, key)
    with site.count_statements() as statements:
        assert firefox.name_shown == "ann"
    assert any("(SELECT" in text for text in statements.texts)


@pytest.mark.table
def test_padded_key_costs_no_further_statement(make_site: SiteFactory) -> None:
    """PostgreSQL returns CHAR with spaces, so that such a key is no guess."""
    site = make_site("cookie", "postgresql", model=padded_keys)
    site.login_manager.user_loader(lambda _: site.user("ann"))
    firefox = site.browser()
    firefox.login()
    with site.count_statements() as statements:
        assert firefox.is_signed_in
    assert sum("user_sessions" in text for text in statements.texts) == 1


@pytest.mark.table
def test_key_that_changes(make_site: SiteFactory) -> None:
    """A marker with the key from before finds the session of the user who has another key now."""
    site = make_site("cookie", "postgresql")
    firefox = site.browser()
    firefox.login()
    site.login_manager.user_loader(lambda _: site.user("ann"))
    with site.context():
        site.db.session.execute(sa.text("UPDATE user_sessions SET user_id = NULL"))
        site.db.session.execute(sa.update(site.User).filter_by(name="ann").values(id=77))
        site.db.session.execute(sa.text("UPDATE user_sessions SET user_id = 77"))
        site.db.session.commit()
    # Flask-Login's id is still the one from before.
    assert firefox.rejected == "unknown"
    assert not firefox.is_signed_in


def test_remembered_session_names_its_user(make_site: SiteFactory) -> None:
    """A session that a "remember me" cookie has restored carries the key as well."""
    site = make_site()
    firefox = site.browser()
    firefox.login(remember=True)
    firefox.client.delete_cookie("session")
    assert firefox.name_shown == "ann"
    assert carried(firefox).endswith(".int:1")


def test_marker_is_no_proof(home: Site) -> None:
    """20: whoever names a user in a marker of an unknown session is nobody."""
    firefox = home.browser()
    firefox.login()
    carry(firefox, marker(ID, 0, 1))
    assert firefox.rejected == "unknown"
    assert not firefox.is_signed_in
