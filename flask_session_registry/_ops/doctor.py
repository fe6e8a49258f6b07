"""Is something wrong with the installation, that can be seen from inside?

Nothing here shows a secret, a session id or the address of a server with its password: of an error
that a library raises, only the name.
"""

from __future__ import annotations

import datetime as dt
import re
import secrets
import typing as t
import uuid
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from flask import Flask
from flask_login import COOKIE_HTTPONLY, COOKIE_SECURE

from .. import _clock as clock
from .. import _diagnosis as diagnosis
from .._app import Registry, get_registry
from .._diagnosis import Diagnosis
from .._records.redis.client import RedisHome
from .._records.sql import transactions as own_transaction
from .._records.sql.records import SQLRecords
from .._request import store_keys
from ..errors import ConfigurationError

#: What is due for longer than this, nobody seems to do.
_DUE = dt.timedelta(days=1)

#: Bytes. What has fewer can be found by trying.
_SHORTEST_KEY = 16

#: Keys that everybody knows, from tutorials and from the documentation of Flask. Compared are small
#: letters and digits only.
_KNOWN_KEYS = frozenset(
    {
        "192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf",
        "5y2lf4q8z",
        "5y2lf4q8znxec",
        "averysecretkey",
        "changeme",
        "changethis",
        "changethiskey",
        "dev",
        "development",
        "developmentkey",
        "devkey",
        "hardtoguessstring",
        "mysecretkey",
        "pleasechangeme",
        "replaceme",
        "secret",
        "secretkey",
        "secretkeyhere",
        "supersecret",
        "supersecretkey",
        "thisisasecret",
        "thisisasecretkey",
        "topsecret",
        "verysecretkey",
        "yoursecretkey",
        "yoursecretkeyhere",
        "youwillneverguess",
    }
)


class Finding(t.NamedTuple):
    """Something that is wrong: a sentence on what, and one on what to do."""

    level: t.Literal["error", "warning"]
    problem: str
    remedy: str


def _error(problem: str, remedy: str) -> Finding:
    return Finding("error", problem, remedy)


def _error_of(found: Diagnosis) -> Finding:
    return _error(found.problem, found.remedy)


def _warning(problem: str, remedy: str) -> Finding:
    return Finding("warning", problem, remedy)


def examine(app: Flask) -> Iterator[Finding]:
    """All that is found wrong with the registry on the current app."""
    yield from _secret_keys(app)
    yield from _cookies(app)
    try:
        registry = get_registry()
    except ConfigurationError as error:
        # Two sentences, as each finding has.
        problem, _, remedy = str(error).partition(". ")
        yield _error(f"{problem}.", remedy)
        return
    yield from _settings(app, registry)
    yield from _page(app)
    if registry.home is None:
        yield from _database(app, registry)
    else:
        yield from _elsewhere(app, registry)
    yield from _session_store(app, registry)


# -- the app ---------------------------------------------------------------------------------


def _secret_keys(app: Flask) -> Iterator[Finding]:
    remedy = (
        "Make one with python -c 'import secrets; print(secrets.token_hex())', and keep it out of"
        " the code."
    )
    if not app.secret_key:
        yield _error("'SECRET_KEY' is not set, so that nobody can sign in.", remedy)
    else:
        yield from _secret_key("'SECRET_KEY'", app.secret_key, remedy)
    fallbacks = app.config.get("SECRET_KEY_FALLBACKS") or ()
    if isinstance(fallbacks, (str, bytes)):
        yield _error(
            "'SECRET_KEY_FALLBACKS' is text, of which each character is taken for a key.",
            "Make it a list.",
        )
        return
    for key in fallbacks:
        yield from _secret_key("A key in 'SECRET_KEY_FALLBACKS'", key, "Remove it from the list.")


