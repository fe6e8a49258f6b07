"""``flask sessions doctor`` finds each fault and reports none on a healthy app."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sqlite3
import typing as t
import warnings
from collections.abc import Callable, Iterator

import click
import pymemcache
import pytest
import redis
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from cachelib import FileSystemCache, RedisCache, SimpleCache
from conftest import SiteFactory
from flask_migrate import Migrate
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy
from pymemcache.client.retrying import RetryingClient
from site_under_test import STORES, Site, days_ago
from test_users import make_class, other_schema

from flask_session_registry._store import backends as entries

pytestmark = pytest.mark.table

HEALTHY: dict[str, t.Any] = {
    "SECRET_KEY": "fb6e1a1f0ecf0b1a4b2fbd0e3a1bb5d8",
    "SESSION_COOKIE_SECURE": True,
    "SESSION_COOKIE_SAMESITE": "Lax",
    "REMEMBER_COOKIE_SECURE": True,
    "REMEMBER_COOKIE_SAMESITE": "Lax",
}


@pytest.fixture(autouse=True)
def foreign_keys_are_enforced() -> Iterator[None]:
    """Enforce foreign keys on SQLite, as a careful app does."""

    def enforce(connection: t.Any, _: t.Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA foreign_keys = ON")

    sa.event.listen(sa.Pool, "connect", enforce)
    yield
    sa.event.remove(sa.Pool, "connect", enforce)


@pytest.fixture
def make_healthy(make_site: SiteFactory) -> SiteFactory:
    """Return a factory of sites with no faults except the given ones."""

    def make(store: str = "files", database: str = "sqlite", **options: t.Any) -> Site:
        site = make_site(store, database, **HEALTHY | options)
        Migrate(site.app, site.db)
        return site

    return make


class Examination(t.NamedTuple):
    exit_code: int
    #: Level and problem of each finding, in the order of the output.
    told: list[tuple[str, str]]
    remedies: list[str]


def examine(site: Site) -> Examination:
    """Run the doctor in both formats, which must agree."""
    runner = site.app.test_cli_runner()
    result = runner.invoke(args=["sessions", "doctor", "--format", "json"])
    findings = json.loads(result.stdout)["findings"]
    text = runner.invoke(args=["sessions", "doctor"])
    assert text.exit_code == result.exit_code
    *lines, _ = text.stdout.splitlines()
    assert lines == [
        f"{found['level'].capitalize()}: {found['problem']} {found['remedy']}" for found in findings
    ]
    assert all(len(found["problem"]) > 20 and found["problem"].endswith(".") for found in findings)
    assert all(len(found["remedy"]) > 10 and found["remedy"].endswith(".") for found in findings)
    for secret in (site.app.config["SECRET_KEY"], site.app.config["SQLALCHEMY_DATABASE_URI"]):
        assert not secret or str(secret) not in text.output
    return Examination(
        result.exit_code,
        [(found["level"], found["problem"]) for found in findings],
        [found["remedy"] for found in findings],
    )


def the_only(site: Site, level: str, *parts: str) -> None:
    """Check that this is the only finding."""
    found = examine(site)
    ((told_level, problem),) = found.told
    assert (told_level, found.exit_code) == (level, 1 if level == "error" else 0)
    for part in parts:
        assert part in problem + found.remedies[0]


# -- healthy apps --------------------------------------------------------------------------------


def test_healthy(make_healthy: SiteFactory, database: str) -> None:
    """A healthy app has no findings, and the exit code is 0, on each database."""
    site = make_healthy("files", database)
    site.browser().login()
    result = site.app.test_cli_runner().invoke(args=["sessions", "doctor"])
    assert (result.exit_code, result.stdout) == (0, "Nothing is wrong.\n")
    assert examine(site) == (0, [], [])


@pytest.mark.parametrize("store", [s for s in STORES if s not in ("memory", "mongodb")])
def test_healthy_stores(make_healthy: SiteFactory, store: str) -> None:
    """Each session store is queried and left unchanged."""
    site = make_healthy(store)
    if store == "memcached":
        t.cast(t.Any, site.app.session_interface).client.connect_timeout = 1
    site.browser().login()
    before = site.entries()
    assert examine(site) == (0, [], [])
    assert site.entries() == before


def test_schema(make_healthy: SiteFactory, databases: t.Any) -> None:
    """The table is compared in the users' schema."""
    engine = sa.create_engine(databases("postgresql"))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE SCHEMA people"))
    site = make_healthy("files", "postgresql", model=other_schema)
    assert examine(site) == (0, [], [])
    with site.context():
        site.db.session.execute(sa.text("DROP INDEX people.ix_people_user_sessions_store_id"))
        site.db.session.execute(sa.text("CREATE TABLE user_sessions (id int)"))
        site.db.session.commit()
    the_only(site, "error", "it lacks an index on 'store_id'")
    with site.context():
        site.db.session.remove()
        site.db.drop_all()
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE user_sessions"))
        connection.execute(sa.text("DROP SCHEMA people CASCADE"))
    engine.dispose()


