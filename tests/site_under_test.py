"""A small site that uses the registry, and browsers that visit it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import typing as t
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import redis
import servers
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask import Flask, Response, request, session
from flask.sessions import SecureCookieSessionInterface
from flask_login import (
    LoginManager,
    UserMixin,
    current_user,
    login_required,
    login_user,
    logout_user,
)
from flask_sqlalchemy import SQLAlchemy
from stores import KINDS, STORES

from flask_session_registry import SessionRegistry
from flask_session_registry._records.redis import RedisRecords, RedisUserSession
from flask_session_registry._records.redis.encoding import as_text, encode
from flask_session_registry._records.redis.session import Tombstone

COOKIES = ("session", "remember_token", "remember_token_session")
__all__ = ["DATABASES", "HAS_FALLBACKS", "RECORDS", "STORES", "Browser", "Site"]

DATABASES = ("sqlite", "postgresql", "mariadb")

#: Whether Flask accepts signatures made with an earlier key: Flask 3.1 and later.
HAS_FALLBACKS = "SECRET_KEY_FALLBACKS" in Flask.default_config

#: Where the user sessions are kept.
RECORDS = ("sql", "redis")


def user_class(db: SQLAlchemy, **columns: t.Any) -> type[t.Any]:
    """Return a plain user model with additional columns or attributes."""

    class User(UserMixin, db.Model):  # type: ignore[name-defined]
        __tablename__ = "account"
        id: sa_orm.Mapped[int] = sa_orm.mapped_column(primary_key=True)
        name: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(50), unique=True)
        password_hash: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(100))
        note: sa_orm.Mapped[t.Optional[str]] = sa_orm.mapped_column(sa.String(100))  # noqa: UP045

    for name, column in columns.items():
        setattr(User, name, column)
    return User


class Site:
    """An app with the registry, on one session store and one database.

    It has ``/login``, ``/logout``, ``/me``, ``/password`` and ``/cart``. A test adds others.
    """

    def __init__(
        self,
        folder: Path,
        *,
        store: str = "files",
        database: str | None = None,
        records: str = "sql",
        model: Callable[[SQLAlchemy], type[t.Any]] = user_class,
        users: tuple[str, ...] = ("ann", "bob"),
        init: bool = True,
        **config: t.Any,
    ) -> None:
        self.store = store
        self.folder = folder
        self.app = app = Flask(f"site_{uuid.uuid4().hex[:8]}")
        self.prefix = f"s{uuid.uuid4().hex[:8]}:"
        app.config.update(
            SECRET_KEY="only for tests",
            SQLALCHEMY_DATABASE_URI=database or f"sqlite:///{folder}/site.db",
            SESSION_KEY_PREFIX=self.prefix,
            SESSION_REGISTRY_AUTO_PRUNE=None,
        )
        self.backend = KINDS[store](app, folder, self.prefix)
        app.config.update(self.backend.configure())
        self.records = records
        if records == "redis":
            app.config.update(
                SESSION_REGISTRY_RECORDS="redis",
                SESSION_REGISTRY_REDIS_PREFIX=f"records:{self.prefix}",
            )
            if app.config.get("SESSION_TYPE") != "redis":
                client = redis.Redis.from_url(servers.redis_url())
                app.config["SESSION_REGISTRY_REDIS"] = client
        self.db = SQLAlchemy()
        app.config.update(config)
        self.db.init_app(app)
        self.login_manager = LoginManager(app)
        self.User = model(self.db)
        self.backend.set_up(self.db)
        self.sessions = SessionRegistry()
        if init:
            self.sessions.init_app(app)
        self.login_manager.user_loader(self.load_user)
        self._add_views()
        if init:
            with app.app_context():
                self.db.create_all()
                for name in users:
                    self.db.session.add(self.User(name=name, password_hash=f"hash of {name}"))
                self.db.session.commit()

    def load_user(self, id: str) -> t.Any:
        convert = sa.inspect(self.User).primary_key[0].type.python_type
        return self.db.session.get(self.User, convert(id))

    def user(self, name: str) -> t.Any:
        """Return a user from the app's SQLAlchemy session."""
        return self.db.session.scalar(sa.select(self.User).filter_by(name=name))

    def _add_views(self) -> None:
        app = self.app

        @app.post("/login")
        def login() -> t.Any:
            user = self.user(request.form["name"])
            if user is None or user.password_hash != request.form["password"]:
                return "wrong", 403
            login_user(user, remember="remember" in request.form)
            return "signed in"

        @app.post("/logout")
        def logout() -> str:
            logout_user()
            return "signed out"

        @app.get("/me")
        def me() -> dict[str, t.Any]:
            name = current_user.name if current_user.is_authenticated else None
            return {"name": name, "rejected": self.sessions.rejected}

        @app.post("/password")
        @login_required
        def password() -> str:
            current_user.password_hash = request.form["password"]
            self.db.session.commit()
            return "changed"

        @app.route("/cart", methods=["GET", "POST"])
        def cart() -> dict[str, t.Any]:
            if request.method == "POST":
                session["cart"] = request.form["item"]
            return {"cart": session.get("cart")}

    # -- visiting it ---------------------------------------------------------------------------

    def browser(self, name: str = "Firefox", **cookies: str) -> Browser:
        return Browser(self, name, cookies)

    # -- inspecting it -------------------------------------------------------------------------

    @contextmanager
    def context(self) -> t.Iterator[None]:
        with self.app.app_context():
            yield

    def rows(self, **by: t.Any) -> list[t.Any]:
        """Return all user sessions, oldest first."""
        with self.context():
            records = self.registry.records
            if isinstance(records, RedisRecords):
                kept = _sessions(records)
                return sorted(
                    (one for one in kept if _has(one, by)), key=lambda one: one.created_at
                )
            model = self.sessions.UserSession
            found = self.db.session.scalars(
                sa.select(model).filter_by(**by).order_by(model.created_at)
            ).all()
            self.db.session.expunge_all()
            return list(found)

    def change(
        self, by: dict[str, t.Any] | None = None, *, ended: bool = False, **values: t.Any
    ) -> None:
        """Change columns of user sessions behind the registry's back.

        :param ended: change only rows that have ended, and all tombstones.
        """
        left_at = values.get("revoked_at" if ended else "rotated_at")
        with self.context():
            records = self.registry.records
            if isinstance(records, RedisRecords):
                if left_at is not None:
                    for tombstone in _tombstones(records):
                        _bury(records, dataclasses.replace(tombstone, left_at=left_at))
                for one in _sessions(records):
                    if not _has(one, by or {}) or (ended and one.revoked_at is None):
                        continue
                    changed = dataclasses.replace(one, **values)
                    if changed.revoked_at is None:
                        due_at = records._due_at(changed)
                    elif changed.purged_at is None:
                        due_at = changed.revoked_at
                    else:
                        due_at = changed.revoked_at + records._retention
                    records.redis.update([one.id], values | {"due_at": due_at}, where={})
                return
            model = self.sessions.UserSession
            if left_at is not None:
                self.db.session.execute(sa.update(self.tombstone).values(created_at=left_at))
            statement = sa.update(model).filter_by(**(by or {})).values(**values)
            if ended:
                statement = statement.where(model.revoked_at.is_not(None))
            self.db.session.execute(statement)
            self.db.session.commit()

    def stale_keys(self) -> list[str]:
        """Return the store keys that are kept although their sessions have left them behind."""
        with self.context():
            records = self.registry.records
            if isinstance(records, RedisRecords):
                return [tombstone.store_id for tombstone in _tombstones(records)]
            statement = sa.select(self.tombstone.store_id)
            return [key for key in self.db.session.scalars(statement) if key is not None]

    @property
    def tombstone(self) -> t.Any:
        """The mapped class of what is kept beside the user sessions."""
        return self.sessions.UserSession.__tombstones__

    def add_rows(self, rows: list[dict[str, t.Any]]) -> None:
        """Add user sessions, as the same number of logins would."""
        with self.context():
            records = self.registry.records
            if isinstance(records, RedisRecords):
                for row in rows:
                    one = RedisUserSession(
                        **(row | {"id": records.assign_id(row["id"], row["user_id"])})
                    )
                    one.due_at = records._due_at(one)
                    records.redis.add(one)
                return
            self.db.session.execute(sa.insert(self.sessions.UserSession), rows)
            self.db.session.commit()

    def forget_all(self) -> None:
        """Delete all user sessions."""
        with self.context():
            records = self.registry.records
            if isinstance(records, RedisRecords):
                ids = [one.id for one in _sessions(records)]
                ended = {"revoked_at": days_ago(0), "due_at": days_ago(0)}
                records.redis.update(ids, ended, where={})
                records.redis.remove(ids)
                ids = [tombstone.id for tombstone in _tombstones(records)]
                records.redis.remove_tombstones(ids, left_by=days_ago(-1))
                return
            self.db.session.execute(sa.delete(self.sessions.UserSession))
            self.db.session.execute(sa.delete(self.tombstone))
            self.db.session.commit()

    @property
    def registry(self) -> t.Any:
        return self.app.extensions["session_registry.app"]

    def active(self, name: str = "ann") -> int:
        with self.context():
            return len(self.sessions.active(self.user(name)))

    @property
    def cache(self) -> t.Any:
        """Return cachelib's cache."""
        return t.cast(t.Any, self.backend).cache

    @property
    def redis(self) -> t.Any:
        """Return the Redis client."""
        return t.cast(t.Any, self.backend).client

    @redis.setter
    def redis(self, client: t.Any) -> None:
        t.cast(t.Any, self.backend).client = client

    def entries(self) -> dict[str, str]:
        """Return all entries of the session store as text, by key."""
        return self.backend.entries()

    def signed_in_entries(self) -> list[str]:
        return [key for key, data in self.entries().items() if "_user_session" in data]

    def count_statements(self) -> Statements:
        return Statements(self)

    def close(self) -> None:
        with self.context():
            for engine in self.db.engines.values():
                engine.dispose()
        if self.records == "redis" and "session_registry.app" in self.app.extensions:
            client = self.registry.redis.client
            for key in client.scan_iter(f"records:{self.prefix}*", count=10_000):
                client.delete(key)
            if self.app.config.get("SESSION_TYPE") != "redis":
                client.close()
        self.backend.close()