def _secret_key(name: str, key: object, remedy: str) -> Iterator[Finding]:
    raw = key if isinstance(key, bytes) else str(key).encode("utf-8", "surrogatepass")
    if re.sub(rb"[\W_]", b"", raw).lower().decode("ascii", "replace") in _KNOWN_KEYS:
        yield _error(
            f"{name} is a placeholder that everybody knows, so that anybody can sign cookies.",
            remedy,
        )
    elif len(raw) < _SHORTEST_KEY:
        yield _error(
            f"{name} has fewer than {_SHORTEST_KEY} bytes, and can be found by trying.", remedy
        )


def _cookies(app: Flask) -> Iterator[Finding]:
    interface, config = app.session_interface, app.config
    yield from _cookie(
        "SESSION_COOKIE",
        "session cookie",
        secure=interface.get_cookie_secure(app),
        httponly=interface.get_cookie_httponly(app),
        samesite=interface.get_cookie_samesite(app),
    )
    yield from _cookie(
        "REMEMBER_COOKIE",
        '"remember me" cookie',
        secure=config.get("REMEMBER_COOKIE_SECURE", COOKIE_SECURE),
        httponly=config.get("REMEMBER_COOKIE_HTTPONLY", COOKIE_HTTPONLY),
        samesite=config.get("REMEMBER_COOKIE_SAMESITE"),
    )
    if config.get("REMEMBER_COOKIE_REFRESH_EACH_REQUEST"):
        yield _warning(
            "'REMEMBER_COOKIE_REFRESH_EACH_REQUEST' makes Flask-Login remember everybody who signs"
            " in, asked to or not.",
            "Set it to False.",
        )


def _cookie(
    prefix: str, name: str, *, secure: bool | None, httponly: bool, samesite: str | None
) -> Iterator[Finding]:
    if not secure:
        yield _warning(
            f"The {name} is sent over plain HTTP too, where anybody on the way can read it.",
            f"Set '{prefix}_SECURE' to True.",
        )
    if not httponly:
        yield _error(
            f"The {name} can be read by JavaScript, and so by any script that gets into a page.",
            f"Set '{prefix}_HTTPONLY' to True.",
        )
    if samesite in (None, "None"):
        yield _warning(
            f"The {name} may be sent along with requests that other sites make.",
            f"Set '{prefix}_SAMESITE' to 'Lax'.",
        )


# -- the registry ------------------------------------------------------------------------------


def _settings(app: Flask, registry: Registry) -> Iterator[Finding]:
    settings = registry.settings
    if not settings.hash_session_ids and store_keys.are_on_server(app.session_interface):
        yield _warning(
            "'SESSION_REGISTRY_HASH_SESSION_IDS' is off: a dump of the session store is a bunch of"
            " keys.",
            "Turn it on; every session that is stored ends thereby.",
        )
    if not settings.password_attribute:
        yield _warning(
            "'SESSION_REGISTRY_PASSWORD_ATTRIBUTE' is None: a change of the password ends no"
            " session.",
            "Name the attribute that holds the password hash, or whatever else users sign in with.",
        )
    elif not settings.revoke_on_password_change:
        yield _warning(
            "'SESSION_REGISTRY_REVOKE_ON_PASSWORD_CHANGE' is off: a change of the password outside"
            " of a decorated view ends the current session too.",
            "Turn it on, or decorate every such view with '@sessions.revoke_on_password_change'.",
        )


def _page(app: Flask) -> Iterator[Finding]:
    """The page "Where you're signed in" sends browsers to views of the app."""
    if all(
        one.import_name != "flask_session_registry._web.views" for one in app.blueprints.values()
    ):
        return
    manager: t.Any = app.login_manager  # type: ignore[attr-defined]
    for name, handler in (
        ("login_view", manager.unauthorized_callback),
        ("refresh_view", manager.needs_refresh_callback),
    ):
        view = getattr(manager, name)
        if handler is not None or (name == "login_view" and manager.blueprint_login_views):
            continue
        if view is None:
            yield _warning(
                f"'login_manager.{name}' is not set, so that the page of a user's sessions sends"
                " nobody to where the password is asked for, but answers 401.",
                "Set it to the endpoint of that view.",
            )
            continue
        rules = [rule for rule in app.url_map.iter_rules() if rule.endpoint == view]
        if "/" not in view and not any("GET" in (rule.methods or ()) for rule in rules):
            yield _error(
                f"'login_manager.{name}' is '{view}', which is no view that answers a GET.",
                "Name the one that shows the form that asks for the password.",
            )