def test_bind(make_healthy: SiteFactory, tmp_path: t.Any) -> None:
    """The table is compared in the users' bind."""

    def model(db: SQLAlchemy) -> type[t.Any]:
        return make_class(
            db,
            id=sa_orm.mapped_column(sa.Integer, primary_key=True),
            __bind_key__="people",
        )

    people = f"sqlite:///{tmp_path}/people.db"
    site = make_healthy(model=model, SQLALCHEMY_BINDS={"people": people})
    assert examine(site) == (0, [], [])
    with site.context():
        site.db.drop_all()
    the_only(site, "error", "The table 'user_sessions' is missing")


def test_without_flask_migrate(make_healthy: SiteFactory) -> None:
    """Without Flask-Migrate the table is compared too, and no missing command is suggested."""
    site = make_healthy()
    del site.app.extensions["migrate"]
    sql(site, "ALTER TABLE user_sessions ADD COLUMN more int")
    the_only(site, "error", "it has the column 'more'", "Alter it by hand")
    sql(site, "DROP TABLE user_sessions")
    the_only(site, "error", "The table 'user_sessions' is missing", "Call 'db.create_all()'")


@pytest.mark.parametrize("command", ["db", "schema"])
def test_with_flask_alembic(make_healthy: SiteFactory, command: str) -> None:
    """With Flask-Alembic, its command is suggested under the name that the app uses."""
    site = make_healthy()
    del site.app.extensions["migrate"]
    site.app.cli.commands.pop("db")
    site.app.extensions["alembic"] = object()
    group = click.Group(callback=lambda: None)
    group.callback.__module__ = "flask_alembic.cli"
    site.app.cli.add_command(group, command)
    sql(site, "DROP TABLE user_sessions")
    the_only(
        site, "error", f"Run 'upgrade' of Flask-Alembic's commands, 'flask {command} …', after"
    )


def test_flask_migrate_under_another_name(make_healthy: SiteFactory) -> None:
    """Flask-Migrate's command is suggested under the name that the app uses."""
    site = make_healthy()
    site.app.cli.commands["schema"] = site.app.cli.commands.pop("db")
    sql(site, "DROP TABLE user_sessions")
    the_only(site, "error", "Run 'flask schema upgrade', after 'flask schema migrate'")


# -- the app -------------------------------------------------------------------------------------


def test_misconfigured(make_healthy: SiteFactory) -> None:
    """A misconfiguration that stops the app is a finding, beside those that need no registry."""
    site = make_healthy(SESSION_COOKIE_HTTPONLY=False)
    del site.app.login_manager
    found = examine(site)
    assert found.exit_code == 1
    assert [problem for _, problem in found.told][1:] == ["Flask-Login is not set up on this app."]
    assert found.remedies[1] == "Call 'login_manager.init_app(app)'."


@pytest.mark.parametrize("key", ["", None, b""])
def test_no_secret_key(make_healthy: SiteFactory, key: t.Any) -> None:
    the_only(make_healthy(SECRET_KEY=key), "error", "'SECRET_KEY' is not set")


@pytest.mark.parametrize(
    "key", ["dev", b"secret", "change me", "Change-Me!", "you-will-never-guess", "your_secret_key"]
)
def test_secret_key_is_a_placeholder(make_healthy: SiteFactory, key: t.Any) -> None:
    the_only(make_healthy(SECRET_KEY=key), "error", "'SECRET_KEY' is a placeholder")


