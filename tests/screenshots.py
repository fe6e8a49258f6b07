"""Retake the README's screenshots: ``python tests/screenshots.py``."""

from __future__ import annotations

import datetime as dt
import tempfile
from pathlib import Path

import sqlalchemy as sa
from browsers import FIREFOX, IPHONE, PAGE, SAFARI, Device, chromium, example, serving
from flask import Flask

DOCS = Path(__file__).resolve().parent.parent / "docs"
IPAD = IPHONE.replace("iPhone;", "iPad;")


#: When each device signed in and was last seen, in hours before now, and its IP address.
PAST = {
    SAFARI: (24 * 12, 3, "203.0.113.7"),
    IPAD: (24 * 20, 30, "203.0.113.7"),
    IPHONE: (24 * 3, 0.5, "2001:db8:2f::1c4"),
    FIREFOX: (0.1, 0, "198.51.100.23"),
}


def age(app: Flask) -> None:
    """Move the devices' sign-ins into the past."""
    from accounts.extensions import db, sessions

    now = dt.datetime.now(dt.timezone.utc)
    with app.app_context():
        for row in db.session.scalars(sa.select(sessions.UserSession)):
            began, seen, row.ip_address = PAST[row.user_agent]
            row.created_at = now - dt.timedelta(hours=began)
            row.last_seen_at = now - dt.timedelta(hours=seen)
            row.remember_until = row.created_at + dt.timedelta(days=30)
        db.session.commit()


def main() -> None:
    DOCS.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        example(Path(folder)) as app,
        serving(app) as url,
        chromium() as browser,
    ):
        phone = Device(
            browser,
            url,
            IPHONE,
            viewport={"width": 390, "height": 844},
            device_scale_factor=2,
            color_scheme="dark",
            is_mobile=True,
            has_touch=True,
        )
        desktop = Device(browser, url, FIREFOX, viewport={"width": 800, "height": 600})
        others = [Device(browser, url, user_agent) for user_agent in (SAFARI, IPAD)]
        for device in (*others, phone, desktop):
            device.sign_in()
        others[1].page.goto("/account")
        others[1].page.get_by_role("banner").get_by_role("button", name="Sign out").click()
        age(app)
        for device, name in ((desktop, "page-desktop"), (phone, "page-phone")):
            device.page.goto(PAGE)
            device.page.screenshot(path=DOCS / f"{name}.png", full_page=True)


if __name__ == "__main__":
    main()
