"""Messages when user sessions can't be read or written (SCENARIOS 16, 37, 38, 54)."""

from __future__ import annotations

import contextlib
import json
import logging
import typing as t
from collections.abc import Callable, Iterator

import pytest
import redis
import servers
import sqlalchemy as sa
from conftest import SiteFactory
from flask_migrate import Migrate
from site_under_test import RECORDS, Site
from test_faults import Broken

from flask_session_registry import RecordsError
from flask_session_registry._diagnosis import diagnose

pytestmark = [pytest.mark.table, pytest.mark.once]

LOGGER = "flask_session_registry"
MISSING = (
    "The table 'user_sessions' is missing. Run 'flask db upgrade', after 'flask db migrate' if no"
    " migration creates it yet."
)
DOWN = (
    "The database can't be queried (OperationalError). Check that it is running, that"
    " 'SQLALCHEMY_DATABASE_URI' (or the bind of the users) is correct, and that its user may read"
    " the tables."
)
REDIS_DOWN = (
    "The user sessions can't be read (ConnectionError). Check that Redis is running and that"
    " 'SESSION_REGISTRY_REDIS' is correct."
)


def sql(site: Site, *statements: str) -> None:
    with site.context():
        for statement in statements:
            site.db.session.execute(sa.text(statement))
        site.db.session.commit()


def drop_table(site: Site) -> None:
    sql(site, "DROP TABLE user_sessions")


def stop_database(site: Site) -> None:
    """Make SQLite unable to open the database: to the app, an unreachable server."""
    with site.context():
        site.db.engine.dispose()
    (site.folder / "site.db").unlink()
    (site.folder / "site.db").mkdir()


@pytest.fixture
def migrated(make_site: SiteFactory) -> SiteFactory:
    """Return a factory of sites set up with Flask-Migrate, as apps are."""

    def make(*arguments: t.Any, **options: t.Any) -> Site:
        site = make_site(*arguments, **options)
        Migrate(site.app, site.db)
        return site

    return make