@pytest.mark.parametrize("key", ["x" * 15, b"q7" * 7, "ü" * 7, 12345])
def test_secret_key_is_short(make_healthy: SiteFactory, key: t.Any) -> None:
    the_only(make_healthy(SECRET_KEY=key), "error", "'SECRET_KEY' has fewer than 16 bytes")


@pytest.mark.parametrize("key", ["x" * 16, "ü" * 8, "development of my app", b"\xff" * 16])
def test_secret_key_is_good_enough(make_healthy: SiteFactory, key: t.Any) -> None:
    """The key's length is counted in bytes, and only a whole placeholder is refused."""
    assert examine(make_healthy(SECRET_KEY=key)).told == []


def test_fallback_is_a_placeholder(make_healthy: SiteFactory) -> None:
    """A placeholder among the fallback keys is an error too."""
    site = make_healthy(SECRET_KEY_FALLBACKS=["x" * 40, "change me"])
    the_only(site, "error", "A key in 'SECRET_KEY_FALLBACKS' is a placeholder", "Remove it")


@pytest.mark.parametrize("prefix", ["SESSION_COOKIE", "REMEMBER_COOKIE"])
@pytest.mark.parametrize(
    ("flag", "value", "level"),
    [("SECURE", False, "warning"), ("HTTPONLY", False, "error"), ("SAMESITE", None, "warning")],
)
def test_cookies(
    make_healthy: SiteFactory, prefix: str, flag: str, value: t.Any, level: str
) -> None:
    """Each insecure flag of each cookie is a finding."""
    name = f"{prefix}_{flag}"
    the_only(make_healthy(**{name: value}), level, f"'{name}'")


def test_defaults_of_flask(make_healthy: SiteFactory) -> None:
    """The unset flags of Flask and Flask-Login give warnings only."""
    site = make_healthy()
    for name in list(HEALTHY):
        if "COOKIE" in name:
            del site.app.config[name]
    site.app.config.update(SESSION_COOKIE_SECURE=False, SESSION_COOKIE_SAMESITE=None)
    found = examine(site)
    assert found.exit_code == 0
    assert [level for level, _ in found.told] == ["warning"] * 4
    text = site.app.test_cli_runner().invoke(args=["sessions", "doctor"]).stdout
    assert text.endswith("\n0 errors, 4 warnings.\n")


def test_everybody_is_remembered(make_healthy: SiteFactory) -> None:
    site = make_healthy(REMEMBER_COOKIE_REFRESH_EACH_REQUEST=True)
    the_only(site, "warning", "'REMEMBER_COOKIE_REFRESH_EACH_REQUEST'")


# -- the settings --------------------------------------------------------------------------------


def test_keys_are_not_hashed(make_healthy: SiteFactory) -> None:
    """Unhashed keys give a warning with a session store, but not with signed cookies."""
    off = {"SESSION_REGISTRY_HASH_SESSION_IDS": False}
    the_only(make_healthy(**off), "warning", "'SESSION_REGISTRY_HASH_SESSION_IDS' is off")
    assert examine(make_healthy("cookie", **off)).told == []


@pytest.mark.parametrize(
    ("name", "value"), [("PASSWORD_ATTRIBUTE", None), ("REVOKE_ON_PASSWORD_CHANGE", False)]
)
def test_passwords_are_not_watched(make_healthy: SiteFactory, name: str, value: t.Any) -> None:
    name = f"SESSION_REGISTRY_{name}"
    the_only(make_healthy(**{name: value}), "warning", f"'{name}' is ")


# -- the database --------------------------------------------------------------------------------


def sql(site: Site, *statements: str) -> None:
    with site.context():
        for statement in statements:
            site.db.session.execute(sa.text(statement))
        site.db.session.commit()


def test_database_is_unreachable(make_healthy: SiteFactory) -> None:
    """An unreachable database is a single error that shows nothing of its URL."""
    site = make_healthy()
    with site.context():
        site.db.engine.dispose()
        (site.folder / "site.db").unlink()
        (site.folder / "site.db").mkdir()
    the_only(site, "error", "The database can't be queried (OperationalError)")