class Statements:
    """The SQL statements executed in a ``with`` block."""

    def __init__(self, site: Site) -> None:
        with site.context():
            self.engines = list(site.db.engines.values())
        self.texts: list[str] = []

    def _note(self, _: t.Any, __: t.Any, statement: str, *___: t.Any) -> None:
        self.texts.append(statement)

    def __enter__(self) -> Statements:
        for engine in self.engines:
            sa.event.listen(engine, "before_cursor_execute", self._note)
        return self

    def __exit__(self, *_: t.Any) -> None:
        for engine in self.engines:
            sa.event.remove(engine, "before_cursor_execute", self._note)

    def __len__(self) -> int:
        return len(self.texts)


class Browser:
    """One browser with its own cookies."""

    def __init__(self, site: Site, name: str, cookies: dict[str, str]) -> None:
        self.site = site
        self.name = name
        self.client = site.app.test_client()
        self.carry(cookies)

    def get(self, path: str, **arguments: t.Any) -> t.Any:
        return self.open("GET", path, **arguments)

    def post(self, path: str, **form: t.Any) -> t.Any:
        return self.open("POST", path, data=form)

    def open(self, method: str, path: str, **arguments: t.Any) -> t.Any:
        headers = {"User-Agent": self.name} | arguments.pop("headers", {})
        return self.client.open(path, method=method, headers=headers, **arguments)

    def login(self, name: str = "ann", password: str | None = None, **form: t.Any) -> Response:
        with self.site.context():
            user = self.site.user(name)
            stored = user.password_hash if user else "nobody"
        return t.cast(Response, self.post("/login", name=name, password=password or stored, **form))

    @property
    def name_shown(self) -> str | None:
        """The name of the user this browser is signed in as, according to the site."""
        response = self.get("/me")
        assert response.status_code == 200, response.text
        return t.cast("str | None", response.json["name"])

    @property
    def is_signed_in(self) -> bool:
        return self.name_shown is not None

    @property
    def rejected(self) -> str | None:
        return t.cast("str | None", self.get("/me").json["rejected"])

    @property
    def cookies(self) -> dict[str, str]:
        """The contents of the cookie jar."""
        found = ((name, self.client.get_cookie(name)) for name in COOKIES)
        return {name: cookie.value for name, cookie in found if cookie is not None}

    def carry(self, cookies: dict[str, str]) -> None:
        for name, value in cookies.items():
            self.client.set_cookie(name, value)

    def lose(self, *names: str) -> None:
        for name in names:
            self.client.delete_cookie(name)

    def copy(self, *names: str) -> Browser:
        """Return another browser with copies of the cookies."""
        cookies = self.cookies
        return Browser(self.site, "Copy", {n: cookies[n] for n in names or cookies})