@pytest.fixture
def stop_redis(migrated: SiteFactory, monkeypatch: pytest.MonkeyPatch) -> Callable[[Site], None]:
    """Return a function that points a site at a port where no Redis listens."""

    def stop(site: Site) -> None:
        client = redis.Redis(port=servers.free_port(), retry=None)
        monkeypatch.setattr(site.registry.redis, "client", client)

    return stop


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return a function that reads and clears the log, each record as it would be written."""

    def read() -> list[str]:
        formatter = logging.Formatter("%(levelname)s %(message)s")
        lines = [formatter.format(one) for one in caplog.records if one.name == LOGGER]
        caplog.clear()
        return lines

    return read


# -- in a request ----------------------------------------------------------------------------------


def test_missing_table(migrated: SiteFactory, database: str, told: t.Any) -> None:
    """37: with the table missing, the log says in one line what to do.

    The visitor is asked to try again.
    """
    site = migrated("files", database)
    firefox = site.browser()
    firefox.login()
    drop_table(site)
    answer = firefox.get("/me")
    assert answer.status_code == 503
    assert "Your session could not be checked. Please try again in a moment." in answer.text
    assert told() == [f"ERROR Could not read the user sessions. {MISSING}"]
    with site.context():
        assert site.browser().login().status_code == 503
    (line,) = told()
    assert line.startswith("ERROR Could not save the session changes of this request. The table")


@pytest.mark.parametrize("way", ["debug mode", "level"])
def test_traceback(
    migrated: SiteFactory, told: t.Any, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """54: in debug mode or at level DEBUG, a traceback follows the line.

    It omits the texts of other libraries' errors.
    """
    site = migrated()
    firefox = site.browser()
    firefox.login()
    drop_table(site)
    site.registry.tables_were_checked = True
    site.app.debug = way == "debug mode"
    level = logging.DEBUG if way == "level" else logging.INFO
    with caplog.at_level(level, LOGGER):
        firefox.get("/me")
    (record,) = told()
    line, *trace = record.splitlines()
    assert line == f"ERROR Could not read the user sessions. {MISSING}"
    assert trace[0] == "Traceback (most recent call last):"
    assert "SELECT" not in record
    assert "no such table" not in record


@pytest.mark.parametrize("mode", ["DEBUG", "TESTING"])
def test_developer_reads_it_in_the_browser(migrated: SiteFactory, mode: str) -> None:
    """A developer sees in the browser what to do about a missing table.

    If the database is down, the page asks to try again, as it does for visitors.
    """
    site = migrated()
    firefox = site.browser()
    firefox.login()
    site.app.config[mode] = True
    with Broken(site, "user_sessions"):
        assert "Please try again in a moment." in firefox.get("/me").text
    drop_table(site)
    for answer in (firefox.get("/me"), site.browser().login()):
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        assert "&#39;flask db upgrade&#39;" in answer.text
        assert "try again" not in answer.text


@pytest.mark.parametrize("column", ["generation", "ip_address"])
def test_missing_column(migrated: SiteFactory, database: str, told: t.Any, column: str) -> None:
    """A missing column, as after an update of the registry, is named on reads and on writes."""
    site = migrated("files", database)
    firefox = site.browser()
    firefox.login()
    sql(site, f"ALTER TABLE user_sessions DROP COLUMN {column}")
    assert (firefox.get("/me") if column == "generation" else firefox.login()).status_code == 503
    assert told()[0].endswith(
        f"The table 'user_sessions' does not match its model: it lacks the column '{column}'."
        " Run 'flask db upgrade', after 'flask db migrate' if no migration changes it yet."
    )


def test_table_of_the_app_is_missing(migrated: SiteFactory, database: str, told: t.Any) -> None:
    """A missing table of the app isn't blamed on the registry, and its name isn't shown."""
    site = migrated("files", database)
    firefox = site.browser()
    firefox.login()
    sql(site, "ALTER TABLE account DROP COLUMN note")
    firefox.get("/me")
    assert "A table of the app lacks a column (" in told()[0]
    sql(site, "ALTER TABLE account RENAME TO people")
    firefox.get("/me")
    (line,) = told()
    assert "A table of the app is missing (" in line
    assert "Run 'flask db upgrade'" in line
    sql(site, "ALTER TABLE people RENAME TO account")


def test_database_is_down(migrated: SiteFactory, told: t.Any) -> None:
    site = migrated()
    firefox = site.browser()
    firefox.login()
    stop_database(site)
    for _ in range(2):
        assert firefox.get("/me").status_code == 503
        assert told() == [f"ERROR Could not read the user sessions. {DOWN}"]


def test_connection_was_cut(migrated: SiteFactory, database: str, told: t.Any) -> None:
    """A connection cut while in use gives the same message as one that can't be opened."""
    if database == "sqlite":
        pytest.skip("SQLite has no server.")
    site = migrated("files", database)
    firefox = site.browser()
    firefox.login()
    own = {
        "postgresql": "SELECT pg_backend_pid()",
        "mariadb": "SELECT CONNECTION_ID()",
    }[database]
    kill = {"postgresql": "SELECT pg_terminate_backend({})", "mariadb": "KILL {}"}[database]
    with site.context():
        engine = site.db.engine
        with engine.connect() as one, engine.connect() as other:
            ids = [each.scalar(sa.text(own)) for each in (one, other)]
    killer = sa.create_engine(engine.url, poolclass=sa.NullPool)
    with killer.connect() as connection:
        for id in ids:
            connection.execute(sa.text(kill.format(id)))
    assert firefox.get("/me").status_code == 503
    assert told() == [f"ERROR Could not read the user sessions. {DOWN}"]


def test_redis_is_down(migrated: SiteFactory, stop_redis: t.Any, told: t.Any) -> None:
    site = migrated(records="redis")
    firefox = site.browser()
    firefox.login()
    stop_redis(site)
    assert firefox.get("/me").status_code == 503
    assert told() == [f"ERROR Could not read the user sessions. {REDIS_DOWN}"]


# -- other errors ----------------------------------------------------------------------------------


