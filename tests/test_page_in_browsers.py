"""The page in a real browser: Chromium, with one context per device."""

from __future__ import annotations

import datetime as dt
import re
import typing as t
import uuid
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pytest
import sqlalchemy as sa
from axe_playwright_python.sync_playwright import Axe
from browsers import FIREFOX, IPHONE, PAGE, PASSWORD, SAFARI, Device, chromium, example, serving
from flask import Flask
from playwright.sync_api import Browser
from test_readme import blocks

pytestmark = [pytest.mark.once, pytest.mark.no_cover]

NEW = "staple battery horse"
HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>/1.0",
    "A" * 512,
    "\u202eEvil\u2066 🦊🦊🦊/1.0 (אבג)",
    'Mozilla/5.0 (X11; Linux x86_64) "><style>*{display:none}</style> Firefox/133.0',
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> dict[str, t.Any]:
    return getattr(request, "param", {})


@pytest.fixture
def app(tmp_path: Path, settings: dict[str, t.Any]) -> Iterator[Flask]:
    with example(tmp_path, **settings) as app:
        if settings:
            # Without the changes that fit the page into the example's own layout.
            its_own = app.jinja_loader

            def load(name: str) -> t.Any:
                is_changed = name.startswith("session_registry/")
                return None if is_changed else its_own.get_source(app.jinja_env, name)

            app.jinja_loader = jinja2.FunctionLoader(load)
        yield app


@pytest.fixture
def open_device(app: Flask, browser: Browser) -> Iterator[t.Callable[..., Device]]:
    """Open another browser with this user agent and options of a Playwright context."""
    devices: list[Device] = []
    with serving(app) as url:

        def open_device(user_agent: str = FIREFOX, **options: t.Any) -> Device:
            devices.append(Device(browser, url, user_agent, **options))
            return devices[-1]

        yield open_device
        for device in devices:
            device.context.close()


OpenDevice = t.Callable[..., Device]


def pretend(app: Flask, **values: t.Any) -> None:
    """Add a session of Ann's with any values."""
    from accounts.extensions import db, sessions

    with app.app_context():
        first = db.session.scalars(sa.select(sessions.UserSession)).first()
        now = dt.datetime.now(dt.timezone.utc)
        row = {
            "id": uuid.uuid4(),
            "user_id": first.user_id,
            "generation": 0,
            "created_at": now,
            "last_seen_at": now,
            "authenticated_at": now,
            "fingerprint": first.fingerprint,
        }
        db.session.execute(sa.insert(sessions.UserSession), [row | values])
        db.session.commit()


def test_two_devices_of_one_person(open_device: OpenDevice) -> None:
    """Sign in on both, see both, sign out the other one: its next click leads to the login page."""
    desktop, phone = (
        open_device(SAFARI),
        open_device(IPHONE, viewport={"width": 390, "height": 844}),
    )
    for device in (desktop, phone):
        device.sign_in()
        assert "Ann Example, ann@example.com" in device.page.inner_text("main")
    assert phone.names == ["Safari on iPhone", "Safari on macOS"]
    assert desktop.names == ["Safari on macOS", "Safari on iPhone"]
    assert desktop.page.get_by_text("This device").count() == 1
    phone.page.goto("/account")
    desktop.press("Sign out Safari on iPhone")
    assert desktop.said == ["Safari on iPhone is signed out."]
    assert "Signed out from elsewhere" in desktop.page.inner_text(".user-sessions-recent")
    phone.page.get_by_role("link", name="Where you're signed in").click()
    assert phone.page.url.endswith(f"/signin?next={PAGE}")
    assert "You were signed out from another device." in phone.said
    assert desktop.names == ["Safari on macOS"]
    assert desktop.complaints == phone.complaints == []


def test_changed_password(open_device: OpenDevice) -> None:
    """The login page tells the other device why it was signed out."""
    desktop, phone = open_device(), open_device(IPHONE)
    desktop.sign_in()
    phone.sign_in()
    desktop.change_password(NEW)
    assert "Your password is changed. All other devices are signed out." in desktop.said
    phone.page.reload()
    assert "/signin" in phone.page.url
    reason = "You were signed out because your password was changed on another device."
    assert reason in phone.said
    phone.sign_in(NEW)
    assert phone.names == ["Safari on iPhone", "Firefox on Linux"]


def test_end_everything(open_device: OpenDevice) -> None:
    """This device is signed out too, and the login page says so."""
    desktop, phone = open_device(), open_device(IPHONE)
    desktop.sign_in()
    phone.sign_in()
    desktop.page.goto(PAGE)
    desktop.press("Sign out everywhere, including here")
    assert "/signin" in desktop.page.url
    assert "You are signed out everywhere." in desktop.said
    phone.page.reload()
    assert "/signin" in phone.page.url


def test_password_is_asked_for(app: Flask, open_device: OpenDevice) -> None:
    """After a quarter of an hour the password is required, then a confirmation."""
    from accounts.extensions import db, sessions

    desktop, phone = open_device(), open_device(IPHONE)
    desktop.sign_in()
    phone.sign_in()
    desktop.page.goto(PAGE)
    with app.app_context():
        long_ago = dt.datetime.now(dt.timezone.utc) - dt.timedelta(minutes=16)
        db.session.execute(sa.update(sessions.UserSession).values(authenticated_at=long_ago))
        db.session.commit()
    desktop.press("Sign out Safari on iPhone")
    assert "/signin" in desktop.page.url
    desktop.page.get_by_label("Password").fill(PASSWORD)
    desktop.press("Sign in")
    desktop.page.get_by_text("Sign out Safari on iPhone?").wait_for()
    assert "127.0.0.1" in desktop.page.inner_text(".user-sessions")
    phone.page.reload()
    assert "/signin" not in phone.page.url
    desktop.press("Sign out")
    assert desktop.said == ["Safari on iPhone is signed out."]
    phone.page.reload()
    assert "/signin" in phone.page.url


