"""An app on Flask-SQLAlchemy-Lite: one session per app context, and no base model."""

from __future__ import annotations

import subprocess
import sys
import typing as t
from collections.abc import Iterator
from pathlib import Path

import flask_sqlalchemy
import pytest
import servers
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask import Flask, request
from flask_login import LoginManager, UserMixin, current_user, login_user
from flask_session import Session
from flask_sqlalchemy_lite import SQLAlchemy

from flask_session_registry import ConfigurationError, SessionRegistry
from flask_session_registry._compat.databases import database_of
from flask_session_registry._user_model import find_user_model


class Base(sa_orm.DeclarativeBase):
    pass


class Account(UserMixin, Base):
    __tablename__ = "account"
    id: sa_orm.Mapped[int] = sa_orm.mapped_column(primary_key=True)
    name: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(50), unique=True)
    password_hash: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(100))


class Shop:
    """An app, its extensions and its users."""

    def __init__(self, url: str, **config: t.Any) -> None:
        self.app = app = Flask("shop")
        app.config.update(SECRET_KEY="only for tests", SQLALCHEMY_ENGINES={"default": url})
        app.config.update(config)
        self.db = db = SQLAlchemy(app)
        manager = LoginManager(app)
        if "SESSION_TYPE" in config:
            Session(app)
        self.sessions = sessions = SessionRegistry(app, user_model=Account)

        @manager.user_loader
        def load(id: str) -> t.Any:
            return db.session.get(Account, int(id))

        @app.post("/login")
        def login() -> str:
            login_user(db.session.scalar(sa.select(Account)), remember="remember" in request.form)
            return "signed in"

        @app.post("/password")
        def password() -> str:
            current_user.password_hash = request.form["password"]
            db.session.commit()
            return "changed"

        @app.get("/me")
        def me() -> dict[str, t.Any]:
            name = current_user.name if current_user.is_authenticated else None
            current = sessions.current
            return {"name": name, "id": current and str(current.id)}

        with app.app_context():
            Base.metadata.create_all(db.engine)
            db.session.add(Account(name="ann", password_hash="hash of ann"))
            db.session.commit()

    def name_shown_to(self, client: t.Any) -> str | None:
        return t.cast("str | None", client.get("/me").json["name"])

    def close(self) -> None:
        with self.app.app_context():
            Base.metadata.drop_all(self.db.engine)
            self.db.engine.dispose()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(f"sqlite:///{tmp_path}/shop.db")
    yield made
    made.close()


@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mariadb"])
@pytest.mark.parametrize("store", ["cookie", "redis"])
def test_password_change(tmp_path: Path, databases: t.Any, database: str, store: str) -> None:
    """The other browser is signed out. This one goes on, and so does its "remember me" cookie."""
    url = databases(database) or f"sqlite:///{tmp_path}/shop.db"
    config = {"SESSION_TYPE": "redis"} if store == "redis" else {}
    if config:
        import redis

        config["SESSION_REDIS"] = t.cast(t.Any, redis.Redis.from_url(servers.redis_url()))
    shop = Shop(url, **config)
    try:
        firefox, chrome = shop.app.test_client(), shop.app.test_client()
        for client in (firefox, chrome):
            client.post("/login", data={"remember": "1"})
        with shop.app.app_context():
            user = shop.db.session.scalar(sa.select(Account))
            assert len(shop.sessions.active(user)) == 2
        assert firefox.post("/password", data={"password": "new"}).text == "changed"
        assert shop.name_shown_to(firefox) == "ann"
        assert shop.name_shown_to(chrome) is None
        firefox.delete_cookie("session")
        assert shop.name_shown_to(firefox) == "ann"
        with shop.app.app_context():
            assert shop.sessions.revoke_all(shop.db.session.scalar(sa.select(Account))) == 1
            shop.db.session.commit()
        assert shop.name_shown_to(firefox) is None
    finally:
        shop.close()


def test_no_additional_statement(shop: Shop) -> None:
    """A request that asks for the user runs one statement, as without the registry."""
    client, seen = shop.app.test_client(), list[str]()

    @shop.app.get("/only")
    def only() -> str:
        return str(current_user.name)

    client.post("/login")
    client.get("/me")
    with shop.app.app_context():
        sa.event.listen(
            shop.db.engine, "before_cursor_execute", lambda *given: seen.append(given[2])
        )
    assert client.get("/only").text == "ann"
    assert len(seen) == 1, seen


