"""Find or start the servers and the browser that the tests need.

An environment variable comes first, then the usual address, then binaries on this machine, started
on a free port. If there is none, the test is skipped; in CI it fails.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import typing as t
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

REDIS = "redis://127.0.0.1:6379/0"
POSTGRESQL = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
MEMCACHED = "127.0.0.1:11211"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
MARIADB = "mysql+pymysql://root@127.0.0.1:3306/mysql"


def _missing(name: str, variable: str) -> None:
    sentence = f"No {name} here: set {variable}, start one, or install its server."
    if os.environ.get("CI"):
        pytest.fail(sentence)
    pytest.skip(sentence)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _binary(*patterns: str) -> str | None:
    """Return the first program that exists, given names or patterns of absolute paths."""
    for pattern in patterns:
        found = shutil.which(pattern) or max(map(str, Path("/").glob(pattern[1:])), default=None)
        if found:
            return found
    return None


def _start(command: list[str], *, user: str | None = None) -> None:
    # A database server refuses to run as root.
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user=user if os.geteuid() == 0 else None,
    )
    atexit.register(process.terminate)


def wait_for(works: Callable[[], bool], seconds: float = 30) -> bool:
    """Poll until it works. Return whether it did so in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if works():
            return True
        time.sleep(0.05)
    return False


def _redis_answers(url: str) -> bool:
    with suppress(redis.RedisError), redis.Redis.from_url(url) as client:
        return bool(client.ping())
    return False


def _database_answers(url: str) -> bool:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        with engine.connect():
            return True
    except sa.exc.SQLAlchemyError:
        return False


def chromium() -> str:
    """Return the path of a Chromium, such as Debian's."""
    found = os.environ.get("TEST_CHROMIUM") or _binary(*CHROMIUMS)
    if found is None:
        _missing("Chromium", "TEST_CHROMIUM")
    return t.cast(str, found)


@functools.cache
def _redis_url() -> str | None:
    url = os.environ.get("TEST_REDIS_URL") or REDIS
    if _redis_answers(url):
        return url
    server = _binary("redis-server", "valkey-server")
    if "TEST_REDIS_URL" in os.environ or server is None:
        return None
    url = f"redis://127.0.0.1:{(port := free_port())}/0"
    _start([server, "--port", str(port), "--save", "", "--appendonly", "no"])
    return url if wait_for(lambda: _redis_answers(url)) else None


@functools.cache
def _postgresql_url() -> str | None:
    url = os.environ.get("TEST_POSTGRESQL_URL") or POSTGRESQL
    if _database_answers(url):
        return url
    initdb = _binary("initdb", "/usr/lib/postgresql/*/bin/initdb")
    server = _binary("postgres", "/usr/lib/postgresql/*/bin/postgres")
    if "TEST_POSTGRESQL_URL" in os.environ or initdb is None or server is None:
        return None
    folder = _folder("postgres")
    subprocess.run(
        [initdb, "-D", folder, "-U", "postgres", "-A", "trust"],
        check=True,
        stdout=subprocess.DEVNULL,
        user="postgres" if os.geteuid() == 0 else None,
    )
    port = free_port()
    _start([server, "-D", folder, "-p", str(port), "-k", folder, "-F"], user="postgres")
    url = f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    return url if wait_for(lambda: _database_answers(url)) else None


@functools.cache
def _mariadb_url() -> str | None:
    url = os.environ.get("TEST_MARIADB_URL") or MARIADB
    if _database_answers(url):
        return url
    install = _binary("mariadb-install-db")
    server = _binary("mariadbd", "/usr/sbin/mariadbd")
    if "TEST_MARIADB_URL" in os.environ or install is None or server is None:
        return None
    folder, port = _folder("mysql"), free_port()
    subprocess.run(
        [install, f"--datadir={folder}", "--auth-root-authentication-method=normal"],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user="mysql" if os.geteuid() == 0 else None,
        # At start-up, MariaDB deletes all temporary tables in this folder, also those of other
        # servers.
        env=os.environ | {"TMPDIR": folder},
    )
    _start(
        [
            server,
            "--no-defaults",
            f"--datadir={folder}",
            f"--tmpdir={folder}",
            f"--port={port}",
            f"--socket={folder}/socket",
            f"--pid-file={folder}/pid",
        ],
        user="mysql",
    )
    url = f"mysql+pymysql://root@127.0.0.1:{port}/mysql"
    return url if wait_for(lambda: _database_answers(url)) else None


def _folder(owner: str) -> str:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if os.geteuid() == 0 and owner != "root":
        shutil.chown(folder, owner)
    return folder


def redis_url() -> str:
    """Return the URL of a Redis server."""
    url = _redis_url()
    if url is None:
        _missing("Redis", "TEST_REDIS_URL")
    return str(url)


def _memcached_answers(address: tuple[str, int]) -> bool:
    with suppress(OSError), socket.create_connection(address, timeout=5) as connection:
        connection.sendall(b"version\r\n")
        return connection.recv(100).startswith(b"VERSION")
    return False


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