def _database(app: Flask, registry: Registry) -> Iterator[Finding]:
    records = registry.table
    try:
        with records.connection() as connection:
            findings = [
                *_server(connection),
                *_table(records, connection),
                *_foreign_keys(connection),
            ]
        if not any(finding.level == "error" for finding in findings):
            findings += [*_what_is_due(app, registry), *_adopts(app, registry)]
    except Exception as error:
        yield _error_of(diagnosis.database_unreachable(error))
    else:
        yield from findings


def _server(connection: sa.Connection) -> Iterator[Finding]:
    dialect: t.Any = connection.dialect
    if not getattr(dialect, "is_mariadb", False):
        return
    if _isolates_snapshots(connection):
        yield _warning(
            "'innodb_snapshot_isolation' is on: a change of the password fails if a session of that"
            " user was seen since the transaction began.",
            "Turn it off, or use the isolation level READ COMMITTED.",
        )
    if own_transaction.logs_statements(connection):
        yield _warning(
            "'binlog_format' is STATEMENT, so the registry's own transactions can't run at READ"
            " COMMITTED.",
            "Set it to MIXED or ROW.",
        )
    if dialect.server_version_info < (10, 6):
        yield _error(
            "This MariaDB is too old to leave out rows that somebody holds: when a session was last"
            " seen is not written, and nothing is pruned.",
            "Use MariaDB 10.6 or newer.",
        )


def _isolates_snapshots(connection: sa.Connection) -> bool:
    # Older servers know nothing of it.
    found = connection.scalar(
        sa.text(
            "SELECT VARIABLE_VALUE FROM information_schema.SESSION_VARIABLES"
            " WHERE VARIABLE_NAME = 'INNODB_SNAPSHOT_ISOLATION'"
        )
    )
    return found == "ON" and connection.get_isolation_level() == "REPEATABLE READ"


def _table(records: SQLRecords, connection: sa.Connection) -> Iterator[Finding]:
    name, schema = records.table.name, records.table.schema
    if not sa.inspect(connection).has_table(name, schema=schema):
        yield _error_of(diagnosis.table_missing(name))
        return
    for kind, what in _differences(records, connection):
        if kind == "remove_index":
            yield _warning(
                f"The table '{name}' has more than its model says: {what}.",
                "Drop it, unless you know what it is for: on a column that the end of a session"
                " writes it costs time, and deadlocks on MariaDB.",
            )
        else:
            yield _error_of(diagnosis.table_differs(name, what))


def _differences(records: SQLRecords, connection: sa.Connection) -> Iterator[tuple[str, str]]:
    """Between the table and its model, as Alembic sees them: of which kind, and in words."""
    # Only this command needs it, and it takes its time to import.
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    table = records.table
    schema = None if table.schema == connection.dialect.default_schema_name else table.schema

    def is_name_of_it(name: str | None, kind: str, _: object) -> bool:
        return name == {"schema": schema, "table": table.name}.get(kind, name)

    def is_part_of_it(_: object, name: str | None, kind: str, *__: object) -> bool:
        return kind != "table" or name == table.name

    context = MigrationContext.configure(
        connection,
        opts={
            "include_schemas": schema is not None,
            "include_name": is_name_of_it,
            "include_object": is_part_of_it,
        },
    )
    for found in compare_metadata(context, table.metadata):
        # What is changed on one column comes in a list.
        for kind, *details in found if isinstance(found, list) else [found]:
            yield kind, _in_words(kind, details)