def test_no_session_is_left_open(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work after the response opens no session that would never be closed."""
    opened = []
    real = SQLAlchemy.get_session
    monkeypatch.setattr(
        SQLAlchemy, "get_session", lambda *given: opened.append(real(*given)) or opened[-1]
    )
    client = shop.app.test_client()
    client.post("/login")
    with shop.app.app_context():
        shop.db.session.execute(
            sa.update(shop.sessions.UserSession).values(last_seen_at=sa.func.date("now", "-1 day"))
        )
        shop.db.session.commit()
    opened.clear()
    client.get("/me")
    assert len({id(session) for session in opened}) == 1
    assert not opened[0].in_transaction()
    with shop.app.app_context():
        row = shop.db.session.scalar(sa.select(shop.sessions.UserSession))
        assert row.last_seen_at > row.created_at


@pytest.mark.skipif(
    sa.__version__ >= "2.1", reason="'test_isolation()' commits on SQLAlchemy 2.1, registry or not"
)
def test_isolation_of_tests(shop: Shop) -> None:
    """Within its own 'test_isolation' everything works, and nothing remains."""
    client = shop.app.test_client()
    with shop.app.app_context():
        # As SQLAlchemy's documentation of the driver says, and that of the extension.
        sa.event.listen(
            shop.db.engine, "connect", lambda driver, _: setattr(driver, "isolation_level", None)
        )
        sa.event.listen(
            shop.db.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN")
        )
        shop.db.engine.dispose()
    with shop.db.test_isolation():
        client.post("/login")
        assert shop.name_shown_to(client) == "ann"
        client.post("/password", data={"password": "new"})
        assert shop.name_shown_to(client) == "ann"
    with shop.app.app_context():
        assert shop.db.session.scalar(sa.select(Account.password_hash)) == "hash of ann"


def test_commands(shop: Shop) -> None:
    """An operator's commands work as usual."""
    shop.app.test_client().post("/login")
    runner = shop.app.test_cli_runner()
    assert (
        "1 session ended" in runner.invoke(args=["revoke-sessions", "--by", "name", "ann"]).output
    )
    assert runner.invoke(args=["sessions", "prune"]).exit_code == 0
    found = runner.invoke(args=["sessions", "doctor"]).output
    assert "user_sessions" not in found, found


def test_two_apps_with_the_same_models(shop: Shop, tmp_path: Path) -> None:
    """The table is defined once, although each app has its own extensions."""
    other = Shop(f"sqlite:///{tmp_path}/other.db")
    with shop.app.app_context():
        here = shop.sessions.UserSession
    with other.app.app_context():
        assert other.sessions.UserSession is here
    other.close()


ALONE = """
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask import Flask
from flask_login import LoginManager, UserMixin
from flask_sqlalchemy_lite import SQLAlchemy
from flask_session_registry import SessionRegistry

db, sessions = SQLAlchemy(), SessionRegistry()
app = Flask(__name__)
app.config.update(SECRET_KEY="x", SQLALCHEMY_ENGINES={"default": "sqlite://"})
sessions.init_app(app)
db.init_app(app)
LoginManager(app)
%s
class Base(sa_orm.DeclarativeBase):
    pass

class Person(UserMixin, Base):
    __tablename__ = "person"
    id = sa_orm.mapped_column(sa.Integer, primary_key=True)
    password_hash = sa_orm.mapped_column(sa.String(100))

with app.app_context():
    assert sessions.UserSession.__table__ is Base.metadata.tables["user_sessions"]
    assert list(Base.metadata.tables["user_sessions"].c.user_id.foreign_keys)
print("found")
"""


@pytest.mark.parametrize("before", ["", "sessions._db = db"])
def test_user_model_is_found(before: str) -> None:
    """The only class that is a Flask-Login user is found, also if it is mapped after 'init_app'."""
    answer = subprocess.run(
        [sys.executable, "-c", ALONE % before], capture_output=True, text=True, check=False
    )
    assert (answer.stdout, answer.stderr) == ("found\n", "")


class _Quart:
    extensions: t.ClassVar[dict[str, t.Any]] = {}


_Quart.__module__ = "quart.app"


def test_what_is_not_supported(tmp_path: Path) -> None:
    """The error says what is supported, for a custom session and for Quart."""
    engine = sa.create_engine("sqlite://")
    scoped = sa_orm.scoped_session(sa_orm.sessionmaker(engine))
    app = Flask("shop")
    app.secret_key = "x"
    supported = r"Use Flask-SQLAlchemy \(3.1 or newer\) or Flask-SQLAlchemy-Lite"
    with pytest.raises(ConfigurationError, match=f"'db' is a 'scoped_session'.*{supported}"):
        SessionRegistry(app, scoped)
    app.extensions["sqlalchemy"] = scoped
    with pytest.raises(ConfigurationError, match=f"'app.extensions.*is a 'scoped.*{supported}"):
        SessionRegistry(app, user_model=Account)
    with pytest.raises(ConfigurationError, match=r"'quart._Quart'.*not a Flask app.*not Quart"):
        SessionRegistry(t.cast(Flask, _Quart()))
    engine.dispose()


def test_app_without_a_database_extension() -> None:
    """Before any extension is set up, no database is found."""
    assert database_of(Flask("empty"), None) is None


def test_user_models_that_are_found(shop: Shop) -> None:
    """Classes based on 'UserMixin' are found, except another extension's. The error names them."""
    found = database_of(shop.app, None)
    assert found is not None
    assert Account in set(found.mapped_classes())

    def make() -> type[t.Any]:
        class Twin(UserMixin, sa_orm.declarative_base()):  # type: ignore[misc]
            __tablename__ = "twin"
            id = sa_orm.mapped_column(sa.Integer, primary_key=True)

        return Twin

    class OnFlaskSQLAlchemy(UserMixin, flask_sqlalchemy.SQLAlchemy().Model):  # type: ignore[misc]
        id = sa_orm.mapped_column(sa.Integer, primary_key=True)

    twins = make(), make()
    assert set(twins) < set(found.mapped_classes())
    assert OnFlaskSQLAlchemy not in set(found.mapped_classes())
    with pytest.raises(ConfigurationError, match=r"Several mapped.*make\.<locals>\.Twin'"):
        find_user_model(found)