@functools.cache
def _memcached_address() -> tuple[str, int] | None:
    address = _address(os.environ.get("TEST_MEMCACHED_URL") or MEMCACHED)
    if _memcached_answers(address):
        return address
    server = _binary("memcached", "/usr/bin/memcached")
    if "TEST_MEMCACHED_URL" in os.environ or server is None:
        return None
    address = ("127.0.0.1", free_port())
    # memcached refuses to run as root.
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    _start([server, "-l", address[0], "-p", str(address[1]), *user])
    return address if wait_for(lambda: _memcached_answers(address)) else None


def memcached_address() -> tuple[str, int]:
    """Return the host and port of a memcached server."""
    address = _memcached_address()
    if address is None:
        _missing("memcached", "TEST_MEMCACHED_URL")
    return t.cast("tuple[str, int]", address)


@functools.cache
def dynamodb_url() -> str:
    """Return the URL of a server that speaks DynamoDB's protocol: moto's, started here."""
    if "TEST_DYNAMODB_URL" in os.environ:
        return os.environ["TEST_DYNAMODB_URL"]
    port = free_port()
    _start([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)])

    def answers() -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
        return False

    assert wait_for(answers, 60)
    return f"http://127.0.0.1:{port}"


@functools.cache
def _redis_cluster_url() -> str | None:
    if "TEST_REDIS_CLUSTER_URL" in os.environ:
        return os.environ["TEST_REDIS_CLUSTER_URL"]
    server = _binary("redis-server")
    if server is None:
        return None
    ports = [free_port() for _ in range(3)]
    nodes = []
    for port in ports:
        folder = _folder("root")
        _start(
            [
                *(server, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder),
                # The default port for the cluster bus is derived from this one and might be out of
                # range.
                *("--cluster-enabled", "yes", "--cluster-port", str(free_port())),
                *("--save", "", "--appendonly", "no"),
            ]
        )
        assert wait_for(functools.partial(_redis_answers, f"redis://127.0.0.1:{port}/0"))
        nodes.append(redis.Redis(port=port))
    # Do what 'redis-cli --cluster create' does.
    for number, node in enumerate(nodes):
        first, last = number * 16384 // 3, (number + 1) * 16384 // 3
        node.execute_command("CLUSTER", "ADDSLOTS", *range(first, last))
        bus = int(nodes[0].config_get("cluster-port")["cluster-port"] or 0)
        node.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0], bus)

    def is_complete() -> bool:
        infos = [bytes(node.execute_command("CLUSTER", "INFO")) for node in nodes]
        return all(b"_state:ok" in info and b"_known_nodes:3" in info for info in infos)

    assert wait_for(is_complete, 60)
    for node in nodes:
        node.close()
    return f"redis://127.0.0.1:{ports[0]}"


def redis_cluster() -> redis.RedisCluster:
    """Return a client of a Redis Cluster with three nodes."""
    url = _redis_cluster_url()
    if url is None:
        _missing("Redis Cluster", "TEST_REDIS_CLUSTER_URL")
    return redis.RedisCluster.from_url(str(url))


@functools.cache
def _redis_sentinel() -> tuple[str, int] | None:
    if "TEST_REDIS_SENTINEL_URL" in os.environ:
        return _address(os.environ["TEST_REDIS_SENTINEL_URL"])
    server = _binary("redis-server")
    if server is None:
        return None
    master, port = free_port(), free_port()
    _start([server, "--port", str(master), "--bind", "127.0.0.1", "--save", ""])
    assert wait_for(lambda: _redis_answers(f"redis://127.0.0.1:{master}/0"))
    config = Path(_folder("root"), "sentinel.conf")
    config.write_text(
        f"port {port}\nbind 127.0.0.1\nsentinel monitor sessions 127.0.0.1 {master} 1\n"
    )
    _start([server, str(config), "--sentinel"])
    address = ("127.0.0.1", port)

    def knows_master() -> bool:
        with suppress(redis.RedisError):
            return bool(redis.Sentinel([address]).discover_master("sessions"))
        return False

    return address if wait_for(knows_master) else None


def redis_sentinel() -> redis.Sentinel:
    """Return a Redis Sentinel that monitors a server named ``sessions``."""
    address = _redis_sentinel()
    if address is None:
        _missing("Redis Sentinel", "TEST_REDIS_SENTINEL_URL")
    return redis.Sentinel([t.cast("tuple[str, int]", address)])


@contextmanager
def scratch_database(kind: str) -> Iterator[str]:
    """Create an empty database on a server, yield its URL, and drop it afterwards."""
    find, variable = {
        "postgresql": (_postgresql_url, "TEST_POSTGRESQL_URL"),
        "mariadb": (_mariadb_url, "TEST_MARIADB_URL"),
    }[kind]
    url = find()
    if url is None:
        _missing(kind, variable)
    name = f"registry_{uuid.uuid4().hex[:12]}"
    server = sa.create_engine(str(url), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with server.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
        if kind == "postgresql":
            # What the tests write only has to survive their own processes.
            connection.execute(sa.text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
    try:
        yield sa.make_url(str(url)).set(database=name).render_as_string(hide_password=False)
    finally:
        force = " WITH (FORCE)" if kind == "postgresql" else ""
        with server.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name}{force}"))