@pytest.mark.parametrize("table", ["user_sessions", "user_session_tombstones"])
def test_table_is_missing(make_healthy: SiteFactory, database: str, table: str) -> None:
    site = make_healthy("files", database)
    sql(site, f"DROP TABLE {table}")
    the_only(site, "error", f"The table '{table}' is missing", "flask db upgrade")


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("user_sessions", "user_id"),
        ("user_sessions", "store_id"),
        ("user_session_tombstones", "store_id"),
    ],
)
def test_index_is_missing(
    make_healthy: SiteFactory, database: str, table: str, column: str
) -> None:
    if (database, column) == ("mariadb", "user_id"):
        pytest.skip("MariaDB keeps the index that a foreign key needs")
    site = make_healthy("files", database)
    on = f" ON {table}" if database == "mariadb" else ""
    sql(site, f"DROP INDEX ix_{table}_{column}{on}")
    the_only(site, "error", f"it lacks an index on '{column}'", "flask db upgrade")


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("ALTER TABLE user_sessions DROP COLUMN ip_address", "it lacks the column 'ip_address'"),
        ("ALTER TABLE user_sessions ADD COLUMN more int", "it has the column 'more'"),
    ],
)
def test_columns(make_healthy: SiteFactory, database: str, statement: str, problem: str) -> None:
    site = make_healthy("files", database)
    sql(site, statement)
    the_only(site, "error", problem, "flask db upgrade")


def test_null(make_healthy: SiteFactory) -> None:
    """Wrong nullability is an error.

    'user_id' must be nullable, or deleting a user fails. 'generation' must not: the check compares
    it.
    """
    site = make_healthy("files", "postgresql")
    sql(site, "ALTER TABLE user_sessions ALTER COLUMN user_id SET NOT NULL")
    the_only(site, "error", "'user_id' must be nullable")
    sql(
        site,
        "ALTER TABLE user_sessions ALTER COLUMN user_id DROP NOT NULL",
        "ALTER TABLE user_sessions ALTER COLUMN generation DROP NOT NULL",
    )
    the_only(site, "error", "'generation' must not be nullable")


def test_type(make_healthy: SiteFactory) -> None:
    site = make_healthy("files", "postgresql")
    sql(site, "ALTER TABLE user_sessions ALTER COLUMN user_agent TYPE varchar(20)")
    the_only(site, "error", "'user_agent' is VARCHAR(length=20) and should be String(length=512)")


def test_foreign_key_is_missing(make_healthy: SiteFactory) -> None:
    site = make_healthy("files", "postgresql")
    sql(site, "ALTER TABLE user_sessions DROP CONSTRAINT user_sessions_user_id_fkey")
    the_only(site, "error", "a migration would add fk")


def test_extra_index(make_healthy: SiteFactory, database: str) -> None:
    """An extra index is only a warning: every end of a session has to write it."""
    site = make_healthy("files", database)
    sql(site, "CREATE INDEX mine ON user_sessions (user_id, revoked_at)")
    the_only(site, "warning", "it has an index on 'user_id', 'revoked_at'", "Drop it")


def test_other_tables_are_ignored(make_healthy: SiteFactory) -> None:
    """Changes to the app's own tables are left to 'flask db check'."""
    site = make_healthy()
    sql(site, "ALTER TABLE account ADD COLUMN more int", "CREATE TABLE other (id int)")
    assert examine(site).told == []


def test_foreign_keys_of_sqlite(make_healthy: SiteFactory) -> None:
    site = make_healthy()
    with site.context():
        sa.event.listen(
            site.db.engine,
            "connect",
            lambda connection, _: connection.execute("PRAGMA foreign_keys = OFF"),
        )
        site.db.engine.dispose()
    the_only(site, "warning", "SQLite does not enforce foreign keys", "PRAGMA foreign_keys = ON")


@pytest.mark.parametrize(
    ("commands", "is_found"),
    [
        ("SET innodb_snapshot_isolation = ON", True),
        ("SET innodb_snapshot_isolation = ON, tx_isolation = 'READ-COMMITTED'", False),
        ("SET innodb_snapshot_isolation = OFF", False),
    ],
)
def test_snapshot_isolation(make_healthy: SiteFactory, commands: str, is_found: bool) -> None:
    """MariaDB's snapshot isolation, which refuses changes to newer rows, is a warning."""
    options = {"connect_args": {"init_command": commands}}
    site = make_healthy("files", "mariadb", SQLALCHEMY_ENGINE_OPTIONS=options)
    if is_found:
        the_only(site, "warning", "innodb_snapshot_isolation", "READ COMMITTED")
    else:
        assert examine(site).told == []