def error_of(act: Callable[[], t.Any]) -> BaseException:
    with pytest.raises(sa.exc.SQLAlchemyError) as error:
        act()
    return error.value


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mysql+pymysql"])
def test_server_is_unreachable(driver: str) -> None:
    """For an unreachable server, the message doesn't show the URL and its password."""
    engine = sa.create_engine(f"{driver}://ann:secret@127.0.0.1:{servers.free_port()}/x")
    assert str(diagnose(error_of(engine.connect))) == DOWN


@contextlib.contextmanager
def holding(site: Site, database: str) -> Iterator[sa.Engine]:
    """Yield an engine while another transaction holds Ann's row."""
    with site.context():
        url = site.db.engine.url
    options = {"connect_args": {"timeout": 0}} if database == "sqlite" else {}
    engine = sa.create_engine(url, poolclass=sa.NullPool, **options)
    with engine.connect() as connection:
        connection.execute(sa.text("UPDATE account SET note = 'x'"))
        yield engine


def test_row_is_locked(migrated: SiteFactory, database: str) -> None:
    limit = {
        "sqlite": "SELECT 1",
        "postgresql": "SET lock_timeout = '10ms'",
        "mariadb": "SET innodb_lock_wait_timeout = 0",
    }[database]
    site = migrated("files", database)
    with holding(site, database) as engine, engine.connect() as other:
        other.execute(sa.text(limit))
        error = error_of(lambda: other.execute(sa.text("UPDATE account SET note = 'y'")))
    assert diagnose(error).problem.startswith(
        "Another transaction has held a lock on rows or the table for too long (OperationalError"
    )


def test_all_connections_are_in_use(tmp_path: t.Any) -> None:
    engine = sa.create_engine(
        f"sqlite:///{tmp_path}/x.db",
        poolclass=sa.QueuePool,
        pool_size=1,
        max_overflow=0,
        pool_timeout=0,
    )
    with engine.connect():
        error = error_of(engine.connect)
    assert diagnose(error).problem == "All connections to the database are in use."


class _RefusedError(Exception):
    sqlstate = "40001"


def test_commit_is_refused() -> None:
    """A refused commit has no statement either, but it doesn't mean that the database is down."""
    error = sa.exc.OperationalError(None, None, _RefusedError("secret"))
    found = diagnose(error)
    assert found.problem == "A statement on the user sessions failed (OperationalError, 40001)."
    assert "flask sessions doctor" in found.remedy


def test_error_without_a_code(site: Site) -> None:
    """An error of SQLAlchemy itself is reported by its class, without its text."""
    with site.context():
        found = diagnose(sa.exc.InvalidRequestError("secret"))
    assert found.problem == "A statement on the user sessions failed (InvalidRequestError)."


class _OddError(Exception):
    def __str__(self) -> str:
        raise ValueError("secret")


def test_error_without_a_readable_text() -> None:
    """An error whose text can't be read is reported by its class and breaks no request."""
    found = diagnose(sa.exc.OperationalError("SELECT 1", {}, _OddError(), False))
    assert found.problem == "A statement on the user sessions failed (OperationalError)."


def test_error_of_ours() -> None:
    """The package's own errors already say what to do."""
    assert str(diagnose(RecordsError("It was changed. Try again."))) == "It was changed. Try again."


def test_no_app() -> None:
    """Without an app, the message names neither the table nor the kind of records."""
    missing = sa.exc.OperationalError("SELECT 1", {}, Exception("no such table: user_sessions"))
    assert diagnose(missing).problem == "A table of the app is missing (OperationalError)."
    assert "'flask db upgrade'" in diagnose(missing).remedy
    lacking = sa.exc.OperationalError("SELECT 1", {}, Exception("no such column: generation"))
    assert diagnose(lacking).problem == "A table of the app lacks a column (OperationalError)."


# -- outside a request -----------------------------------------------------------------------------


