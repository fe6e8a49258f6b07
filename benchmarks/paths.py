"""How long is the path of a request through our code?

Counted by the profiler, for a signed-in request, a login, a password change and a logout: which of
our functions are called, in how many of our modules, and how often the path changes from one of our
modules to another. Sessions are kept in a store on the server, records in SQLite.

Only the public interface is used: a copy of this file also measures an older checkout.
"""

from __future__ import annotations

import collections
import sys
import tempfile
import threading
import typing as t
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType

import click
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from cachelib import FileSystemCache
from flask import Flask, request
from flask.testing import FlaskClient
from flask_login import LoginManager, UserMixin, current_user, login_user, logout_user
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy

import flask_session_registry
from flask_session_registry import SessionRegistry

ROOT = str(Path(t.cast(str, flask_session_registry.__file__)).parent)
#: The smallest of several rounds counts: a maintenance task may fall into one of them.
ROUNDS = 3
#: Not functions, though they have frames: what Python 3.12 inlines, and class bodies.
INLINED = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<module>")


class Trace:
    """The calls of our functions while it is active, in all threads that start meanwhile.

    A generator counts as called each time it is entered.
    """

    def __init__(self) -> None:
        self.calls: collections.Counter[CodeType] = collections.Counter()
        #: From which module to which.
        self.changes: collections.Counter[tuple[str, str]] = collections.Counter()
        self._local = threading.local()

    def __enter__(self) -> Trace:
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(ROOT) or code.co_name in INLINED:
            return
        frames: list[str] = self._local.__dict__.setdefault("frames", [])
        if event == "call":
            self.calls[code] += 1
            if frames and frames[-1] != code.co_filename:
                self.changes[module_of(frames[-1]), module_of(code.co_filename)] += 1
            frames.append(code.co_filename)
        elif event == "return" and frames:
            frames.pop()

    @property
    def figures(self) -> tuple[int, int, int, int]:
        """Calls, functions, modules, module changes."""
        modules = {code.co_filename for code in self.calls}
        return self.calls.total(), len(self.calls), len(modules), self.changes.total()


def module_of(filename: str) -> str:
    return filename.removeprefix(ROOT)[1:].removesuffix(".py").replace("/", ".")


def build(folder: str) -> Flask:
    """An app with one user, as the README sets it up."""
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="benchmark",
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{folder}/app.sqlite",
        SESSION_TYPE="cachelib",
        SESSION_CACHELIB=FileSystemCache(f"{folder}/sessions"),
        SESSION_REGISTRY_AUTO_PRUNE=None,
    )
    db = SQLAlchemy(app)
    login_manager = LoginManager(app)
    Session(app)

    class User(UserMixin, db.Model):  # type: ignore[misc, name-defined]
        id: sa_orm.Mapped[int] = sa_orm.mapped_column(primary_key=True)
        password_hash: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(255))

    sessions = SessionRegistry(app)

    @login_manager.user_loader  # type: ignore[untyped-decorator]
    def load_user(user_id: str) -> t.Any:
        return db.session.get(User, int(user_id))

    @app.get("/")
    def show() -> str:
        return str(current_user.is_authenticated)

    @app.post("/login")
    def login() -> str:
        login_user(db.session.get(User, 1))
        return "True"

    @app.post("/password")
    @sessions.revoke_on_password_change
    def change_password() -> str:
        current_user.password_hash = request.form["hash"]
        db.session.commit()
        return "True"

    @app.post("/logout")
    def logout() -> str:
        logout_user()
        return "True"

    with app.app_context():
        db.create_all()
        db.session.add(User(id=1, password_hash="a hash"))
        db.session.commit()
    return app


def measure(app: Flask, number: int) -> dict[str, Trace]:
    """One round: what each request of a browser has called, while another is signed in.

    :raises AssertionError: an answer isn't the expected one.
    """
    paths = {}
    browser, other = app.test_client(), app.test_client()
    other.post("/login")
    steps: dict[str, Callable[[FlaskClient], t.Any]] = {
        "login": lambda client: client.post("/login"),
        "signed-in request": lambda client: client.get("/"),
        "password change": lambda client: client.post("/password", data={"hash": f"hash {number}"}),
        "logout": lambda client: client.post("/logout"),
    }
    for name, step in steps.items():
        with Trace() as path:
            answer = step(browser)
        if answer.text != "True":
            raise AssertionError(f"'{name}' failed.")
        paths[name] = path
    if other.get("/").text != "False" or browser.get("/").text != "False":
        raise AssertionError("A session is active that has ended.")
    return paths


@click.command(help=__doc__)
@click.option("--list", "lists", is_flag=True, help="List the functions and the module changes.")
def main(lists: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        app = build(folder)
        # The first one imports, sets up, and fills caches.
        rounds = [measure(app, number) for number in range(1 + ROUNDS)][1:]
    click.echo(f"{'':20}{'calls':>8}{'functions':>12}{'modules':>10}{'module changes':>18}")
    for name in ("signed-in request", "login", "password change", "logout"):
        path = min((found[name] for found in rounds), key=lambda one: one.figures)
        calls, functions, modules, changes = path.figures
        click.echo(f"{name:20}{calls:8}{functions:12}{modules:10}{changes:18}")
        if lists:
            for code, count in path.calls.most_common():
                function = getattr(code, "co_qualname", code.co_name)
                click.echo(f"    {count:3}  {module_of(code.co_filename)}: {function}")
            for (source, target), count in path.changes.most_common():
                click.echo(f"    {count:3}  {source} -> {target}")


if __name__ == "__main__":
    main()
