"""Serve the app to the HTTP benchmarks with gunicorn and two workers."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
import typing as t
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path

from .common import USER_AGENT, UnavailableError

WORKERS = 2
HOST = "127.0.0.1"
COOKIE = "session"
_ROOT = Path(__file__).resolve().parent.parent
#: How long a server may take to start and to stop.
_SECONDS = 30


class Answer(t.NamedTuple):
    status: int
    body: bytes
    #: The browser's current cookie.
    cookie: str


@dataclasses.dataclass
class Server:
    """A running gunicorn."""

    port: int
    process: subprocess.Popen[bytes]
    _log: Path

    def url(self, path: str) -> str:
        return f"http://{HOST}:{self.port}{path}"

    def ask(
        self, path: str, *, cookie: str = "", form: Mapping[str, t.Any] | None = None
    ) -> Answer:
        """Send one request on its own connection; a POST if there is a form."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=_SECONDS)
        headers = {"User-Agent": USER_AGENT}
        if cookie:
            headers["Cookie"] = f"{COOKIE}={cookie}"
        body = None
        if form is not None:
            body = urllib.parse.urlencode(form)
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        with contextlib.closing(connection):
            connection.request("GET" if form is None else "POST", path, body, headers)
            response = connection.getresponse()
            for header in response.msg.get_all("Set-Cookie", ()):
                name, _, value = header.partition(";")[0].partition("=")
                if name == COOKIE:
                    cookie = value
            return Answer(response.status, response.read(), cookie)

    def memory(self) -> dict[int, float]:
        """Return each worker's memory in MiB, by process id (Linux only)."""
        pid = self.process.pid
        workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        page = os.sysconf("SC_PAGE_SIZE") / 2**20
        return {
            int(worker): int(Path(f"/proc/{worker}/statm").read_text().split()[1]) * page
            for worker in workers
        }

    def logged(self) -> str:
        """Return the logged warnings and errors."""
        return self._log.read_text(errors="replace")


@contextlib.contextmanager
def serving(environ: Mapping[str, str], *options: str) -> Iterator[Server]:
    """Serve the app under gunicorn until the block is left.

    :param environ: tells the workers which app to build: see :func:`benchmarks.served.environ`.
    :param options: further options of gunicorn.
    :raises UnavailableError: gunicorn is not installed.
    """
    if importlib.util.find_spec("gunicorn") is None:
        raise UnavailableError("The package 'gunicorn' is not installed.")
    with tempfile.TemporaryDirectory(prefix="session-registry-benchmark-") as folder:
        log = Path(folder, "log")
        with socket.socket() as listener, log.open("wb") as output:
            # Inherited by gunicorn, so that no other process can take the port in between.
            listener.bind((HOST, 0))
            port = listener.getsockname()[1]
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "--workers", str(WORKERS), *options),
                    *("--bind", f"fd://{listener.fileno()}", "--log-level", "warning"),
                    "benchmarks.served:create_app()",
                ],
                cwd=_ROOT,
                # Newer versions put a socket there, and two servers would use the same one.
                env={**os.environ, **environ, "XDG_RUNTIME_DIR": folder},
                stdout=output,
                stderr=output,
                pass_fds=[listener.fileno()],
            )
        server = Server(port, process, log)
        try:
            _wait_for(server)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(_SECONDS)
            except subprocess.TimeoutExpired:
                # Its workers notice that it is gone, and exit too.
                process.kill()
                process.wait()


def _wait_for(server: Server) -> None:
    """Wait until the server responds.

    :raises AssertionError: it does not.
    """
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end and server.process.poll() is None:
        with contextlib.suppress(OSError):
            server.ask("/")
            return
        time.sleep(0.05)
    raise AssertionError(f"gunicorn did not start:\n{server.logged()}")
