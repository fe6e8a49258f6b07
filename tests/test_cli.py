"""``flask revoke-sessions`` and ``flask sessions`` (SCENARIO 16)."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import os
import pty
import re
import signal
import sys
import tracemalloc
import typing as t
import uuid

import click
import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from flask.cli import ScriptInfo
from site_under_test import Browser, Site, days_ago
from test_users import make_class, string_keys, uuid_keys

from flask_session_registry import session_revoked
from flask_session_registry._adoption.adoption import Adoption
from flask_session_registry._ops import filters
from flask_session_registry._records import base as records
from flask_session_registry._records.sql import SQLRecords, operator, table
from flask_session_registry._store import backends as entries


def run(site: Site, *arguments: str, input: str | None = None) -> t.Any:
    return site.app.test_cli_runner().invoke(args=["revoke-sessions", *arguments], input=input)


@pytest.fixture
def busy(store_site: Site) -> Site:
    """Return a site where Ann is signed in on two browsers and Bob on one."""
    for name in ("ann", "ann", "bob"):
        store_site.browser().login(name)
    return store_site


def test_one_user(busy: Site) -> None:
    """16: a user is named by primary key; the output counts ended sessions and purged entries."""
    result = run(busy, "1", "--reason", "stolen laptop")
    assert result.exit_code == 0
    stored = 0 if busy.store == "cookie" else 2
    assert f"2 sessions ended; {stored} entries purged" in result.stdout
    assert (busy.active("ann"), busy.active("bob")) == (0, 1)
    assert {row.revoked_reason for row in busy.rows(user_id=1)} == {"stolen laptop"}
    assert len(busy.signed_in_entries()) == (busy.store != "cookie")
    assert "0 sessions ended" in run(busy, "1").stdout


def test_several_users_by_name(busy: Site) -> None:
    """16: users can be named by another column; a user named twice counts once."""
    result = run(busy, "--by", "name", "ann", "bob", "ann")
    assert result.exit_code == 0
    assert "3 sessions ended" in result.stdout
    assert not busy.signed_in_entries()


def test_everybody(busy: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """16: '--all' works in batches and asks for confirmation, unless told not to."""
    monkeypatch.setattr(operator, "_USERS", 1)
    refused = run(busy, "--all", input="n\n")
    assert refused.exit_code == 1
    assert busy.active("ann") == 2
    assert run(busy, "--all").exit_code == 1
    assert busy.active("ann") == 2
    agreed = run(busy, "--all", input="y\n")
    assert agreed.exit_code == 0
    assert "Revoke 3 sessions of all users?" in agreed.stderr
    assert "3 sessions ended" in agreed.stdout
    assert (busy.active("ann"), busy.active("bob")) == (0, 0)
    assert "0 sessions ended" in run(busy, "--all", "--yes").stdout


@pytest.mark.parametrize("whom", [["1"], ["--all"], ["--by", "name", "ann"]])
def test_dry_run(busy: Site, whom: list[str]) -> None:
    """16: a dry run reports the number of sessions, changes nothing and asks nothing."""
    result = run(busy, "--dry-run", *whom)
    assert result.exit_code == 0
    assert f"{3 if '--all' in whom else 2} sessions would end" in result.stdout
    assert (busy.active("ann"), busy.active("bob")) == (2, 1)


@pytest.mark.parametrize(
    "arguments",
    [["1", "99"], ["1", "x"], ["--by", "name", "ann", "eve"], ["--by", "name", "x\0"], ["1", ""]],
)
def test_unknown_user(busy: Site, arguments: list[str]) -> None:
    """16: an unknown user is an error with exit code 1, and known users are not changed either."""
    result = run(busy, *arguments)
    assert result.exit_code == 1
    assert "There is no user whose" in result.stderr
    assert "Nothing was changed" in result.stderr
    assert (busy.active("ann"), busy.active("bob")) == (2, 1)


def test_unknown_column(busy: Site) -> None:
    """16: an unknown column is an error that lists the columns to use."""
    result = run(busy, "--by", "shoe_size", "45")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "Error: 'User' has no column 'shoe_size'. Name users by one of 'id', 'name', 'note'.\n"
    )


def test_columns_that_hold_no_password(make_site: SiteFactory) -> None:
    """16: the error suggests only columns that can be searched and that hold no password."""
    site = make_site(
        model=lambda db: make_class(
            db,
            id=sa_orm.mapped_column(sa.Integer, primary_key=True),
            totp_secret=sa_orm.mapped_column(sa.String(50), nullable=True),
            is_admin=sa_orm.mapped_column(sa.Boolean, default=False),
        ),
        SESSION_REGISTRY_PASSWORD_ATTRIBUTE="totp_secret",
    )
    for command in (["revoke-sessions"], ["sessions", "list"]):
        for column in ("shoe_size", "is_admin"):
            result = site.app.test_cli_runner().invoke(args=[*command, "--by", column, "1"])
            assert result.exit_code == 1
            assert result.stderr.endswith(" Name users by one of 'name', 'note', 'id'.\n")


def test_users_and_everybody(busy_site: Site) -> None:
    """16: naming users together with '--all' gives a different error than naming none."""
    assert "or use '--all', not both." in run(busy_site, "--all", "1").stderr
    assert "or use '--all'." in run(busy_site).stderr


def test_no_terminal_to_confirm_on(busy_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """16: without a terminal to confirm on, as in cron, the error names the missing option."""
    result = run(busy_site, "--all", "--format", "json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "Revoke 2 sessions of all users? [y/N]: ",
        "Error: There is no terminal to answer this question on. Nothing was changed. Add '--yes'.",
    ]
    assert "Aborted!" in run(busy_site, "--all", input="n\n").stderr

    def interrupt(*_: t.Any, **__: t.Any) -> t.Any:
        raise click.Abort

    monkeypatch.setattr(click, "confirm", interrupt)
    assert run(busy_site, "--all").stderr == "Aborted!\n"
    assert busy_site.active() == 2


def test_reading_command_does_not_mention_changes(busy_site: Site) -> None:
    """16: a command that only reads doesn't say that nothing was changed."""
    problem = "There is no user whose 'id' is '99'."
    assert run(busy_site, "99").stderr == f"Error: {problem} Nothing was changed.\n"
    assert run(busy_site, "99", "--dry-run").stderr == f"Error: {problem}\n"
    assert sessions(busy_site, "list", "99").stderr == f"Error: {problem}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["1", "--all"], ["--all", "--by", "name"], ["1", "--reason", "x" * 65]]
)
def test_wrong_usage(busy: Site, arguments: list[str]) -> None:
    """16: no users, or users together with '--all', gives exit code 2 and changes nothing."""
    assert run(busy, *arguments).exit_code == 2
    assert (busy.active("ann"), busy.active("bob")) == (2, 1)