def test_script_of_the_readme(open_device: OpenDevice) -> None:
    """The script that signs out the other devices works from a page of the app."""
    desktop, phone = open_device(), open_device(IPHONE)
    desktop.sign_in()
    phone.sign_in()
    (script,) = blocks("js")
    desktop.page.evaluate(f"async () => {{ {script} }}")
    assert desktop.names == ["Firefox on Linux"]
    phone.page.reload()
    assert "/signin" in phone.page.url


def test_without_javascript(open_device: OpenDevice) -> None:
    """Everything works without JavaScript, and exact times are in UTC."""
    desktop, phone = open_device(java_script_enabled=False), open_device(IPHONE)
    desktop.sign_in()
    phone.sign_in()
    assert desktop.names == ["Firefox on Linux", "Safari on iPhone"]
    title = desktop.page.locator("time").first.get_attribute("title")
    assert title is not None
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", title)
    desktop.press("Sign out all other devices")
    assert desktop.said == ["1 other device is signed out."]


def test_time_zone_of_the_reader(open_device: OpenDevice) -> None:
    """With JavaScript, exact times are in the reader's time zone and format."""
    desktop = open_device(timezone_id="Asia/Tokyo", locale="en-GB")
    desktop.sign_in()
    desktop.page.goto(PAGE)
    time = desktop.page.locator("time").first
    moment = dt.datetime.fromisoformat(t.cast(str, time.get_attribute("datetime")))
    there = moment.astimezone(dt.timezone(dt.timedelta(hours=9)))
    title = t.cast(str, time.get_attribute("title"))
    assert f"{there:%H:%M:%S} GMT+9" in title.replace("JST", "GMT+9") or (
        f"{int(f'{there:%I}')}:{there:%M:%S}" in title
    )


def test_keyboard(open_device: OpenDevice) -> None:
    """The tab key reaches each button in page order, with a visible focus, and Enter presses it."""
    desktop, phone = open_device(), open_device(IPHONE)
    desktop.sign_in()
    phone.sign_in()
    desktop.page.goto(PAGE)
    reached = []
    for _ in range(12):
        desktop.page.keyboard.press("Tab")
        focused = desktop.page.locator(":focus")
        if not focused.count():
            break
        reached.append(focused.get_attribute("aria-label") or focused.inner_text())
    assert reached[-3:] == [
        "Sign out Safari on iPhone",
        "Sign out all other devices",
        "Sign out everywhere, including here",
    ]
    button = desktop.page.get_by_role("button", name="Sign out Safari on iPhone")
    button.focus()
    assert button.evaluate("one => getComputedStyle(one).outlineStyle") != "none"
    desktop.page.keyboard.press("Enter")
    desktop.page.get_by_role("status").wait_for()
    assert desktop.said == ["Safari on iPhone is signed out."]


#: In the example's layout, and in the page's own.
LAYOUTS = [{}, {"SESSION_REGISTRY_BASE_TEMPLATE": "session_registry/base.html"}]


@pytest.mark.parametrize("settings", LAYOUTS, indirect=True)
@pytest.mark.parametrize("width", [1280, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible(app: Flask, open_device: OpenDevice, width: int, scheme: str) -> None:
    """axe-core finds nothing, light or dark, wide or narrow, and nothing scrolls sideways."""
    device = open_device(viewport={"width": width, "height": 800}, color_scheme=scheme)
    device.sign_in()
    for user_agent in (*HOSTILE, IPHONE, SAFARI, "curl/8.0", None):
        pretend(app, user_agent=user_agent, ip_address="2001:db8:85a3:8d3:1319:8a2e:370:7348")
    now = dt.datetime.now(dt.timezone.utc)
    pretend(app, user_agent=IPHONE, revoked_at=now, revoked_reason="r" * 64)
    for number in range(20):
        pretend(app, user_agent=f"Device{number}", last_seen_at=now - dt.timedelta(minutes=number))
    pretend(app, user_agent=IPHONE, remember_until=now + dt.timedelta(days=9))
    device.page.goto(PAGE)
    backgrounds = []
    id = next(iter(re.findall("([0-9a-f-]{36})/revoke", device.page.content())))
    for path in (PAGE, f"{PAGE}revoke-all", f"{PAGE}{id}/revoke", None):
        if path is None:
            device.page.goto(PAGE)
            device.page.get_by_role("link", name="More devices").click()
        else:
            device.page.goto(path)
        results = Axe().run(device.page)
        assert results.violations_count == 0, results.generate_report()
        assert device.page.evaluate("document.documentElement.scrollWidth") <= width
        backgrounds.append(
            device.page.evaluate("getComputedStyle(document.documentElement).colorScheme")
        )
    assert set(backgrounds) == {"light dark"}
    assert device.complaints == []


@pytest.mark.parametrize("settings", LAYOUTS, indirect=True)
def test_hostile_user_agents(app: Flask, open_device: OpenDevice) -> None:
    """A hostile user agent runs nothing, hides nothing and reverses no text."""
    device = open_device()
    device.page.on("dialog", lambda dialog: device.complaints.append(dialog.message))
    device.sign_in()
    for user_agent in HOSTILE:
        pretend(app, user_agent=user_agent)
    assert len(device.names) == len(HOSTILE) + 1
    assert device.page.locator(".user-sessions img, .user-sessions style").count() == 0
    buttons = device.page.get_by_role("button", name="Sign out", exact=False)
    assert all(button.is_visible() for button in buttons.all())
    assert buttons.count() >= len(HOSTILE) + 2
    assert device.complaints == []