def _in_words(kind: str, details: list[t.Any]) -> str:
    lacks = "it lacks" if kind.startswith("add_") else "it has"
    if kind in ("add_column", "remove_column"):
        return f"{lacks} the column '{details[-1].name}'"
    if kind in ("add_index", "remove_index"):
        columns = ", ".join(f"'{column.name}'" for column in details[0].columns)
        return f"{lacks} an index on {columns}"
    if kind == "modify_nullable":
        return f"'{details[2]}' {'must' if details[-1] else 'must not'} be allowed to be NULL"
    if kind == "modify_type":
        return f"'{details[2]}' is {details[-2]!r}, and should be {details[-1]!r}"
    return f"a migration would {kind.replace('_', ' ')}"


def _foreign_keys(connection: sa.Connection) -> Iterator[Finding]:
    if connection.dialect.name == "sqlite" and not connection.scalar(
        sa.text("PRAGMA foreign_keys")
    ):
        yield _warning(
            "SQLite does not enforce foreign keys here: the sessions of a user who is deleted by"
            " SQL keep that user's key, which the next user may get.",
            "Run 'PRAGMA foreign_keys = ON' on each connection, or delete users through the ORM.",
        )


def _what_is_due(app: Flask, registry: Registry) -> Iterator[Finding]:
    expiry = registry.expiry(app).earlier(_DUE)
    pending = registry.records.count_unpurged(ended_by=expiry.now)
    if pending:
        yield _warning(
            f"The entries of {_number(pending)} that ended more than a day ago are still in the"
            " session store.",
            "Run 'flask sessions prune', and see in the log why they could not be deleted before.",
        )
    if registry.settings.auto_prune is None:
        expired = registry.records.count_expired(expiry)
        if pending or expired:
            yield _warning(
                "'SESSION_REGISTRY_AUTO_PRUNE' is None, and nobody else seems to prune: what should"
                " have been done more than a day ago is not.",
                "Let cron run 'flask sessions prune'.",
            )


def _adopts(app: Flask, registry: Registry) -> Iterator[Finding]:
    since = clock.now() - app.permanent_session_lifetime
    if registry.settings.adopts and registry.table.has_begun(by=since):
        yield _warning(
            "'SESSION_REGISTRY_UNREGISTERED' is 'adopt', although every session from before the"
            " installation has expired by now.",
            "Take the setting out, unless you wait for those who are only remembered.",
        )


def _number(count: int) -> str:
    return f"{count} session{'' if count == 1 else 's'}"


# -- user sessions that are in no table -------------------------------------------------------


def _elsewhere(app: Flask, registry: Registry) -> Iterator[Finding]:
    records, home = registry.records, registry.home
    try:
        # Never given to anybody: there is no such session.
        records.get(uuid.uuid4())
        findings = [*_redis(home)] if isinstance(home, RedisHome) else []
    except Exception as error:
        yield _error_of(diagnosis.home_unreachable(error.__context__ or error))
        return
    yield from findings
    try:
        yield from list(_what_is_due(app, registry))
    except Exception as error:
        yield _error(
            f"What is due can't be asked ({type(error).__name__}).",
            "See in the log of its server what is wrong with it.",
        )


def _redis(home: RedisHome) -> Iterator[Finding]:
    client = home.client
    nodes = (
        [node.redis_connection for node in client.get_primaries()]
        if hasattr(client, "get_primaries")
        else [client]
    )
    if any(_setting(node, "maxmemory-policy") not in (None, "noeviction") for node in nodes):
        yield _warning(
            "Redis may drop user sessions when its memory is full, which signs people out.",
            "Set 'maxmemory-policy' to 'noeviction', on a Redis that is for them alone.",
        )
    if any(_setting(node, "appendonly") == "no" for node in nodes):
        yield _warning(
            "Redis writes no append-only file: a restart signs people out, or brings back sessions"
            " that were ended since the last snapshot, but for those that a password change ended.",
            "Set 'appendonly' to 'yes'.",
        )
    if _waits_for_ever(client):
        yield _warning(
            "The client of the user sessions would wait for ever for a Redis that hangs, and each"
            " request with it.",
            "Give it a 'socket_timeout'.",
        )