@pytest.mark.parametrize("name", ["SESSION_COOKIE", "REMEMBER_COOKIE"])
def test_cookie_is_sent_across_sites(make_healthy: SiteFactory, name: str) -> None:
    site = make_healthy(**{f"{name}_SAMESITE": "None"})
    the_only(site, "warning", "requests that other sites make", f"{name}_SAMESITE")


def test_fallbacks_are_text(make_healthy: SiteFactory) -> None:
    site = make_healthy(SECRET_KEY_FALLBACKS="a" * 32)
    the_only(site, "error", "each character is taken for a key", "a list")


@pytest.mark.parametrize(("version", "is_found"), [((10, 5, 20), True), ((10, 6, 1), False)])
def test_mariadb_is_too_old(
    make_healthy: SiteFactory,
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, ...],
    is_found: bool,
) -> None:
    """A MariaDB that can't skip locked rows is an error."""
    site = make_healthy("files", "mariadb")
    with site.context():
        dialect = site.db.engine.dialect
        site.db.session.execute(sa.text("SELECT 1"))
    monkeypatch.setattr(dialect, "server_version_info", version)
    if is_found:
        the_only(site, "error", "is too old", "MariaDB 10.6")
    else:
        assert examine(site).told == []


# -- what is due ---------------------------------------------------------------------------------


def ended(site: Site, monkeypatch: pytest.MonkeyPatch, *, days: float) -> None:
    """Create a session that ended this many days ago, while the session store was down."""

    def fail(*_: t.Any, **__: t.Any) -> None:
        raise OSError

    browser = site.browser()
    browser.login()
    with monkeypatch.context() as context:
        context.setattr(entries.Entries, "delete", fail)
        browser.post("/logout")
    age(site, revoked_at=days_ago(days))


def age(site: Site, **values: t.Any) -> None:
    with site.context():
        site.db.session.execute(sa.update(site.sessions.UserSession).values(**values))
        site.db.session.commit()


