"""Sessions that move to another store key while a request that ends them purges the old one."""

from __future__ import annotations

import threading

import pytest
from conftest import SiteFactory
from flask_login import user_logged_out
from site_under_test import Browser, Site


@pytest.fixture
def moving(make_site: SiteFactory) -> Site:
    site = make_site()

    @site.app.post("/rotate")
    def rotate() -> str:
        site.sessions.rotate()
        return "rotated"

    return site


def prune(site: Site) -> None:
    with site.context():
        site.sessions.prune()


@pytest.mark.parametrize("path", ["/rotate", "/password"])
def test_logout_beside_a_move(moving: Site, path: str) -> None:
    """3: the next prune deletes the entry that a logged-out session has moved to meanwhile."""
    firefox = moving.browser("Firefox")
    firefox.login()
    tab = firefox.copy()

    def move(*_: object, **__: object) -> None:
        user_logged_out.disconnect(move, moving.app)
        in_parallel(tab, path)

    user_logged_out.connect(move, moving.app)
    firefox.post("/logout")
    prune(moving)
    assert not tab.is_signed_in
    assert moving.signed_in_entries() == []


def in_parallel(browser: Browser, path: str) -> None:
    """Send a request from another thread, as another worker would handle it."""
    answers: list[int] = []

    def send() -> None:
        answers.append(browser.post(path, password="new").status_code)

    thread = threading.Thread(target=send)
    thread.start()
    thread.join()
    assert answers == [200]
