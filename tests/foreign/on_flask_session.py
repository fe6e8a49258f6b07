"""A pytest plugin for Flask-Session's own tests: signs in a user to each of their apps."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Add a user to each app that Flask-Session is set up on."""
    from flask import Flask, abort, request
    from flask_login import LoginManager, UserMixin, current_user, login_user
    from flask_session import Session
    from flask_sqlalchemy import SQLAlchemy

    from flask_session_registry import SessionRegistry

    init_app = Session.init_app

    @functools.wraps(init_app)
    def init_app_and_user(self: Session, app: Flask) -> None:
        app.config.setdefault("SQLALCHEMY_DATABASE_URI", "sqlite://")
        app.config.from_prefixed_env()
        init_app(self, app)
        # The SQL session store brings its own.
        db = app.extensions.get("sqlalchemy") or SQLAlchemy(app)

        class User(db.Model, UserMixin):  # type: ignore[name-defined]
            id = db.mapped_column(db.Integer, primary_key=True)
            password = db.mapped_column(db.String(50))

        login_manager = LoginManager(app)
        login_manager.user_loader(functools.partial(db.session.get, User))
        # It reads each session, which the tests count as an access by the app.
        app.after_request_funcs[None].remove(login_manager._update_remember_cookie)
        if "WITH_REGISTRY" in os.environ:
            SessionRegistry(app)
        with app.app_context():
            db.create_all()
            db.session.add(User(id=1, password="a hash"))
            db.session.commit()

        @app.before_request
        def sign_in() -> None:
            if request.path == "/set":
                login_user(db.session.get(User, 1))
            elif "session" in request.cookies and not current_user.is_authenticated:
                abort(401)

    Session.init_app = init_app_and_user


@pytest.fixture(scope="session", autouse=True)
def own_servers() -> Iterator[None]:
    """Give the tests servers of their own, because they flush them."""
    sys.path.append(str(Path(__file__).parent.parent))
    from own_servers import own_memcached, own_redis
    from pymemcache import Client
    from redis import Redis

    with own_redis() as redis, own_memcached() as memcached, pytest.MonkeyPatch.context() as patch:
        patch.setattr("test_redis.Redis", functools.partial(Redis.from_url, redis.url))
        patch.setattr("test_memcached.memcache.Client", lambda _: Client(memcached.url))
        yield
