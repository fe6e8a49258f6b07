from __future__ import annotations

import contextlib
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flask_migrate
import pytest
from flask import Flask
from werkzeug.test import TestResponse

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accounts import create_app
from accounts.cli import USERS
from accounts.extensions import db

DATABASE = "accounts.sqlite"
#: The environment variables that the app reads.
VARIABLES = (
    *("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "HTTPS", "TRUSTED_HOSTS", "MAIL_SERVER"),
    *("MAIL_PORT", "MAIL_USE_TLS", "MAIL_USERNAME", "MAIL_PASSWORD", "MAIL_DEFAULT_SENDER"),
)


class Browser:
    """A named browser that keeps its cookies and sends the token of its current page."""

    def __init__(self, app: Flask, name: str) -> None:
        self.client = app.test_client()
        self.client.environ_base["HTTP_USER_AGENT"] = name

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.client.get(path, follow_redirects=True, **options)

    def post(
        self,
        path: str,
        fields: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        *,
        on: str = "/signup",
        follow_redirects: bool = True,
    ) -> TestResponse:
        token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', self.get(on).text)
        assert token is not None
        data = {"csrf_token": token[1], **dict(fields)}
        return self.client.post(path, data=data, follow_redirects=follow_redirects)

    def sign_in(
        self,
        email: str | None = None,
        password: str | None = None,
        *,
        remember: bool = False,
        at: str = "/signin",
    ) -> TestResponse:
        """Sign in, by default as the first user of the seed."""
        passwords = {email: password for email, _, password in USERS}
        email = email or USERS[0][0]
        fields = {"email": email, "password": password or passwords[email]}
        if remember:
            fields["remember"] = "y"
        return self.post(at, fields, on=at)

    def change_password(self, current: str, new: str) -> TestResponse:
        fields = {"current": current, "password": new, "repeated": new}
        return self.post("/account/password", fields, on="/account/password")

    def close(self) -> None:
        """Close the window: the browser drops the session and keeps the "remember me" cookies."""
        self.client.delete_cookie("session")

    def steal_cookies(self, other: Browser) -> None:
        for name in ("session", "remember_token", "remember_token_session"):
            self.client.set_cookie(name, other.client.get_cookie(name).value)

    def whoami(self) -> Any:
        return self.client.get("/whoami").json

    @property
    def user(self) -> str | None:
        user: str | None = self.whoami()["user"]
        return user


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a migrated database with the users of the seed."""
    folder = tmp_path_factory.mktemp("seeded")
    with pytest.MonkeyPatch.context() as monkeypatch, made_app(folder, monkeypatch) as app:
        with app.app_context():
            flask_migrate.upgrade()
        app.test_cli_runner().invoke(args=["seed"])
    return folder / DATABASE


@pytest.fixture
def environ() -> dict[str, str]:
    """Set the app's environment variables."""
    return {}


@pytest.fixture
def app(
    seeded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> Iterator[Flask]:
    shutil.copy(seeded, tmp_path / DATABASE)
    with made_app(tmp_path, monkeypatch, **environ) as app:
        yield app


@contextlib.contextmanager
def made_app(folder: Path, monkeypatch: pytest.MonkeyPatch, **environ: str) -> Iterator[Flask]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"ACCOUNTS_INSTANCE": str(folder), **environ}.items():
        monkeypatch.setenv(name, value)
    # Flask-Mail sends nothing while testing, unless told to.
    app = create_app({"TESTING": True, "MAIL_SUPPRESS_SEND": False})
    yield app
    with app.app_context():
        db.engine.dispose()


@pytest.fixture
def open_browser(app: Flask) -> Callable[[str], Browser]:
    """Return a function that opens another named browser: ``open_browser("Edge")``."""
    return lambda name: Browser(app, name)


@pytest.fixture
def firefox(open_browser: Callable[[str], Browser]) -> Browser:
    return open_browser("Firefox")


@pytest.fixture
def chrome(open_browser: Callable[[str], Browser]) -> Browser:
    return open_browser("Chrome")
