"""The app that the HTTP benchmarks load, with and without the registry.

Each worker of a server builds it from its environment.
"""

from __future__ import annotations

import datetime as dt
import json
import typing as t
from collections.abc import Sequence

import sqlalchemy as sa
from flask import Flask, abort, render_template, request
from flask_login import (
    LoginManager,
    current_user,
    login_required,
    login_user,
    logout_user,
    user_accessed,
)
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy
from werkzeug.security import check_password_hash, generate_password_hash

from flask_session_registry import SessionRegistry

from .common import NOBODY, PLAIN, Config, define_user, redis_url

#: Nearly free, or the visits would spend most of their time on it.
METHOD = "pbkdf2:sha256:1"
_PREFIX = "BENCHMARK"
#: Not read from anywhere: any other work of the page would only make the check a smaller part.
ORDERS = [
    {
        "number": 1000 + number,
        "day": dt.date(2026, 1, 1) + dt.timedelta(days=number),
        "title": f"{number} loaves of bread & butter",
        "price": 4.2 * number,
    }
    for number in range(1, 31)
]


def environ(config: Config, **switches: t.Any) -> dict[str, str]:
    """Return the environment that makes :func:`create_app` build the same app in another process.

    :param switches: ``REGISTERED``: with the registry. ``CHECKED``: see :func:`_take_check_out`.
        ``KIND``: of users. Or settings of Flask.
    """
    url = config["SQLALCHEMY_DATABASE_URI"].render_as_string(hide_password=False)
    names = ("SQLALCHEMY_ENGINE_OPTIONS", "SESSION_TYPE", "SESSION_KEY_PREFIX")
    told = {
        "SQLALCHEMY_DATABASE_URI": url,
        **{name: config[name] for name in names if name in config},
        **switches,
    }
    return {f"{_PREFIX}_{name}": json.dumps(value) for name, value in told.items()}


def create_app(config: Config | None = None) -> Flask:
    """Create the app from ``config`` or from the environment.

    All views respond to anonymous visitors with a 401, so that a load notices.
    """
    app = Flask(__name__)
    app.config.from_mapping(SECRET_KEY="benchmark", REGISTERED=True, CHECKED=True, KIND=PLAIN)
    if config is None:
        # Only if there is a server: the benchmark has already reported a missing one.
        from redis import Redis

        app.config.from_prefixed_env(_PREFIX)
        app.config["SESSION_REDIS"] = Redis.from_url(redis_url())
    else:
        app.config.from_mapping(config)
    db = SQLAlchemy()
    User = define_user(db, app.config["KIND"])  # noqa: N806
    db.init_app(app)
    login_manager = LoginManager(app)
    Session(app)
    registry = SessionRegistry(app) if app.config["REGISTERED"] else None
    if not app.config["CHECKED"]:
        _take_check_out(app)

    @login_manager.user_loader  # type: ignore[untyped-decorator]
    def load_user(user_id: str) -> t.Any:
        return User.load(db.session, user_id)

    @app.get("/")
    def show() -> tuple[bytes, int]:
        if current_user.is_authenticated:
            return current_user.name.encode(), 200
        return NOBODY, 401

    @app.get("/page")
    @login_required
    def page() -> str:
        return render_template("page.html", orders=ORDERS)

    @app.post("/login")
    def login() -> str:
        user = db.session.get(User, int(request.form["id"]))
        if not check_password_hash(user.password_hash, request.form["password"]):
            abort(403)
        login_user(user)
        return ""

    @app.post("/logout")
    @login_required
    def logout() -> str:
        logout_user()
        return ""

    @app.post("/password")
    @login_required
    def change_password() -> str:
        if not check_password_hash(current_user.password_hash, request.form["current"]):
            abort(403)
        current_user.password_hash = generate_password_hash(request.form["new"], method=METHOD)
        db.session.commit()
        return ""

    # Without the registry these do nothing and report success, so that the load stays the same.

    @app.get("/sessions")
    @login_required
    def sessions() -> dict[str, str]:
        """Return the ids of the user's sessions, by user agent."""
        if registry is None:
            return {}
        return {row.user_agent: str(row.id) for row in registry.active(current_user)}

    @app.post("/end-others")
    @login_required
    def end_others() -> str:
        if registry is not None:
            registry.revoke_all(current_user, except_current=True)
            db.session.commit()
        return ""

    @app.post("/end/<id>")
    @login_required
    def end(id: str) -> str:
        has_ended = True
        if registry is not None:
            has_ended = registry.revoke(id, user=current_user)
            db.session.commit()
        return "ended" if has_ended else "unknown"

    return app


def fill(config: Config, users: Sequence[Config], user_sessions: Sequence[Config] = ()) -> None:
    """Create the tables with these rows."""
    app = create_app(config)
    db: SQLAlchemy = app.extensions["sqlalchemy"]
    tables = db.metadata.tables
    with app.app_context():
        db.create_all()
        for name, rows in (("users", users), ("user_sessions", user_sessions)):
            if rows:
                db.session.execute(sa.insert(tables[name]), rows)
        for name in tables:
            db.session.execute(sa.text(f"ANALYZE {name}"))
        db.session.commit()
        db.session.remove()
        db.engine.dispose()


def _take_check_out(app: Flask) -> None:
    """Break the app: no request checks the row, and ended sessions stay in the session store.

    This shows that the judge of the responses can fail.
    """
    for check in list(user_accessed.receivers_for(app)):
        user_accessed.disconnect(check, app)
    registry = app.extensions["session_registry.app"]
    registry.entries.delete = lambda *_, **__: None