def _setting(node: t.Any, name: str) -> str | None:
    """A setting of a Redis; ``None`` where it isn't told, as by those that others run."""
    try:
        found = node.config_get(name)
    except Exception:
        return None
    texts = [value.decode() if isinstance(value, bytes) else value for value in found.values()]
    return texts[0] if texts else None


# -- the session store -------------------------------------------------------------------------


def _session_store(app: Flask, registry: Registry) -> Iterator[Finding]:
    interface: t.Any = app.session_interface
    if not store_keys.are_on_server(interface):
        return
    # Never given to anybody: there is no such entry.
    key = t.cast(str, store_keys.store_id(interface, secrets.token_urlsafe(32)))
    try:
        registry.entries.delete([key])
    except Exception as error:
        yield _error(
            f"The session store can't be asked ({type(error).__name__}).",
            "See that it runs, and that its settings ('SESSION_…') are right.",
        )
    else:
        if _is_a(interface, "MongoDBSessionInterface"):
            yield from _mongodb(interface)
    yield from _files(app, interface)
    cache = getattr(interface, "cache", None)
    if _waits_for_ever(getattr(interface, "client", getattr(cache, "_write_client", None))):
        yield _warning(
            "The client of the session store would wait for ever for a server that hangs, and each"
            " request with it.",
            "Give it a timeout: redis-py's 'socket_timeout'; pymemcache's 'timeout' and"
            " 'connect_timeout'.",
        )


def _is_a(thing: object, name: str) -> bool:
    """By name, so that no client library is imported that the app does not use."""
    return any(cls.__name__ == name for cls in type(thing).__mro__)


def _mongodb(interface: t.Any) -> Iterator[Finding]:
    indexes = interface.store.index_information().values()
    if not any(index["key"][0][0] == "id" for index in indexes):
        yield _warning(
            "The collection of the sessions in MongoDB has no index on 'id', so that each request"
            " searches all of it.",
            "Make one: 'create_index(\"id\")'.",
        )


def _files(app: Flask, interface: t.Any) -> Iterator[Finding]:
    cache: t.Any = getattr(interface, "cache", None)
    if _is_a(cache, "SimpleCache"):
        yield _warning(
            "Sessions are in the memory of one process, where no other one, nor a command, finds"
            " them.",
            "Use files or a server, unless this is for tests.",
        )
    if not _is_a(cache, "FileSystemCache"):
        return
    is_deprecated = _is_a(interface, "FileSystemSessionInterface")
    if not Path(cache._path).is_absolute() or (
        # Its default is below the folder that the process was started in.
        is_deprecated and not app.config.get("SESSION_FILE_DIR")
    ):
        yield _error(
            "Where the files of the sessions are depends on the folder that a process is started"
            " in: a command in another one deletes nothing.",
            "Give an absolute path: "
            + ("'SESSION_FILE_DIR'." if is_deprecated else "'FileSystemCache(\"/…\")'."),
        )
    if cache._threshold != 0:
        yield _error(
            f"The files of the sessions are limited to {cache._threshold}: beyond that, people are"
            " signed out at random.",
            "Set " + ("'SESSION_FILE_THRESHOLD'" if is_deprecated else "'threshold'") + " to 0.",
        )


def _waits_for_ever(client: t.Any) -> bool:
    """Whether a client of Redis or memcached has no timeout; of other libraries nobody asks."""
    library = type(client).__module__.partition(".")[0]
    if library == "redis":
        is_cluster = hasattr(client, "get_nodes")
        nodes = [one.redis_connection for one in client.get_nodes()] if is_cluster else [client]
        pools = [node.connection_pool for node in nodes]
        # As the pool makes a connection, but without opening it: the default is the library's own.
        connections = [pool.connection_class(**pool.connection_kwargs) for pool in pools]
        return any(connection.socket_timeout is None for connection in connections)
    if library == "pymemcache":
        client = getattr(client, "_client", client)  # What retries is around another one.
        options = getattr(client, "default_kwargs", None) or vars(client)
        return options["timeout"] is None or options["connect_timeout"] is None
    return False