@pytest.mark.parametrize("statement", ["DROP TABLE", "ALTER TABLE"])
@pytest.mark.parametrize("action", ["password", "deactivate", "delete"])
def test_password_change_in_a_shell(
    migrated: SiteFactory, database: str, statement: str, action: str
) -> None:
    """With a broken table, a password change raises an error and stores nothing."""
    site = migrated("files", database)
    site.User.is_active = property(lambda self: self.note != "inactive")
    what = "" if statement == "DROP TABLE" else "DROP COLUMN revoked_reason"
    sql(site, f"{statement} user_sessions {what}")
    with site.context():
        user = site.user("ann")
        if action == "password":
            user.password_hash = "new"
        elif action == "deactivate":
            user.note = "inactive"
        else:
            site.db.session.delete(user)
        with pytest.raises(RecordsError) as error:
            site.db.session.commit()
        site.db.session.rollback()
        assert (site.user("ann").password_hash, site.user("ann").note) == ("hash of ann", None)
    assert isinstance(error.value.__cause__, sa.exc.DBAPIError)
    if statement == "DROP TABLE":
        assert str(error.value) == MISSING
    else:
        assert "it lacks the column 'revoked_reason'. Run 'flask db upgrade'" in str(error.value)


@pytest.mark.parametrize("verb", ["revoke_all", "revoke", "active", "prune"])
def test_verbs_without_the_table(migrated: SiteFactory, verb: str) -> None:
    """Outside a request, each verb raises the same error without the table."""
    site = migrated()
    drop_table(site)
    id = "4c1f3b52-93f5-4d2e-8a53-7b7a1d1a6f0e"
    with site.context():
        user = site.user("ann")
        arguments: tuple[t.Any, ...] = {"revoke": (id,), "prune": ()}.get(verb, (user,))
        site.db.session.commit()
        with pytest.raises(RecordsError, match=r"'user_sessions' is missing\. Run 'flask"):
            getattr(site.sessions, verb)(*arguments)


def test_other_errors_of_a_password_change_stay(site: Site) -> None:
    """Other database errors pass through as SQLAlchemy's own, so that retries still work."""
    with site.context():
        site.user("ann").password_hash = "new"
        with Broken(site, "UPDATE user_sessions"), pytest.raises(sa.exc.OperationalError):
            site.db.session.commit()


def test_error_in_a_password_reset(migrated: SiteFactory, told: t.Any) -> None:
    """In a password reset, the view gets the error and decides what to do with it."""
    site = migrated()

    @site.app.post("/reset")
    def reset() -> str:
        site.user("ann").password_hash = "new"
        site.db.session.commit()
        return "stored"

    drop_table(site)
    site.app.config["PROPAGATE_EXCEPTIONS"] = True
    with pytest.raises(RecordsError) as error:
        site.browser().post("/reset")
    assert str(error.value) == str(diagnose(error.value)) == MISSING


# -- at the first request --------------------------------------------------------------------------


def test_first_request_in_debug_mode(migrated: SiteFactory, database: str, told: t.Any) -> None:
    """In debug mode, the first request logs the problem once, even if it needs no user."""
    site = migrated("cookie", database)
    drop_table(site)
    site.app.debug = True
    assert site.browser().get("/cart").status_code == 200
    assert told() == [f"ERROR {MISSING}"]
    with site.count_statements() as statements:
        assert site.browser().get("/cart").status_code == 200
    assert (told(), statements.texts) == ([], [])


def test_first_request_with_a_server_down(
    migrated: SiteFactory, stop_redis: t.Any, told: t.Any
) -> None:
    for records, stop, line in (("sql", stop_database, DOWN), ("redis", stop_redis, REDIS_DOWN)):
        site = migrated("cookie", records=records)
        stop(site)
        site.app.debug = True
        assert site.browser().get("/cart").status_code == 200
        assert told() == [f"ERROR {line}"]


def test_first_request_of_a_healthy_app(migrated: SiteFactory, told: t.Any) -> None:
    for records in RECORDS:
        site = migrated("cookie", records=records)
        site.app.debug = True
        assert site.browser().get("/cart").status_code == 200
        assert told() == []


def test_first_request_in_production(migrated: SiteFactory, told: t.Any) -> None:
    """In production nothing is checked: a request without a user costs nothing."""
    site = migrated("cookie")
    drop_table(site)
    with site.count_statements() as statements:
        assert site.browser().get("/cart").status_code == 200
    assert (told(), statements.texts) == ([], [])