def test_store_is_down(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """34: with the session store down, the sessions still end, and the output says what is left."""
    site.browser().login()

    def fail(*_: t.Any, **__: t.Any) -> None:
        raise OSError

    monkeypatch.setattr(entries.Entries, "delete", fail)
    result = run(site, "1")
    assert result.exit_code == 0
    assert "1 session ended; 0 entries purged" in result.stdout
    assert result.stderr == (
        "1 entry could not be deleted. The sessions are revoked regardless: run 'flask sessions"
        " prune' when the session store is back.\n"
    )


def test_uuid_keys(make_site: SiteFactory, database: str) -> None:
    """16: users can have UUID keys; an invalid UUID is an unknown user."""
    site = make_site("files", database, model=uuid_keys)
    site.browser().login()
    with site.context():
        key = str(site.user("ann").id)
    assert run(site, "not-a-uuid").exit_code == 1
    assert "1 session ended" in run(site, key).stdout
    assert "0 sessions ended" in run(site, "--all", "--yes").stdout


def test_by_a_column_without_a_plain_type(make_site: SiteFactory) -> None:
    """16: a column whose values can't be given on the command line is refused with an error."""

    class Odd(sa.types.UserDefinedType[str]):
        cache_ok = True

        def get_col_spec(self, **_: t.Any) -> str:
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


def test_key_too_large_for_the_column(make_site: SiteFactory, database: str) -> None:
    """16: a number too large for the column is an unknown user, on every database."""
    site = make_site("files", database)
    result = run(site, "9" * 40)
    assert result.exit_code == 1
    assert "There is no user whose 'id' is" in result.stderr


# -- filters -------------------------------------------------------------------------------------

ADDRESSES = ("10.1.2.3", "203.0.113.9", "2001:db8::7")


def visit(site: Site, user: str, *, agent: str, address: str, days: float, idle: float) -> Browser:
    """Return a browser that signed in and was last seen this many days ago."""
    browser = site.browser(agent)
    form = {"name": user, "password": f"hash of {user}"}
    browser.open("POST", "/login", data=form, environ_overrides={"REMOTE_ADDR": address})
    newest = site.rows()[-1]
    site.change({"id": newest.id}, created_at=days_ago(days), last_seen_at=days_ago(idle))
    return browser


@pytest.fixture
def varied(database_site: Site) -> Site:
    """Return a site where Ann has three sessions and Bob two, all different."""
    site = database_site
    visit(site, "ann", agent="Phone 100%", address=ADDRESSES[0], days=1, idle=0.5)
    visit(site, "ann", agent="Tablet 100_", address=ADDRESSES[1], days=9, idle=3)
    visit(site, "ann", agent="Old\\Laptop/2", address=ADDRESSES[2], days=20, idle=12)
    visit(site, "bob", agent="phone 1000", address=ADDRESSES[1], days=2, idle=1.5)
    visit(site, "bob", agent="", address="unix:", days=21, idle=13)
    return site


def left(site: Site) -> str:
    """Return the first letters of the active sessions' user agents; '-' for none."""
    return "".join(sorted((row.user_agent or "-")[0] for row in site.rows(revoked_at=None)))


FILTERS: list[tuple[str, list[str], str]] = [
    ("--all", ["--older-than", "9d"], "Pp"),
    ("--all", ["--older-than", "25w"], "-OPTp"),
    ("--all", ["--older-than", "216h"], "Pp"),
    ("--all", ["--idle-for", "2d"], "Pp"),
    ("--all", ["--idle-for", "2160m"], "P"),
    ("--all", ["--idle-for", "129600s"], "P"),
    ("--all", ["--ip", "203.0.113.9"], "-OP"),
    ("--all", ["--ip", "203.0.113.0/24"], "-OP"),
    ("--all", ["--ip", "10.0.0.0/8"], "-OTp"),
    ("--all", ["--ip", "0.0.0.0/0"], "-O"),
    ("--all", ["--ip", "::/0"], "-PTp"),
    ("--all", ["--ip", "2001:DB8::/32"], "-PTp"),
    ("--all", ["--ip", "::ffff:10.1.2.3"], "-OTp"),
    ("--all", ["--ip", "::ffff:10.0.0.0/104"], "-OTp"),
    ("--all", ["--user-agent", "PHONE"], "-OT"),
    ("--all", ["--user-agent", "100%"], "-OTp"),
    ("--all", ["--user-agent", "100_"], "-OPp"),
    ("--all", ["--user-agent", "d\\l"], "-PTp"),
    ("--all", ["--user-agent", "p/2"], "-PTp"),
    ("--all", ["--user-agent", "%"], "-OTp"),
    ("--all", ["--ip", "203.0.113.9", "--idle-for", "2d"], "-OPp"),
    ("--all", ["--user-agent", "phone", "--older-than", "36h"], "-OPT"),
    ("ann", ["--ip", "203.0.113.9"], "-OPp"),
    ("ann", ["--user-agent", "phone"], "-OTp"),
    ("bob", ["--older-than", "1d", "--idle-for", "1d"], "OPT"),
]


@pytest.mark.parametrize(("whom", "filter", "remains"), FILTERS)
def test_only_some(varied: Site, whom: str, filter: list[str], remains: str) -> None:
    """16: only matching sessions end, as many as a dry run reported."""
    users = ["--all"] if whom == "--all" else ["--by", "name", whom]
    expected = 5 - len(remains)
    dry = json.loads(run(varied, *users, *filter, "--dry-run", "--format", "json").stdout)
    assert (dry["would_end"], len(dry["sample"])) == (expected, expected)
    before = {str(row.id) for row in varied.rows()}
    assert left(varied) == "-OPTp"
    result = run(varied, *users, *filter, "--yes", "--reason", "cleaning up")
    assert result.exit_code == 0
    noun = "session" if expected == 1 else "sessions"
    assert f"{expected} {noun} ended" in result.stdout
    assert left(varied) == remains
    ended = {str(row.id) for row in varied.rows(revoked_reason="cleaning up")}
    assert ended == {row["id"] for row in dry["sample"]} <= before


def test_browsers_that_do_not_match_stay(database_site: Site) -> None:
    """16: browsers that don't match stay signed in."""
    site = database_site
    phone = visit(site, "ann", agent="Phone", address=ADDRESSES[0], days=0, idle=0)
    tablet = visit(site, "ann", agent="Tablet", address=ADDRESSES[0], days=0, idle=0)
    run(site, "1", "--user-agent", "phone")
    assert (phone.is_signed_in, tablet.is_signed_in) == (False, True)
    assert phone.rejected == "revoked"
    assert len(site.signed_in_entries()) == 1


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_in_batches(varied: Site, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """16: each batch is one revocation, which locks the owners and ends only matching sessions."""
    monkeypatch.setattr(records, "BATCH", size)
    monkeypatch.setattr(table, "_BATCHES", 1)
    dry = json.loads(run(varied, "--all", "--ip", "::/0", "--dry-run", "--format", "json").stdout)
    assert (dry["would_end"], len(dry["sample"])) == (1, 1)
    told: list[t.Any] = []

    def receiver(app: t.Any, **arguments: t.Any) -> None:
        told.append((arguments["ids"], arguments["user_id"]))

    with varied.count_statements() as statements, session_revoked.connected_to(receiver):
        result = run(varied, "--all", "--yes", "--ip", "0.0.0.0/0")
    assert "3 sessions ended; 3 entries purged" in result.stdout
    ended = varied.rows(revoked_reason="revoked")
    assert sorted((id, user_id) for ids, user_id in told for id in ids) == sorted(
        (row.id, row.user_id) for row in ended
    )
    if varied.records != "sql":
        return
    assert len({row.revocation for row in ended}) == -(-3 // size)
    texts = statements.texts
    endings = [
        number
        for number, text in enumerate(texts)
        if text.startswith("UPDATE") and "revoked_reason" in text
    ]
    assert len(endings) == -(-3 // size)
    for number in endings:
        assert "account" in texts[number - 1]
        if not varied.app.config["SQLALCHEMY_DATABASE_URI"].startswith("sqlite"):
            assert "FOR " in texts[number - 1]


CHANGES: list[tuple[list[str], dict[str, t.Any]]] = [
    (["--idle-for", "2d"], {"last_seen_at": days_ago(0)}),
    (["--ip", "203.0.113.0/24"], {"ip_address": "10.9.9.9"}),
    (["--ip", "203.0.113.0/24"], {"ip_address": None}),
    (["--user-agent", "tablet"], {"user_agent": "Other"}),
    (["--older-than", "2d"], {"revoked_at": days_ago(0), "revoked_reason": "logged_out"}),
]


@pytest.mark.table
@pytest.mark.parametrize(("filter", "change"), CHANGES)
def test_session_that_stops_matching_is_not_ended(
    varied: Site, monkeypatch: pytest.MonkeyPatch, filter: list[str], change: dict[str, t.Any]
) -> None:
    """16: a session that stops matching between the read and the update continues."""
    (tablet,) = varied.rows(user_agent="Tablet 100_")
    still_matches = SQLRecords._still_matches

    def seen_just_now(self: t.Any, *arguments: t.Any) -> t.Any:
        with self.users.transaction() as session:
            model = varied.sessions.UserSession
            session.execute(sa.update(model).where(model.id == tablet.id).values(change))
        return still_matches(self, *arguments)

    monkeypatch.setattr(SQLRecords, "_still_matches", seen_just_now)
    result = run(varied, "--by", "name", "ann", *filter)
    assert result.exit_code == 0
    (after,) = varied.rows(id=tablet.id)
    assert after.revoked_reason == change.get("revoked_reason")


def test_one_connection_is_enough(make_site: SiteFactory) -> None:
    """16: one connection is enough: no second one is needed while the first is held."""
    options = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 1}
    site = make_site(SQLALCHEMY_ENGINE_OPTIONS=options)
    for filter in (["--ip", "127.0.0.1"], []):
        site.browser().login()
        for whom in (["1"], ["--all"]):
            assert "1 session would end" in run(site, *whom, *filter, "--dry-run").stdout
        assert "1 session ended" in run(site, "1", *filter).stdout
        site.browser().login()
        assert "1 session ended" in run(site, "--all", *filter, input="y\n").stdout


@pytest.mark.table
def test_sessions_of_deleted_users_do_not_match(varied: Site) -> None:
    """16: sessions of deleted users never match: they are unusable, and a prune ends them."""
    varied.change(user_id=None)
    for filter in ([], ["--ip", "0.0.0.0/0"], ["--older-than", "1d"]):
        assert "0 sessions would end" in run(varied, "--all", *filter, "--dry-run").stdout
        assert "0 sessions ended" in run(varied, "--all", *filter, "--yes").stdout


@pytest.mark.table
def test_filter_blocks_adoption(make_site: SiteFactory) -> None:
    """24: a filter blocks the adoption of users with a matching session, and of no others."""
    site = make_site(SESSION_REGISTRY_UNREGISTERED="adopt")
    site.browser("Phone").login("ann")
    site.browser("Laptop").login("bob")
    assert "1 session ended" in run(site, "--all", "--yes", "--user-agent", "phone").stdout

    def barred() -> list[bool]:
        with site.context():
            records = t.cast(Adoption, site.registry.adoption).records
            return [records.is_adoption_blocked(id) for id in (1, 2, 3)]

    assert barred() == [True, False, False]
    run(site, "--all", "--yes")
    assert barred() == [True, True, True]


def test_invalid_address_is_in_no_network(site: Site) -> None:
    """16: a recorded address that is invalid matches no network."""
    site.browser().login()
    site.change(ip_address="somewhere")
    for network in ("0.0.0.0/0", "::/0"):
        assert "0 sessions ended" in run(site, "1", "--ip", network).stdout


REFUSED = [
    (["--older-than", "30"], "'30' is not a duration. Use"),
    (["--older-than", "1.5d"], "'1.5d' is not a duration"),
    (["--older-than", "0d"], "'0d' is not a duration"),
    (["--older-than", "-1d"], "'-1d' is not a duration"),
    (["--idle-for", "5y"], "'5y' is not a duration"),
    (["--idle-for", ""], "'' is not a duration"),
    (["--idle-for", "\u0663d"], "is not a duration"),
    (["--idle-for", "99999999999w"], "is out of range. Use a shorter duration."),
    (["--idle-for", "9" * 5000 + "w"], "is out of range. Use a shorter duration."),
    (["--idle-for", "999999d"], "is out of range. Use a shorter duration."),
    (["--ip", "10.0.0"], "is not an IP address or network"),
    (["--ip", "example.com"], "is not an IP address or network"),
    (["--ip", ""], "is not an IP address or network"),
    (["--ip", "10.1.2.3/8"], "Use '10.0.0.0/8' for the whole network"),
    (["--user-agent", ""], "It is empty."),
    (["--format", "xml"], "xml"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_invalid_filter(busy_site: Site, arguments: list[str], message: str) -> None:
    """16: an invalid filter gives exit code 2 and says what to write. Nothing is changed."""
    result = run(busy_site, "--all", "--yes", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", "").split())
    assert busy_site.active("ann") == 2


@pytest.fixture
def busy_site(site: Site) -> Site:
    """Return a site where Ann is signed in on two browsers."""
    site.browser("Firefox").login()
    site.browser("Chrome").login()
    return site


def test_durations() -> None:
    """16: each unit of a duration is exact to the second."""
    units = {"45s": 45, "90m": 5400, "12h": 43200, "30d": 2592000, "2w": 1209600, "007d": 604800}
    for text, seconds in units.items():
        before = dt.datetime.now(dt.timezone.utc)
        moment = filters.ago(text) + dt.timedelta(seconds=seconds)
        assert before <= moment <= dt.datetime.now(dt.timezone.utc)


def test_idle_without_touching(make_site: SiteFactory) -> None:
    """16: without touching, '--idle-for' is refused, because sessions in use would look idle."""
    site = make_site(SESSION_REGISTRY_TOUCH_INTERVAL=None)
    site.browser().login()
    result = run(site, "1", "--idle-for", "1d")
    assert result.exit_code == 2
    assert "'SESSION_REGISTRY_TOUCH_INTERVAL' is None" in result.stderr
    assert "0 sessions ended" in run(site, "1", "--older-than", "1d").stdout


def test_filter_for_everybody_asks_first(busy_site: Site) -> None:
    """16: '--all' with a filter asks for confirmation; named users with a filter don't."""
    refused = run(busy_site, "--all", "--user-agent", "fire", input="n\n")
    assert refused.exit_code == 1
    assert "Revoke 1 matching session of all users?" in refused.stderr
    assert busy_site.active("ann") == 2
    assert "1 session ended" in run(busy_site, "1", "--user-agent", "fire").stdout


@pytest.mark.table
def test_sessions_are_counted_once(busy_site: Site) -> None:
    """16: sessions are counted once for the question, and not at all without it."""

    def counts(*arguments: str, input: str | None = None) -> int:
        with busy_site.count_statements() as statements:
            assert run(busy_site, "--all", *arguments, input=input).exit_code == 0
        return sum("count(" in text for text in statements.texts)

    assert counts("--user-agent", "none of them", input="y\n") == 1
    assert counts(input="y\n") == 1
    assert counts("--yes") == 0


def add_sessions(site: Site, count: int) -> None:
    """Add sessions of Ann, with signed cookies."""
    moment = days_ago(0)
    rows = [
        {
            "id": uuid.uuid4(),
            "generation": 0,
            "user_id": 1,
            "ip_address": "10.0.0.1",
            "user_agent": "x" * 500,
            "created_at": moment,
            "last_seen_at": moment,
            "authenticated_at": moment,
        }
        for _ in range(count)
    ]
    site.add_rows(rows)


@pytest.mark.parametrize("option", ["--user-agent", "--reason", "--ip", "--older-than"])
def test_argument_is_not_utf_8(site: Site, option: str) -> None:
    """16: an argument that is not UTF-8 is refused with an error."""
    site.browser().login()
    result = run(site, "1", option, "\udcff")
    assert result.exit_code == 2
    assert "not UTF-8" in result.stderr
    assert site.active() == 1


@pytest.mark.parametrize("name", ["0_1", " 1", "+1", "\u0661", "1\n"])
def test_number_in_another_notation(site: Site, name: str) -> None:
    """16: a number in another notation matches no user."""
    site.browser().login()
    assert run(site, name).exit_code == 1
    assert site.active() == 1


def test_user_agent_filter_is_cleaned(site: Site) -> None:
    """A user agent filter drops the same characters that were dropped when it was recorded."""
    site.browser("Fire fox").login()
    assert "1 session ended" in run(site, "1", "--user-agent", "fire\x07fox").stdout


@pytest.mark.once
def test_memory_is_flat(make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """40: twice as many matching sessions need no more memory."""
    monkeypatch.setattr(records, "BATCH", 200)
    site = make_site("cookie")

    def peak(count: int) -> int:
        add_sessions(site, count)
        tracemalloc.start()
        try:
            result = run(site, "--all", "--yes", "--ip", "10.0.0.0/8")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            assert f"{count} session{'' if count == 1 else 's'} ended" in result.stdout

    peak(1)
    # Two reads, then four.
    few = peak(records.BATCH * 20)
    assert peak(records.BATCH * 40) < 1.3 * few


# -- output --------------------------------------------------------------------------------------


def test_dry_run_shows_the_first_ten(site: Site) -> None:
    """16: a dry run lists ten of eleven sessions, in columns and without control characters."""
    for number in range(11):
        site.browser(f"Browser {number}").login()
    site.change(user_agent="\x1b[31mred\u202e", ip_address="\x07")
    result = run(site, "1", "--dry-run")
    first, *lines, last = result.stdout.splitlines()
    assert first == "11 sessions would end. Nothing was changed."
    assert last == "  ... and 1 more"
    shown = [line.split()[0] for line in lines]
    assert len(shown) == 10
    ids = sorted(str(row.id) for row in site.rows())
    # Unlike in a table, they have no order in Redis.
    assert shown == ids[:10] if site.records == "sql" else set(shown) < set(ids)
    assert all(
        re.fullmatch(r"  \S{36}  1     [-0-9]{10} [:0-9]{8} UTC   \[31mred", x) for x in lines
    )
    assert "more" not in run(site, "1", "--dry-run", "--user-agent", "nobody").stdout
    sample = json.loads(run(site, "1", "--dry-run", "--format", "json").stdout)["sample"]
    assert {row["id"] for row in sample} == set(shown)


def test_dry_run_as_json(database_site: Site) -> None:
    """16: a dry run in JSON has exactly these keys, with UTC times in ISO 8601."""
    site = database_site
    visit(site, "ann", agent="Phone", address=ADDRESSES[2], days=2, idle=1)
    (row,) = site.rows()
    result = run(site, "1", "--dry-run", "--format", "json")
    assert result.stderr == ""
    assert json.loads(result.stdout) == {
        "would_end": 1,
        "sample": [
            {
                "id": str(row.id),
                "user_id": 1,
                "ip_address": "2001:db8::7",
                "user_agent": "Phone",
                "created_at": row.created_at.isoformat(),
                "last_seen_at": row.last_seen_at.isoformat(),
            }
        ],
    }
    assert row.created_at.isoformat().endswith("+00:00")
    assert run(site, "2", "--dry-run", "--format", "json").stdout == (
        '{"would_end": 0, "sample": []}\n'
    )


@pytest.mark.parametrize("model", [uuid_keys, string_keys])
def test_json_of_keys_that_are_not_numbers(make_site: SiteFactory, model: t.Any) -> None:
    site = make_site(model=model)
    site.browser().login()
    sample = json.loads(run(site, "--all", "--dry-run", "--format", "json").stdout)["sample"]
    with site.context():
        assert sample[0]["user_id"] == str(site.user("ann").id)


def test_json(busy_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """16: JSON output is a single object, also with the session store down."""
    result = run(busy_site, "1", "--user-agent", "firefox", "--format", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == {"ended": 1, "purged": 1, "unpurged": 0}

    def fail(*_: t.Any, **__: t.Any) -> None:
        raise OSError

    monkeypatch.setattr(entries.Entries, "delete", fail)
    result = run(busy_site, "1", "--format", "json")
    assert json.loads(result.stdout) == {"ended": 1, "purged": 0, "unpurged": 1}
    assert json.loads(run(busy_site, "1", "--format", "json").stdout)["ended"] == 0


def test_json_with_an_error(busy_site: Site) -> None:
    """16: an error in JSON mode prints nothing on stdout and keeps its exit code."""
    for arguments, code in ((["99"], 1), (["1", "--all"], 2), (["--all"], 1)):
        result = run(busy_site, *arguments, "--format", "json")
        assert (result.exit_code, result.stdout) == (code, "")


def test_only_the_result_in_a_pipe(busy_site: Site) -> None:
    """16: a successful cron job prints nothing on stderr."""
    result = run(busy_site, "--all", "--yes")
    assert (result.stdout, result.stderr) == (
        "2 sessions ended; 2 entries purged from the session store.\n",
        "",
    )


def test_progress_bar_on_a_terminal(
    busy_site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """16: on a terminal, the progress bar is on stderr, so that stdout has only the result."""
    ours, theirs = pty.openpty()
    shown = ""
    with os.fdopen(ours, "rb", buffering=0) as screen, os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
        with busy_site.count_statements() as statements:
            busy_site.app.cli.main(
                ["revoke-sessions", "--all", "--format", "json"],
                obj=ScriptInfo(create_app=lambda: busy_site.app),
                standalone_mode=False,
            )
        terminal.close()
        # The terminal reports its end as an error.
        with contextlib.suppress(OSError):
            while True:
                shown += screen.read(100_000).decode()
    assert json.loads(capsys.readouterr().out) == {"ended": 2, "purged": 2, "unpurged": 0}
    assert "Ending sessions" in shown
    assert "100%" in shown
    # For the question, and not again for the progress bar.
    assert busy_site.records != "sql" or sum("count(" in text for text in statements.texts) == 1


@pytest.mark.parametrize("filter", [[], ["--ip", "127.0.0.1"]])
def test_interrupted(
    make_site: SiteFactory,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    filter: list[str],
) -> None:
    """16: after Ctrl-C during a purge, the output counts the ended sessions.

    A second run ends the rest.
    """
    # A process started in the background may ignore SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    site = make_site(users=("ann", "bob", "cid", "dan"))
    for name in ("ann", "bob", "cid", "dan"):
        site.browser().login(name)
    monkeypatch.setattr(operator, "_USERS", 1)
    monkeypatch.setattr(records, "BATCH", 1)
    delete, asked = entries.Entries.delete, []

    def interrupted(self: t.Any, keys: t.Any, **options: t.Any) -> None:
        asked.append(keys)
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        delete(self, keys, **options)

    with monkeypatch.context() as context:
        context.setattr(entries.Entries, "delete", interrupted)
        result = run(site, "--all", "--yes", "--format", "json", *filter)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "Stopped: 2 sessions ended so far. Run it again" in result.stderr
    assert len(site.rows(revoked_at=None)) == 2
    assert "2 sessions ended" in run(site, "--all", "--yes", *filter).stdout
    assert site.rows(revoked_at=None) == []


@pytest.mark.table
def test_database_fails_in_the_middle(make_site: SiteFactory) -> None:
    """16: after a database error midway, the sessions reported as ended have ended."""
    site = make_site(users=("ann", "bob", "cid"))
    for name in ("ann", "bob", "cid"):
        site.browser().login(name)
    sent: list[str] = []

    def fail(_: t.Any, __: t.Any, statement: str, *___: t.Any) -> None:
        if statement.startswith("UPDATE") and "revoked_reason" in statement:
            sent.append(statement)
            if len(sent) == 2:
                raise OSError("gone")

    with site.context():
        engine = site.db.engine
    with pytest.MonkeyPatch.context() as context:
        context.setattr(operator, "_USERS", 1)
        sa.event.listen(engine, "before_cursor_execute", fail)
        result = run(site, "--all", "--yes")
        sa.event.remove(engine, "before_cursor_execute", fail)
    assert result.exit_code == 1
    assert "Stopped: 1 session ended so far" in result.stderr
    assert len(site.rows(revoked_at=None)) == 2


def test_exit_codes_are_explained(site: Site) -> None:
    """16: the help explains each exit code on its own line."""
    text = run(site, "--help").stdout
    assert re.search(r"Exit codes:\n +0  .*\n +1  .*\n +2  ", text)


# -- flask sessions ------------------------------------------------------------------------------


def sessions(site: Site, *arguments: str) -> t.Any:
    return site.app.test_cli_runner().invoke(args=["sessions", *arguments])


def listed(site: Site, *arguments: str) -> list[dict[str, t.Any]]:
    result = sessions(site, "list", *arguments, "--format", "json")
    assert result.exit_code == 0, result.output
    return t.cast("list[dict[str, t.Any]]", json.loads(result.stdout)["sessions"])


def test_list(varied: Site) -> None:
    """16: 'list' shows a user's active sessions in blocks, most recently seen first."""
    result = sessions(varied, "list", "--by", "name", "ann")
    assert result.exit_code == 0
    blocks = result.stdout.split("\n\n")
    rows = varied.rows(user_id=1)[::-1]
    assert [block.splitlines()[0] for block in blocks] == [f"{row.id}, user 1" for row in rows]
    phone = rows[0]
    assert blocks[0].splitlines()[1:] == [
        f"    began       {phone.created_at:%Y-%m-%d %H:%M:%S} UTC",
        f"    last seen   {phone.last_seen_at:%Y-%m-%d %H:%M:%S} UTC",
        "    address     10.1.2.3",
        "    user agent  Phone 100%",
        "    remembered  -",
    ]
    assert listed(varied, "1") == listed(varied, "--by", "name", "ann")
    assert [row["user_agent"][0] for row in listed(varied, "1")] == ["P", "T", "O"]
    run(varied, "1")
    assert sessions(varied, "list", "1").stdout == "No sessions.\n"
    assert listed(varied, "1") == []


def test_list_as_json(database_site: Site) -> None:
    """16: 'list' in JSON has exactly these keys."""
    site = database_site
    site.browser("Phone").login(remember="yes")
    (row,) = site.rows()
    assert listed(site, "1") == [
        {
            "id": str(row.id),
            "user_id": 1,
            "ip_address": "127.0.0.1",
            "user_agent": "Phone",
            "created_at": row.created_at.isoformat(),
            "last_seen_at": row.last_seen_at.isoformat(),
            "remember_until": row.remember_until.isoformat(),
            "is_active": True,
            "ended_at": None,
            "ended_reason": None,
        }
    ]
    until = f"{row.remember_until:%Y-%m-%d %H:%M:%S} UTC"
    assert f"    remembered  until {until}\n" in sessions(site, "list", "1").stdout


def test_list_of_ended_sessions(varied: Site) -> None:
    """16: '--ended' adds ended sessions with time and reason, after the active ones."""
    run(varied, "1", "--older-than", "2d", "--reason", "stolen laptop")
    assert [row["user_agent"][0] for row in listed(varied, "1")] == ["P"]
    found = listed(varied, "1", "--ended")
    assert [row["user_agent"][0] for row in found] == ["P", "T", "O"]
    assert [row["is_active"] for row in found] == [True, False, False]
    (tablet,) = varied.rows(user_agent="Tablet 100_")
    assert found[1]["ended_at"] == tablet.revoked_at.isoformat()
    assert [row["ended_reason"] for row in found] == [None, "stolen laptop", "stolen laptop"]
    text = sessions(varied, "list", "1", "--ended").stdout
    ended = f"    ended       {tablet.revoked_at:%Y-%m-%d %H:%M:%S} UTC, stolen laptop\n"
    assert text.count("    ended  ") == 2
    assert ended in text


def test_list_of_expired_sessions(busy_site: Site) -> None:
    """16: expired and outdated sessions that aren't revoked yet are listed as ended, not active."""
    site = busy_site
    with site.context():
        site.db.session.execute(sa.update(site.User).values(password_hash="new"))
        site.db.session.commit()
    assert listed(site, "1") == []
    assert [row["is_active"] for row in listed(site, "1", "--ended")] == [False, False]
    text = sessions(site, "list", "1", "--ended").stdout
    assert text.count("    ended       expired, or opened with an earlier password;") == 2


def test_list_shows_no_key(busy_site: Site) -> None:
    """54: 'list' shows no session id, store key or fingerprint."""
    run(busy_site, "1", "--user-agent", "chrome")
    output = sessions(busy_site, "list", "1", "--ended").output
    output += sessions(busy_site, "list", "1", "--ended", "--format", "json").output
    output += run(busy_site, "1", "--dry-run").output
    for row in busy_site.rows():
        assert str(row.id) in output
        for secret in (row.store_id.removeprefix(busy_site.prefix), row.fingerprint):
            assert secret not in output


def test_list_cannot_break_the_terminal(make_site: SiteFactory) -> None:
    """53: hostile text in a row or in a user's key can't break the terminal."""
    site = make_site(model=string_keys)
    site.browser().login()
    nasty = "\x1b]0;title\x07a\r\nb\u202ec\x9b31m"
    with site.context():
        id = str(site.user("ann").id)
    site.change(user_agent=nasty, ip_address=nasty)
    run(site, id, "--reason", nasty)
    for text in (
        sessions(site, "list", id, "--ended").stdout,
        run(site, id, "--dry-run").stdout,
        sessions(site, "list", id, "--ended", "--format", "json").stdout,
    ):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)


def test_list_of_an_unknown_user(busy_site: Site) -> None:
    """16: 'list' reports an unknown user as 'revoke-sessions' does."""
    for arguments in (["99"], ["--by", "name", "eve"], ["--by", "shoe_size", "45"]):
        result = sessions(busy_site, "list", *arguments, "--format", "json")
        assert (result.exit_code, result.stdout) == (1, "")
    assert sessions(busy_site, "list").exit_code == 2


def test_list_of_several_users(make_site: SiteFactory) -> None:
    """16: 'list' shows all users who share the given value."""
    site = make_site()
    with site.context():
        site.db.session.execute(sa.update(site.User).values(note="staff"))
        site.db.session.commit()
    site.browser().login("ann")
    site.browser().login("bob")
    assert [row["user_id"] for row in listed(site, "--by", "note", "staff")] == [1, 2]


def test_prune_as_json(busy_site: Site) -> None:
    busy_site.change(last_seen_at=days_ago(100))
    result = sessions(busy_site, "prune", "--format", "json")
    assert (result.exit_code, result.stderr) == (0, "")
    expected = {"ended": 2, "purged": 2, "forgotten": 0, "unpurged": 0}
    assert json.loads(result.stdout) == expected
