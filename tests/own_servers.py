"""Servers private to one test, which may stop, hang and restart them.

Never use the servers that other tests share: each of these is started from its binary, on a free
port.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import typing as t
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis
import servers
import sqlalchemy as sa
from redis.backoff import NoBackoff
from redis.retry import Retry


class OwnServer:
    """A server process and its children."""

    def __init__(
        self,
        url: str,
        command: list[str],
        *,
        answers: Callable[[], bool],
        user: str | None = None,
        stopped_by: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.url = url
        self._command = command
        self._answers = answers
        self._stopped_by = stopped_by
        # A database server refuses to run as root.
        self._user = user if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        self.is_hanging = False

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=self._user,
        )
        assert servers.wait_for(self._answers, 60), f"{self._command[0]} does not answer."

    def kill(self) -> None:
        """Stop it as a power cut does (SIGKILL), without closing any connection."""
        pids = self._hold()
        self.is_hanging = False
        for pid in pids:
            _send(pid, signal.SIGKILL)
        t.cast("subprocess.Popen[bytes]", self._process).wait(30)
        self._process = None
        # PostgreSQL doesn't start while one of its old processes is alive.
        assert servers.wait_for(lambda: not any(_is_alive(pid) for pid in pids))

    def hang(self) -> None:
        """Keep accepting connections, but never answer (SIGSTOP)."""
        self._hold()
        self.is_hanging = True

    def go_on(self) -> None:
        self.is_hanging = False
        for pid in self._pids():
            _send(pid, signal.SIGCONT)

    def restore(self) -> None:
        """Make it run again, whatever a test has done to it."""
        if self.is_hanging:
            self.go_on()
        if self._process is None:
            self.start()

    def close(self) -> None:
        """Shut it down cleanly: a killed server leaves shared memory behind."""
        if self._process is None:
            return
        self.go_on()
        self._process.send_signal(self._stopped_by)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    def _hold(self) -> list[int]:
        # Stop the parent first, so that it forks no more children.
        (first, *_) = self._pids()
        _send(first, signal.SIGSTOP)
        pids = self._pids()
        for pid in pids:
            _send(pid, signal.SIGSTOP)
        return pids

    def _pids(self) -> list[int]:
        assert self._process is not None, "This server is stopped."
        # PostgreSQL's children have process groups of their own.
        return [self._process.pid, *_children(self._process.pid)]


def _children(parent: int) -> list[int]:
    return [pid for pid in _all_pids() if (status := _status(pid)) and status[1] == parent]


def _all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _status(pid: int) -> tuple[str, int] | None:
    """Return a process's state and its parent's pid."""
    with suppress(OSError):
        # The name, in parentheses, may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[1])
    return None


def _is_alive(pid: int) -> bool:
    status = _status(pid)
    return status is not None and status[0] not in "ZX"


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def _running(server: OwnServer) -> Iterator[OwnServer]:
    try:
        server.start()
        yield server
    finally:
        server.close()


def _program(name: str, *patterns: str) -> str:
    found = servers._binary(*patterns)
    if found is None:
        servers._missing(name, f"PATH to {name}")
    return str(found)


@contextmanager
def _folder(owner: str | None = None) -> Iterator[str]:
    folder = tempfile.mkdtemp()
    try:
        if owner is not None and os.geteuid() == 0:
            shutil.chown(folder, owner)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- each kind -------------------------------------------------------------------------------------


def redis_client(url: str, *, timeout: float | None) -> redis.Redis:
    """Return a client that reports errors at once and never retries."""
    return redis.Redis.from_url(
        url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0)
    )


@contextmanager
def own_redis(*, is_persistent: bool = True) -> Iterator[OwnServer]:
    """Yield a Redis that has all its data again after a restart, or none of it."""
    program = _program("Redis", "redis-server", "valkey-server")
    port = servers.free_port()
    url = f"redis://127.0.0.1:{port}/0"

    def answers() -> bool:
        # While Redis loads its file, it answers that it is busy.
        with suppress(redis.RedisError), redis_client(url, timeout=1) as client:
            return bool(client.ping())
        return False

    with _folder() as folder:
        command = [program, "--port", str(port), "--dir", folder, "--save", ""]
        if is_persistent:
            command += ["--appendonly", "yes", "--appendfsync", "always"]
        with _running(OwnServer(url, command, answers=answers)) as server:
            yield server


@contextmanager
def own_memcached() -> Iterator[OwnServer]:
    program = _program("memcached", "memcached")
    port = servers.free_port()

    def answers() -> bool:
        import pymemcache

        with suppress(OSError):
            client = pymemcache.Client(("127.0.0.1", port), timeout=1, connect_timeout=1)
            try:
                return bool(client.version())
            finally:
                client.close()
        return False

    command = [program, "-l", "127.0.0.1", "-p", str(port), "-U", "0"]
    command += ["-u", "nobody"] if os.geteuid() == 0 else []
    with _running(OwnServer(f"127.0.0.1:{port}", command, answers=answers)) as server:
        yield server


def _database_answers(url: str, timeout: dict[str, int]) -> bool:
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=timeout)
    with suppress(sa.exc.SQLAlchemyError), engine.connect():
        return True
    return False


@contextmanager
def own_postgresql() -> Iterator[OwnServer]:
    initdb = _program("postgresql", "initdb", "/usr/lib/postgresql/*/bin/initdb")
    program = _program("postgresql", "postgres", "/usr/lib/postgresql/*/bin/postgres")
    port = servers.free_port()
    url = f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    with _folder("postgres") as folder:
        subprocess.run(
            [initdb, "-D", folder, "-U", "postgres", "-A", "trust", "--no-sync"],
            check=True,
            stdout=subprocess.DEVNULL,
            user="postgres" if os.geteuid() == 0 else None,
        )
        server = OwnServer(
            url,
            # A killed process loses nothing that the kernel has, so there is no need to wait for
            # the disk.
            [program, "-D", folder, "-p", str(port), "-k", folder, "-F"],
            answers=lambda: _database_answers(url, {"connect_timeout": 2}),
            user="postgres",
            # Fast shutdown: don't wait for clients to disconnect.
            stopped_by=signal.SIGINT,
        )
        with _running(server):
            yield server


@contextmanager
def own_mariadb(*options: str) -> Iterator[OwnServer]:
    install = _program("mariadb", "mariadb-install-db")
    program = _program("mariadb", "mariadbd", "/usr/sbin/mariadbd")
    port = servers.free_port()
    url = f"mysql+pymysql://root@127.0.0.1:{port}/test"
    with _folder("mysql") as folder:
        subprocess.run(
            [
                install,
                "--no-defaults",
                f"--datadir={folder}",
                "--auth-root-authentication-method=normal",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user="mysql" if os.geteuid() == 0 else None,
            # At start-up it deletes all temporary tables in this folder. In a shared folder that
            # would delete those of other servers, which then crash.
            env=os.environ | {"TMPDIR": folder},
        )
        command = [program, "--no-defaults", f"--datadir={folder}", f"--port={port}"]
        command += [f"--socket={folder}/socket", f"--pid-file={folder}/pid", f"--tmpdir={folder}"]
        command += options
        server = OwnServer(
            url,
            command,
            answers=lambda: _database_answers(url, {"connect_timeout": 2, "read_timeout": 2}),
            user="mysql",
        )
        with _running(server):
            yield server
