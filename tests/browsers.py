"""Drive real browsers against the example app."""

from __future__ import annotations

import os
import sys
import threading
import typing as t
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import servers
from flask import Flask
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from service import EXAMPLE
from werkzeug.serving import make_server

NAME, EMAIL, PASSWORD = "Ann Example", "ann@example.com", "correct horse battery staple"
PAGE = "/account/sessions/"

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0"
SAFARI = (
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko)"
    " Version/17.6 Safari/605.1.15"
)
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like"
    " Gecko) Version/17.5 Mobile/15E148 Safari/604.1"
)

# No network requests beyond the page itself.
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=servers.chromium(), args=_FLAGS)
        yield browser
        browser.close()


@contextmanager
def serving(app: Flask) -> Iterator[str]:
    """Serve an app and yield its address."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.port}"
    server.shutdown()
    thread.join()
    server.server_close()


@contextmanager
def example(folder: Path, **settings: t.Any) -> Iterator[Flask]:
    """Yield the example app, with one user, on SQLite and files in a folder."""

    sys.path.insert(0, str(EXAMPLE))
    from accounts import create_app
    from accounts.extensions import db
    from accounts.models import User

    os.environ["ACCOUNTS_INSTANCE"] = str(folder)
    try:
        app = create_app(settings)
    finally:
        del os.environ["ACCOUNTS_INSTANCE"]
    with app.app_context():
        db.create_all()
        user = User(email=EMAIL, name=NAME)
        user.set_password(PASSWORD)
        db.session.add(user)
        db.session.commit()
    yield app
    with app.app_context():
        db.engine.dispose()


class Device:
    """One person's browser, with its own cookies, name and screen."""

    def __init__(self, browser: Browser, url: str, user_agent: str, **options: t.Any) -> None:
        self.context: BrowserContext = browser.new_context(
            base_url=url, user_agent=user_agent, **options
        )
        self.context.set_default_timeout(20_000)
        self.page: Page = self.context.new_page()
        #: Console messages and page errors: scripts and styles blocked by the policy, for example.
        self.complaints: list[str] = []
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _note(self, said: t.Any) -> None:
        # Every browser requests it, and no app has to provide it.
        if not said.location["url"].endswith("/favicon.ico"):
            self.complaints.append(said.text)

    def sign_in(self, password: str = PASSWORD) -> None:
        self.page.goto("/signin")
        self.page.get_by_label("Email address").fill(EMAIL)
        self.page.get_by_label("Password").fill(password)
        self.press("Sign in")

    def change_password(self, new: str) -> None:
        self.page.goto("/account/password")
        self.page.get_by_label("Current password").fill(PASSWORD)
        self.page.get_by_label("New password", exact=True).fill(new)
        self.page.get_by_label("New password, again").fill(new)
        self.press("Change the password")

    def press(self, button: str) -> None:
        """Press a form's button and wait for the navigation it causes."""
        with self.page.expect_navigation():
            main = self.page.get_by_role("main")
            main.get_by_role("button", name=button, exact=True).click()

    @property
    def names(self) -> list[str]:
        """The device names on the page, in order."""
        self.page.goto(PAGE)
        return self.page.locator(".user-sessions h2 bdi").all_inner_texts()

    @property
    def said(self) -> list[str]:
        self.page.get_by_role("status").first.wait_for()
        return self.page.get_by_role("status").all_inner_texts()
