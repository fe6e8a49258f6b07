"""Run the example app under gunicorn with two workers, and visit it over HTTP.

Redis lists hold a request half-way in one worker while another worker answers.
"""

from __future__ import annotations

import functools
import http.cookiejar
import json
import os
import signal
import subprocess
import sys
import typing as t
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import redis
import servers
from crowd import at_once

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "accounts"
PASSWORD = "correct horse battery staple"
HOLDERS = 3


class Service:
    """The running example."""

    def __init__(
        self, url: str, store: redis.Redis, prefix: str, *, database: str, log: Path
    ) -> None:
        self.url = url
        self.store = store
        self.prefix = prefix
        self.database = database
        self._log = log
        self.pool = ThreadPoolExecutor(HOLDERS)

    def browser(self, name: str) -> HttpBrowser:
        return HttpBrowser(self, name)

    @property
    def log(self) -> str:
        """Return the warnings and errors that the workers have logged so far."""
        return self._log.read_text()

    def entries(self) -> list[bytes]:
        """Return the keys of the entries that contain a user session."""
        keys = list(self.store.scan_iter(f"{self.prefix}*", count=10_000))
        return [key for key in keys if b"_user_session" in (self.store.get(key) or b"")]

    def start(self, visit: t.Callable[[str], t.Any]) -> tuple[str, Future[t.Any]]:
        """Start a visit that is held, and return once it is half-way."""
        token = uuid.uuid4().hex
        future = self.pool.submit(visit, token)
        assert self.store.blpop([f"reached:{token}"], timeout=30) is not None
        return token, future

    def finish(self, held: tuple[str, Future[t.Any]]) -> t.Any:
        self.store.rpush(f"go:{held[0]}", 1)
        return held[1].result(30)


class HttpBrowser:
    """A cookie jar, and the requests made with it."""

    def __init__(self, service: Service, name: str) -> None:
        self.service = service
        self.jar = http.cookiejar.CookieJar()
        # 'build_opener' would load all of the system's certificates for each browser.
        self.opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.HTTPHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPCookieProcessor(self.jar),
        ):
            self.opener.add_handler(handler)
        self.opener.addheaders = [("User-Agent", name)]
        self.workers: set[str] = set()

    def copy(self, *names: str) -> HttpBrowser:
        """Return another browser with copies of the named cookies, or of all."""
        copy = HttpBrowser(self.service, "Copy")
        for cookie in self.jar:
            if not names or cookie.name in names:
                copy.jar.set_cookie(cookie)
        return copy

    def open(self, path: str, **form: str) -> tuple[int, str]:
        data = urllib.parse.urlencode(form).encode() if form else None
        try:
            response = self.opener.open(self.service.url + path, data, timeout=60)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            self.workers.add(response.headers["X-Worker"])
            return int(response.status or 0), response.read().decode()

    def sign_in(self, email: str, password: str = PASSWORD, **form: str) -> None:
        status, text = self.open("/signin?next=/whoami", email=email, password=password, **form)
        assert (status, json.loads(text)["user"]) == (200, email)

    def change_password(self, current: str, new: str) -> None:
        fields = {"current": current, "password": new, "repeated": new}
        status, text = self.open("/account/password", **fields)
        assert status == 200, text
        assert "Your password is changed" in text

    @property
    def user(self) -> str | None:
        return t.cast("str | None", json.loads(self.open("/whoami")[1])["user"])

    def is_dead_on_both_workers(self) -> bool:
        """Return whether both workers refuse copies of the cookies."""
        workers: set[str] = set()
        answers: set[str | None] = set()

        def both_have_answered() -> bool:
            # Send several at once: one worker might take all requests that come one after another.
            copies = [self.copy() for _ in range(4)]
            answers.update(at_once([functools.partial(getattr, copy, "user") for copy in copies]))
            workers.update(*(copy.workers for copy in copies))
            return len(workers) == 2

        assert servers.wait_for(both_have_answered), "One of the workers never answered."
        return answers == {None}


@contextmanager
def running(
    folder: Path, *, database: str, app: str = "workers_app:app", **environ: str
) -> Iterator[Service]:
    """Run the example with two workers, on an empty database, and on Redis by default.

    :param folder: the app's instance folder.
    :param app: a module of the tests, and the app in it.
    :param environ: additional environment variables for the workers.
    """
    port, prefix = servers.free_port(), f"w{uuid.uuid4().hex[:8]}:"
    variables = {
        **os.environ,
        "ACCOUNTS_INSTANCE": str(folder),
        "DATABASE_URL": database,
        "REDIS_URL": servers.redis_url(),
        "TEST_HOLD_URL": servers.redis_url(),
        "TEST_SESSION_KEY_PREFIX": prefix,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(EXAMPLE), os.environ.get("PYTHONPATH")])),
        **environ,
    }
    flask = [sys.executable, "-m", "flask", "--app", "accounts"]
    subprocess.run([*flask, "db", "upgrade"], env=variables, cwd=EXAMPLE, check=True)
    gunicorn = [sys.executable, "-m", "gunicorn", "--workers", "2", "--threads", "4"]
    gunicorn += ["--bind", f"127.0.0.1:{port}", "--pythonpath", str(Path(__file__).parent)]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*gunicorn, "--log-level", "warning", app], env=variables, cwd=EXAMPLE, stderr=output
        )
    store = redis.Redis.from_url(servers.redis_url())
    service = Service(f"http://127.0.0.1:{port}", store, prefix, database=database, log=log)

    def answers() -> bool:
        try:
            return service.browser("Probe").open("/whoami")[0] == 200
        except OSError:
            return False

    try:
        assert servers.wait_for(answers)
        yield service
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        service.pool.shutdown()
        for pattern in (f"{prefix}*", f"records:{prefix}*"):
            for key in store.scan_iter(pattern, count=10_000):
                store.delete(key)
        store.close()
        sys.stderr.write(service.log)


def sign_up(service: Service) -> str:
    """Create a user who isn't signed in anywhere. Return their email address."""
    email = f"{uuid.uuid4().hex[:12]}@example.com"
    browser = service.browser("Sign-up")
    form = {"email": email, "name": "Ann", "password": PASSWORD, "repeated": PASSWORD}
    status, text = browser.open("/signup", **form)
    assert status == 200, text
    assert browser.user == email
    browser.open("/signout", nothing="")
    assert browser.user is None
    return email
