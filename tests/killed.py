"""An app whose processes are killed: ``python killed.py SETTINGS``, with orders on stdin.

Each order is a password change, made by a separate process. That process is forked from one that
has already changed a password, so that it loses no time. It is killed (SIGKILL) at a numbered
point, after a number of seconds, or not at all. There is a point before and after each SQL
statement, each commit and each Redis command.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import typing as t
from pathlib import Path

import redis
import sqlalchemy as sa
from site_under_test import Site


class Points:
    """Count the points that this process has reached, and kill it at the fatal one."""

    def __init__(self) -> None:
        self.reached = 0
        self.fatal: int | None = None
        self.is_counting = False

    def reach(self, *_: t.Any) -> None:
        if not self.is_counting:
            return
        if self.reached == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.reached += 1

    def around(self, owner: t.Any, name: str) -> None:
        """Add a point before and after each call of a method."""
        method = getattr(owner, name)

        def watched(*arguments: t.Any, **named: t.Any) -> t.Any:
            self.reach()
            result = method(*arguments, **named)
            self.reach()
            return result

        setattr(owner, name, watched)

    def watch(self, engine: sa.Engine) -> None:
        sa.event.listen(engine, "before_cursor_execute", self.reach)
        sa.event.listen(engine, "after_cursor_execute", self.reach)
        self.around(engine.dialect, "do_commit")
        self.around(redis.connection.Connection, "send_packed_command")
        self.around(redis.connection.Connection, "read_response")


def change_password(site: Site, order: dict[str, t.Any], points: Points) -> dict[str, t.Any]:
    browser = site.browser("Chrome", **order["cookies"])
    site.redis.ping()
    points.fatal = order["at"]
    points.is_counting = True
    began = time.perf_counter()
    response = browser.post("/password", password=order["password"])
    seconds = time.perf_counter() - began
    return {
        "status": response.status_code,
        "points": points.reached,
        "seconds": seconds,
        "cookies": browser.cookies,
    }


def obey(site: Site, order: dict[str, t.Any], points: Points) -> dict[str, t.Any]:
    """Return the process's answer, or an empty one if the process was killed."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        # A process that hangs must not block the test.
        signal.alarm(60)
        os.close(readable)
        os.write(writable, b" ")
        os.write(writable, json.dumps(change_password(site, order, points)).encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as answer:
        answer.read(1)
        if order["after"] is not None:
            time.sleep(order["after"])
            os.kill(child, signal.SIGKILL)
        text = answer.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL and not text:
        return {}
    return dict(json.loads(text))


def main() -> None:
    settings = json.loads(sys.argv[1])
    folder = Path(settings["folder"])
    folder.mkdir()
    site = Site(folder, store="redis", records=settings["records"], users=(), **settings["config"])
    # Do everything that only happens the first time.
    browser = site.browser("Bob's")
    browser.login("bob")
    browser.post("/password", password="another")
    points = Points()
    with site.context():
        site.db.engine.dispose()
        points.watch(site.db.engine)
    site.redis.connection_pool.disconnect()
    for line in sys.stdin:
        print(json.dumps(obey(site, json.loads(line), points)), flush=True)


if __name__ == "__main__":
    main()