def test_pending_entries(make_healthy: SiteFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries pending for more than a day are reported with their number, until they are purged."""
    site = make_healthy(SESSION_REGISTRY_AUTO_PRUNE=3600)
    ended(site, monkeypatch, days=0.9)
    assert examine(site).told == []
    age(site, revoked_at=days_ago(1.1))
    the_only(site, "warning", "The entries of 1 session that ended more than a day ago")
    with site.context():
        site.sessions.prune()
    assert examine(site).told == []


def test_nothing_prunes(make_healthy: SiteFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing prune is a warning once entries have been pending for more than a day."""
    site = make_healthy()
    assert site.app.config["SESSION_REGISTRY_AUTO_PRUNE"] is None
    ended(site, monkeypatch, days=0.9)
    assert examine(site).told == []
    age(site, revoked_at=days_ago(1.1))
    found = examine(site)
    assert [level for level, _ in found.told] == ["warning"] * 2
    assert "'SESSION_REGISTRY_AUTO_PRUNE' is None" in found.told[1][1]
    assert found.remedies[1] == "Run 'flask sessions prune' from cron."


@pytest.mark.parametrize("auto_prune", [None, 3600])
def test_nothing_ends_expired_sessions(make_healthy: SiteFactory, auto_prune: int | None) -> None:
    """A missing prune is a warning once sessions have been expired for more than a day."""
    site = make_healthy(SESSION_REGISTRY_AUTO_PRUNE=auto_prune)
    site.browser().login()
    lifetime = site.app.permanent_session_lifetime / dt.timedelta(days=1)
    age(site, last_seen_at=days_ago(lifetime + 0.9))
    assert examine(site).told == []
    age(site, last_seen_at=days_ago(lifetime + 1.1))
    if auto_prune:
        assert examine(site).told == []
    else:
        the_only(site, "warning", "'SESSION_REGISTRY_AUTO_PRUNE' is None")
    age(site, revoked_at=days_ago(2), purged_at=days_ago(2))
    assert examine(site).told == []


def test_adopts_for_too_long(make_healthy: SiteFactory) -> None:
    """Adopting for longer than a session's lifetime is a warning: no old session is left."""
    adopts = {"SESSION_REGISTRY_UNREGISTERED": "adopt"}
    site, other = make_healthy(**adopts), make_healthy()
    lifetime = site.app.permanent_session_lifetime / dt.timedelta(days=1)
    for each in (site, other):
        each.browser().login()
        age(each, created_at=days_ago(lifetime - 0.1))
    assert examine(site).told == []
    for each in (site, other):
        age(each, created_at=days_ago(lifetime + 0.1))
    the_only(site, "warning", "'SESSION_REGISTRY_UNREGISTERED' is 'adopt'", "Remove the setting")
    assert examine(other).told == []


# -- the session store ---------------------------------------------------------------------------


def test_store_is_down(make_healthy: SiteFactory) -> None:
    site = make_healthy("redis")
    address = {"host": "127.0.0.1", "port": 1, "retry": None, "socket_timeout": 1}
    site.app.session_interface.client = redis.Redis(**address)
    the_only(site, "error", "The session store can't be reached (ConnectionError)")


def with_cache(make_healthy: SiteFactory, cache: t.Any) -> Site:
    site = make_healthy()
    site.app.session_interface.cache = cache
    return site


def test_files_in_a_relative_folder(
    make_healthy: SiteFactory, tmp_path: t.Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    site = with_cache(make_healthy, FileSystemCache("sessions", threshold=0))
    the_only(site, "error", "depends on the folder", "'FileSystemCache")


def test_files_with_a_threshold(make_healthy: SiteFactory, tmp_path: t.Any) -> None:
    site = with_cache(make_healthy, FileSystemCache(str(tmp_path / "cache"), threshold=500))
    the_only(site, "error", "limited to 500", "Set 'threshold' to 0")


def deprecated(make_healthy: SiteFactory, **config: t.Any) -> Site:
    """Return a site on Flask-Session's deprecated file store, with only these of its settings."""
    site = make_healthy("filesystem", init=False)
    for name in ("SESSION_FILE_DIR", "SESSION_FILE_THRESHOLD"):
        del site.app.config[name]
    site.app.config.update(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Session(site.app)
    site.sessions.init_app(site.app)
    with site.context():
        site.db.create_all()
    return site


def test_deprecated_files(
    make_healthy: SiteFactory, tmp_path: t.Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unset, the deprecated store's threshold is 500 and its folder depends on the process."""
    folder = str(tmp_path / "folder")
    monkeypatch.setattr("flask_session.defaults.Defaults.SESSION_FILE_DIR", folder)
    site = deprecated(make_healthy, SESSION_FILE_THRESHOLD=0)
    the_only(site, "error", "depends on the folder", "'SESSION_FILE_DIR'")
    site = deprecated(make_healthy, SESSION_FILE_DIR=folder)
    the_only(site, "error", "limited to 500", "Set 'SESSION_FILE_THRESHOLD' to 0")


def test_memory(make_healthy: SiteFactory) -> None:
    the_only(with_cache(make_healthy, SimpleCache()), "warning", "in the memory of one process")


def redis_client(**options: t.Any) -> redis.Redis:
    import servers

    return redis.Redis.from_url(servers.redis_url(), **options)


def memcached(kind: Callable[..., t.Any], **options: t.Any) -> t.Any:
    import servers

    host, port = servers.memcached_address()
    return kind([(host, port)] if kind is pymemcache.HashClient else (host, port), **options)


FOR_EVER: dict[str, tuple[str, Callable[..., t.Any]]] = {
    "redis": ("redis", lambda timeout: redis_client(socket_timeout=timeout)),
    "cachelib": ("files", lambda timeout: RedisCache(redis_client(socket_timeout=timeout))),
    **{
        kind.__name__: (
            "memcached",
            lambda timeout, kind=kind: memcached(kind, timeout=timeout, connect_timeout=1),
        )
        for kind in (pymemcache.Client, pymemcache.PooledClient, pymemcache.HashClient)
    },
    "retrying": (
        "memcached",
        lambda timeout: RetryingClient(
            memcached(pymemcache.Client, timeout=timeout, connect_timeout=1), attempts=2
        ),
    ),
    "connecting": (
        "memcached",
        lambda timeout: memcached(pymemcache.Client, timeout=1, connect_timeout=timeout),
    ),
}


@pytest.mark.parametrize("kind", FOR_EVER)
def test_client_without_a_timeout(
    make_healthy: SiteFactory, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store client without a timeout is a warning: Flask-Session uses it in each request."""
    store, make_client = FOR_EVER[kind]
    site = make_healthy(store)
    attribute = "cache" if kind == "cachelib" else "client"
    monkeypatch.setattr(site.app.session_interface, attribute, make_client(None))
    the_only(site, "warning", "would wait forever", "'socket_timeout'")
    monkeypatch.setattr(site.app.session_interface, attribute, make_client(2))
    assert examine(site).told == []


def test_cluster_without_a_timeout(make_healthy: SiteFactory) -> None:
    """The timeout of each cluster node's client is checked."""
    site = make_healthy("cluster")
    assert examine(site).told == []
    for node in t.cast(t.Any, site.app.session_interface).client.get_nodes():
        node.redis_connection = redis.Redis(node.host, node.port, socket_timeout=None)
    the_only(site, "warning", "would wait forever")


def test_sentinel(make_healthy: SiteFactory) -> None:
    """The timeout of a client that asks Sentinel for its server is checked."""
    site = make_healthy("sentinel")
    kwargs = t.cast(t.Any, site.app.session_interface).client.connection_pool.connection_kwargs
    kwargs["socket_timeout"] = 2
    assert examine(site).told == []
    kwargs["socket_timeout"] = None
    the_only(site, "warning", "would wait forever")


def test_mongodb_without_an_index(make_healthy: SiteFactory) -> None:
    """MongoDB without an index on 'id' is a warning: Flask-Session creates none.

    An index that begins with another field doesn't help.
    """
    site = make_healthy("mongodb")
    store = t.cast(t.Any, site.app.session_interface).store
    store.create_index([("expiration", 1), ("id", 1)])
    the_only(site, "warning", "no index on 'id'")
    store.create_index("id")
    assert examine(site).told == []


def test_mongodb_is_down(make_healthy: SiteFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreachable MongoDB is a single error, and its indexes aren't checked."""
    site = make_healthy("mongodb")
    store = t.cast(t.Any, site.app.session_interface).store

    def fail(*_: t.Any, **__: t.Any) -> None:
        raise OSError

    monkeypatch.setattr(store, "delete_many", fail)
    monkeypatch.setattr(store, "index_information", fail)
    the_only(site, "error", "The session store can't be reached (OSError)")


def test_no_session_id_and_no_log(
    make_healthy: SiteFactory, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor prints and logs no values of a row, and changes nothing."""
    caplog.set_level(logging.DEBUG)
    site = make_healthy()
    ended(site, monkeypatch, days=3)
    caplog.clear()
    (before,) = site.rows()
    output = site.app.test_cli_runner().invoke(args=["sessions", "doctor"]).output
    assert "entries of 1 session" in output
    for text in (before.store_id, before.store_id.removeprefix(site.prefix), before.fingerprint):
        assert text not in output + caplog.text
    (after,) = site.rows()
    assert (after.purged_at, after.revoked_at) == (None, before.revoked_at)


def test_page_without_the_views_it_needs(make_healthy: SiteFactory) -> None:
    """The views that the sessions page redirects to must exist, or the doctor reports them."""
    site = make_healthy()
    assert examine(site).told == []
    site.app.register_blueprint(site.sessions.blueprint, url_prefix="/sessions")
    site.app.get("/form")(lambda: "a form")
    manager = site.login_manager
    told = examine(site).told
    assert [level for level, *_ in told] == ["warning", "warning"]
    assert "'login_manager.login_view' is not set" in str(told[0])
    assert "'login_manager.refresh_view' is not set" in str(told[1])
    manager.login_view = manager.refresh_view = "<lambda>"
    assert examine(site).told == []
    manager.refresh_view = "/somewhere/else"
    assert examine(site).told == []
    for view in ("login", "nothing"):
        manager.refresh_view = view
        the_only(site, "error", f"'login_manager.refresh_view' is '{view}', which is not a view")
    manager.needs_refresh_handler(lambda: "ask")
    manager.login_view, manager.blueprint_login_views = None, {"session_registry": "/form"}
    assert examine(site).told == []
