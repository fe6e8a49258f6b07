"""``flask revoke-sessions`` (SCENARIO 16)."""

from __future__ import annotations

import typing as t

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from site_under_test import Site
from test_users import make_class, uuid_keys

from flask_session_registry import cli, entries


def run(site: Site, *arguments: str, input: str | None = None) -> t.Any:
    return site.app.test_cli_runner().invoke(args=["revoke-sessions", *arguments], input=input)


@pytest.fixture
def busy(store_site: Site) -> Site:
    """Ann on two browsers, Bob on one."""
    for name in ("ann", "ann", "bob"):
        store_site.browser().login(name)
    return store_site


def test_one_user(busy: Site) -> None:
    """16: by primary key; says how many ended, and how many entries went."""
    result = run(busy, "1", "--reason", "stolen laptop")
    assert result.exit_code == 0
    stored = 0 if busy.store == "cookie" else 2
    assert f"2 sessions ended; {stored} entries purged" in result.stdout
    assert (busy.active("ann"), busy.active("bob")) == (0, 1)
    assert {row.revoked_reason for row in busy.rows(user_id=1)} == {"stolen laptop"}
    assert len(busy.signed_in_entries()) == (busy.store != "cookie")
    assert "0 sessions ended" in run(busy, "1").stdout


def test_several_users_by_name(busy: Site) -> None:
    """16: by another column; a user named twice counts once."""
    result = run(busy, "--by", "name", "ann", "bob", "ann")
    assert result.exit_code == 0
    assert "3 sessions ended" in result.stdout
    assert not busy.signed_in_entries()


def test_everybody(busy: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """16: in batches; asks first, unless told not to."""
    monkeypatch.setattr(cli, "_USERS", 1)
    refused = run(busy, "--all", input="n\n")
    assert refused.exit_code == 1
    assert busy.active("ann") == 2
    assert run(busy, "--all").exit_code == 1
    assert busy.active("ann") == 2
    agreed = run(busy, "--all", input="y\n")
    assert agreed.exit_code == 0
    assert "End 3 sessions, of everybody?" in agreed.stderr
    assert "3 sessions ended" in agreed.stdout
    assert (busy.active("ann"), busy.active("bob")) == (0, 0)
    assert "0 sessions ended" in run(busy, "--all", "--yes").stdout


@pytest.mark.parametrize("whom", [["1"], ["--all"], ["--by", "name", "ann"]])
def test_dry_run(busy: Site, whom: list[str]) -> None:
    """16: says how many, changes nothing, asks nothing."""
    result = run(busy, "--dry-run", *whom)
    assert result.exit_code == 0
    assert f"{3 if '--all' in whom else 2} sessions would end" in result.stdout
    assert (busy.active("ann"), busy.active("bob")) == (2, 1)


@pytest.mark.parametrize(
    "arguments",
    [["1", "99"], ["1", "x"], ["--by", "name", "ann", "eve"], ["--by", "name", "x\0"], ["1", ""]],
)
def test_unknown_user(busy: Site, arguments: list[str]) -> None:
    """16: a clear error, exit code 1, and nothing changed, not even for those who are known."""
    result = run(busy, *arguments)
    assert result.exit_code == 1
    assert "There is no user whose" in result.stderr
    assert "Nothing was changed" in result.stderr
    assert (busy.active("ann"), busy.active("bob")) == (2, 1)


def test_unknown_column(busy: Site) -> None:
    """16: a column that the users don't have."""
    result = run(busy, "--by", "shoe_size", "45")
    assert result.exit_code == 1
    assert "'User' has no column 'shoe_size'" in result.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["1", "--all"], ["--all", "--by", "name"], ["1", "--reason", "x" * 65]]
)
def test_wrong_usage(busy: Site, arguments: list[str]) -> None:
    """16: no user at all, or both kinds: exit code 2, and nothing changed."""
    assert run(busy, *arguments).exit_code == 2
    assert (busy.active("ann"), busy.active("bob")) == (2, 1)


def test_store_that_is_down(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """34: the sessions end all the same, and it says what is left."""
    site.browser().login()

    def fail(*_: t.Any) -> None:
        raise OSError

    monkeypatch.setattr(entries, "delete", fail)
    result = run(site, "1")
    assert result.exit_code == 0
    assert "1 session ended; 0 entries purged" in result.stdout
    assert "1 entry could not be deleted" in result.stderr


def test_uuid_keys(make_site: SiteFactory, database: str) -> None:
    """16: a key that is a UUID; one that is none is an unknown user."""
    site = make_site("files", database, model=uuid_keys)
    site.browser().login()
    with site.context():
        key = str(site.user("ann").id)
    assert run(site, "not-a-uuid").exit_code == 1
    assert "1 session ended" in run(site, key).stdout
    assert "0 sessions ended" in run(site, "--all", "--yes").stdout


def test_by_a_column_without_a_plain_type(make_site: SiteFactory) -> None:
    """16: a column whose values can't be written on a command line is refused in a sentence."""

    class Odd(sa.types.UserDefinedType[str]):
        cache_ok = True

        def get_col_spec(self) -> str:
            return "TEXT"

    site = make_site(
        model=lambda db: make_class(
            db,
            id=sa_orm.mapped_column(sa.Integer, primary_key=True),
            odd=sa_orm.mapped_column(Odd, nullable=True),
            is_admin=sa_orm.mapped_column(sa.Boolean, default=False),
        )
    )
    for column in ("odd", "is_admin"):
        result = run(site, "--by", column, "no")
        assert result.exit_code == 1
        assert f"Users can't be named by '{column}'" in result.stderr


def test_key_that_no_column_can_hold(make_site: SiteFactory, database: str) -> None:
    """16: a number that is too large is an unknown user, on every database."""
    site = make_site("files", database)
    result = run(site, "9" * 40)
    assert result.exit_code == 1
    assert "There is no user whose 'id' is" in result.stderr