def test_first_request_within_a_transaction(migrated: SiteFactory, told: t.Any) -> None:
    """The first request leaves an open transaction alone.

    With a single shared connection, the check would end it.
    """
    site = migrated(SQLALCHEMY_DATABASE_URI="sqlite://")
    site.app.debug = True
    with site.context():
        site.user("ann").note = "kept"
        site.db.session.flush()
        assert site.browser().get("/cart").status_code == 200
        site.db.session.commit()
        assert site.user("ann").note == "kept"
    assert not site.registry.tables_were_checked


# -- on the command line ---------------------------------------------------------------------------

COMMANDS = (
    ["revoke-sessions", "1"],
    ["revoke-sessions", "--all", "--yes"],
    ["revoke-sessions", "--all", "--dry-run"],
    ["sessions", "list", "1"],
    ["sessions", "prune"],
)


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands_without_the_table(
    migrated: SiteFactory, arguments: list[str], format: str
) -> None:
    """16: without the table, commands print one line on stderr and exit with 1."""
    site = migrated()
    drop_table(site)
    result = site.app.test_cli_runner().invoke(args=[*arguments, "--format", format])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"Error: {MISSING}\n"


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands_while_a_server_is_down(
    migrated: SiteFactory, stop_redis: t.Any, arguments: list[str]
) -> None:
    """16: while a server is down, commands do the same.

    If something might have ended before, the line says so.
    """
    for records, stop, line in (("sql", stop_database, DOWN), ("redis", stop_redis, REDIS_DOWN)):
        site = migrated(records=records)
        site.browser().login()
        stop(site)
        result = site.app.test_cli_runner().invoke(args=arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        stopped = " Stopped: 0 sessions ended so far. Run it again for the rest."
        assert result.stderr.replace(stopped, "") == f"Error: {line}\n"
        assert (stopped in result.stderr) <= (arguments[0] == "revoke-sessions")


@pytest.mark.parametrize("arguments", [*COMMANDS, ["sessions", "doctor"]], ids=" ".join)
def test_commands_of_a_misconfigured_app(migrated: SiteFactory, arguments: list[str]) -> None:
    """16: on a misconfigured app, commands do the same; the doctor reports it as a finding."""
    site = migrated()
    del site.app.login_manager
    line = "Error: Flask-Login is not set up on this app. Call 'login_manager.init_app(app)'.\n"
    result = site.app.test_cli_runner().invoke(args=arguments)
    assert result.exit_code == 1
    assert (result.stdout if "doctor" in arguments else result.stderr).count(line) == 1
    assert not result.stderr if "doctor" in arguments else result.stderr == line
    result = site.app.test_cli_runner().invoke(args=[*arguments, "--format", "json"])
    assert "findings" in json.loads(result.stdout) if "doctor" in arguments else not result.stdout


@pytest.mark.parametrize("way", ["debug mode", "level"])
def test_traceback_of_a_command(
    migrated: SiteFactory, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """16, 54: with 'flask --debug' or level DEBUG, a traceback without texts precedes the line."""
    site = migrated()
    drop_table(site)
    with caplog.at_level(logging.DEBUG if way == "level" else logging.INFO, LOGGER):
        result = site.app.test_cli_runner().invoke(
            args=["sessions", "list", "1"],
            env={"FLASK_DEBUG": "1" if way == "debug mode" else "0"},
        )
    assert (result.exit_code, result.stdout) == (1, "")
    first, *_, last = result.stderr.splitlines()
    assert (first, last) == ("Traceback (most recent call last):", f"Error: {MISSING}")
    assert "sqlalchemy.exc.OperationalError" in result.stderr
    assert "no such table" not in result.stderr


def test_doctor_says_the_same(migrated: SiteFactory, database: str) -> None:
    """The doctor reports the same problem, on stdout."""
    site = migrated("files", database)
    drop_table(site)
    result = site.app.test_cli_runner().invoke(args=["sessions", "doctor"])
    assert (result.exit_code, result.stderr) == (1, "")
    assert f"Error: {MISSING}\n" in result.stdout
