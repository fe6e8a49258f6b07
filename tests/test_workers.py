"""The example under gunicorn with two workers, on PostgreSQL and Redis (SCENARIOS 1, 3, 27, 28).

Real HTTP, real cookie jars, and requests that are held in the middle in one worker while another
answers.
"""

from __future__ import annotations

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
from pathlib import Path

import pytest
import redis
import servers

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "accounts"
PASSWORD = "correct horse battery staple"
HOLDERS = 3


class Service:
    """The running example."""

    def __init__(self, url: str, store: redis.Redis, prefix: str) -> None:
        self.url = url
        self.store = store
        self.prefix = prefix
        self.pool = ThreadPoolExecutor(HOLDERS)

    def browser(self, name: str) -> HttpBrowser:
        return HttpBrowser(self, name)

    def entries(self) -> list[bytes]:
        """The entries that name a user session."""
        keys = list(self.store.scan_iter(f"{self.prefix}*"))
        return [key for key in keys if b"_user_session" in (self.store.get(key) or b"")]

    def start(self, visit: t.Callable[[str], t.Any]) -> tuple[str, Future[t.Any]]:
        """Begin a visit that is held, and return when it is in the middle."""
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
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.jar))
        self.opener.addheaders = [("User-Agent", name)]
        self.workers: set[str] = set()

    def open(self, path: str, **form: str) -> tuple[int, str]:
        data = urllib.parse.urlencode(form).encode() if form else None
        try:
            response = self.opener.open(self.service.url + path, data, timeout=60)
        except urllib.error.HTTPError as error:
            response = error  # type: ignore[assignment]
        with response:
            self.workers.add(response.headers["X-Worker"])
            return int(response.status or 0), response.read().decode()

    def sign_in(self, email: str, password: str = PASSWORD, **form: str) -> None:
        status, text = self.open("/signin", email=email, password=password, **form)
        assert status == 200, text

    def change_password(self, current: str, new: str) -> None:
        fields = {"current": current, "password": new, "repeated": new}
        status, text = self.open("/account/password", **fields)
        assert status == 200, text
        assert "Your password is changed" in text

    @property
    def user(self) -> str | None:
        return t.cast("str | None", json.loads(self.open("/whoami")[1])["user"])

    def is_dead_on_both_workers(self) -> bool:
        """Asked until each worker has answered."""
        self.workers.clear()
        answers = set()
        for _ in range(200):
            answers.add(self.user)
            if len(self.workers) == 2:
                return answers == {None}
        raise AssertionError("One of the workers never answered.")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with servers.scratch_database("postgresql") as database:
        port, prefix = servers.free_port(), f"w{uuid.uuid4().hex[:8]}:"
        environ = os.environ | {
            "ACCOUNTS_INSTANCE": str(tmp_path_factory.mktemp("instance")),
            "DATABASE_URL": database,
            "REDIS_URL": servers.redis_url(),
            "TEST_SESSION_KEY_PREFIX": prefix,
            "PYTHONPATH": str(EXAMPLE),
        }
        flask = [sys.executable, "-m", "flask", "--app", "accounts"]
        subprocess.run([*flask, "db", "upgrade"], env=environ, cwd=EXAMPLE, check=True)
        gunicorn = [sys.executable, "-m", "gunicorn", "--workers", "2", "--threads", "4"]
        gunicorn += ["--bind", f"127.0.0.1:{port}", "--pythonpath", str(Path(__file__).parent)]
        process = subprocess.Popen(
            [*gunicorn, "--log-level", "warning", "workers_app:app"], env=environ, cwd=EXAMPLE
        )
        store = redis.Redis.from_url(servers.redis_url())
        service = Service(f"http://127.0.0.1:{port}", store, prefix)

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
            for key in store.scan_iter(f"{prefix}*"):
                store.delete(key)
            store.close()


@pytest.fixture
def email(service: Service) -> str:
    """A new user."""
    email = f"{uuid.uuid4().hex[:12]}@example.com"
    browser = service.browser("Sign-up")
    form = {"email": email, "name": "Ann", "password": PASSWORD, "repeated": PASSWORD}
    status, text = browser.open("/signup", **form)
    assert status == 200, text
    assert browser.user == email
    browser.open("/signout", nothing="")
    assert browser.user is None
    return email


def test_main_scenario(service: Service, email: str) -> None:
    """1, 3: Chrome changes the password and stays; the others are dead on both workers."""
    before = len(service.entries())
    firefox, chrome, phone = (service.browser(name) for name in ("Firefox", "Chrome", "Phone"))
    for browser in (firefox, chrome, phone):
        browser.sign_in(email, remember="y")
        assert browser.user == email
    assert len(service.entries()) == before + 3
    listed = chrome.open("/account")[1]
    assert all(name in listed for name in ("Firefox", "Chrome", "Phone"))
    chrome.change_password(PASSWORD, "a new password, quite long")
    assert len(service.entries()) == before + 1
    assert firefox.is_dead_on_both_workers()
    assert phone.is_dead_on_both_workers()
    assert chrome.user == email


@pytest.mark.parametrize("writes", [{}, {"write": "1"}])
def test_request_in_flight(service: Service, email: str, writes: dict[str, str]) -> None:
    """27: held in one worker; its answer still comes, and Firefox is dead on both."""
    firefox, chrome = service.browser("Firefox"), service.browser("Chrome")
    firefox.sign_in(email, remember="y")
    chrome.sign_in(email)
    held = service.start(lambda token: firefox.open("/held", token=token, **writes))
    chrome.change_password(PASSWORD, "a new password, quite long")
    assert service.finish(held) == (200, email)
    assert firefox.is_dead_on_both_workers()
    assert chrome.user == email


@pytest.mark.parametrize("commits", [{}, {"commits": "1"}])
def test_login_that_races_the_change(service: Service, email: str, commits: dict[str, str]) -> None:
    """28: the old password was checked before the change; the login is dead on arrival."""
    firefox, chrome = service.browser("Firefox"), service.browser("Chrome")
    chrome.sign_in(email)
    form = {"email": email, "password": PASSWORD} | commits
    held = service.start(lambda token: firefox.open("/held-login", token=token, **form))
    chrome.change_password(PASSWORD, "a new password, quite long")
    assert service.finish(held) == (200, "signed in")
    assert firefox.is_dead_on_both_workers()
    assert chrome.user == email


def test_own_request_that_answers_last(service: Service, email: str) -> None:
    """33: Chrome's own request is in flight over the change, and answers last: Chrome stays."""
    chrome = service.browser("Chrome")
    chrome.sign_in(email)
    held = service.start(lambda token: chrome.open("/held", token=token, write="1"))
    # More than the second after which an answer counts as late.
    waiting = service.store.blpop(["never"], timeout=1.2)
    assert waiting is None
    chrome.change_password(PASSWORD, "a new password, quite long")
    assert service.finish(held) == (200, email)
    assert chrome.user == email