def _sessions(records: RedisRecords) -> list[RedisUserSession]:
    return [*records.redis.get(_ids(records, "s")).values()]


def _tombstones(records: RedisRecords) -> list[Tombstone]:
    return [*records.redis.get_tombstones(_ids(records, "t")).values()]


def _ids(records: RedisRecords, kind: str) -> list[uuid.UUID]:
    """Return the ids of all sessions, or tombstones. This is faster than to ask all shards."""
    keys = records.redis.client.scan_iter(f"{records.redis._prefix}*:{kind}:*", count=10_000)
    return [uuid.UUID(hex=as_text(key)[-32:]) for key in keys]


def _bury(records: RedisRecords, tombstone: Tombstone) -> None:
    """Overwrite a tombstone, and look at it again when it was left."""
    text = json.dumps(encode(dataclasses.asdict(tombstone)))
    records.redis.client.set(records.redis._key(tombstone.id, "t"), text, keepttl=True)
    records.redis.postpone_tombstones([tombstone.id], tombstone.left_at)


def _has(session: t.Any, values: dict[str, t.Any]) -> bool:
    return all(getattr(session, name) == value for name, value in values.items())


def days_ago(days: float) -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=days)


def is_signed_cookie(site: Site) -> bool:
    return isinstance(site.app.session_interface, SecureCookieSessionInterface)
