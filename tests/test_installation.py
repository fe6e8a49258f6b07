"""Correct and incorrect setup (SCENARIOS 56 to 58)."""

from __future__ import annotations

import datetime as dt
import gc
import re
import subprocess
import sys
import typing as t
import weakref

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from cachelib import SimpleCache
from conftest import SiteFactory
from crowd import at_once
from flask import Flask, g, session
from flask_login import LoginManager, UserMixin, login_user
from flask_migrate import Migrate, check, downgrade, init, migrate, upgrade
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy
from site_under_test import Site, days_ago, user_class
from test_users import TEXTS

from flask_session_registry import (
    ConfigurationError,
    NotInstalledError,
    SessionRegistry,
    UserSessionMixin,
)
from flask_session_registry._config import SETTINGS, Settings


@pytest.fixture
def app() -> Flask:
    app = Flask("installed")
    app.config.update(SECRET_KEY="x", SQLALCHEMY_DATABASE_URI="sqlite://")
    return app


def first_request(app: Flask) -> str:
    """Return the text of the error that the first request raises."""
    app.config["PROPAGATE_EXCEPTIONS"] = True
    with pytest.raises(ConfigurationError) as error:
        app.test_client().get("/")
    return str(error.value)


# -- 56: migrations ------------------------------------------------------------------------------


def run_migration(site: Site, folder: str) -> None:
    Migrate(site.app, site.db, directory=folder)
    with site.context():
        site.db.session.remove()
        site.db.drop_all()
        init(folder)
        migrate(folder)
        upgrade(folder)


@pytest.mark.table
@pytest.mark.filterwarnings("ignore:'get_engine' is deprecated")
def test_migration(make_site: SiteFactory, database: str, tmp_path: t.Any) -> None:
    """56: 'flask db migrate' finds the table, 'upgrade' creates it, 'check' finds no changes."""
    site = make_site("cookie", database)
    folder = str(tmp_path / "migrations")
    run_migration(site, folder)
    script = next((tmp_path / "migrations" / "versions").glob("*.py")).read_text()
    assert "'user_sessions'" in script
    # MariaDB refuses to drop the foreign key's index. Dropping the table drops all indexes.
    assert "create_index" in script
    assert "drop_index" not in script
    assert "flask_session_registry" not in script
    with site.context():
        columns = {
            column["name"] for column in sa.inspect(site.db.engine).get_columns("user_sessions")
        }
        assert columns == {c.name for c in site.sessions.UserSession.__table__.columns}
        # As in another process. Raises if there are changes.
        Migrate(site.app, site.db, directory=folder)
        check(folder)
        site.db.session.add(site.User(name="ann", password_hash="x"))
        site.db.session.commit()
    firefox = site.browser()
    firefox.login()
    assert firefox.is_signed_in
    row = site.rows()[0]
    assert row.created_at.microsecond or row.last_seen_at.microsecond
    with site.context():
        site.db.session.remove()
        downgrade(folder)
        tables = sa.inspect(site.db.engine).get_table_names()
        assert not {"user_sessions", "user_session_tombstones"} & {*tables}
        site.db.session.execute(sa.text("DROP TABLE alembic_version"))
        site.db.session.commit()


@pytest.mark.table
@pytest.mark.filterwarnings("ignore:'get_engine' is deprecated")
@pytest.mark.parametrize("model", TEXTS[:3])
def test_migration_with_text_keys(make_site: SiteFactory, tmp_path: t.Any, model: t.Any) -> None:
    """56: migrations work if the users' table has its own charset or collation on MariaDB."""
    site = make_site("cookie", "mariadb", model=model)
    folder = str(tmp_path / "migrations")
    run_migration(site, folder)
    with site.context():
        Migrate(site.app, site.db, directory=folder)
        check(folder)
        site.db.session.add(site.User(name="ann", password_hash="x"))
        site.db.session.commit()
    firefox = site.browser()
    firefox.login()
    assert firefox.is_signed_in
    with site.context():
        site.db.session.execute(sa.text("DROP TABLE alembic_version"))
        site.db.session.commit()


@pytest.mark.table
@pytest.mark.filterwarnings("ignore:'get_engine' is deprecated")
def test_migration_of_a_custom_model(make_site: SiteFactory, tmp_path: t.Any) -> None:
    """56: a downgrade drops a custom model's table as a whole.

    The app's changes to its own tables are undone one by one.
    """
    site = make_site("cookie", "mariadb", init=False)
    site.User.__table__.append_constraint(sa.Index("ix_of_the_app", site.User.note))
    device = type(
        "Device",
        (UserSessionMixin, site.db.Model),
        {
            "__tablename__": "devices",
            "user_id": sa_orm.mapped_column(sa.ForeignKey("account.id"), index=True),
        },
    )
    SessionRegistry(site.app, session_model=device)
    folder = str(tmp_path / "migrations")
    run_migration(site, folder)
    script = next((tmp_path / "migrations" / "versions").glob("*.py")).read_text()
    assert "'ix_devices_user_id'" in script
    assert re.findall(r"drop_index\((?:batch_op.f\()?'(\w+)'", script) == ["ix_of_the_app"]
    with site.context():
        Migrate(site.app, site.db, directory=folder)
        check(folder)
        downgrade(folder)
        tables = sa.inspect(site.db.engine).get_table_names()
        assert not {"devices", "device_tombstones"} & {*tables}
        site.db.session.execute(sa.text("DROP TABLE alembic_version"))
        site.db.session.commit()


@pytest.mark.table
def test_indexes_leave_out_what_a_revocation_writes(site: Site) -> None:
    """56: no index contains a column that a revocation or touch writes."""
    with site.context():
        indexes = site.sessions.UserSession.__table__.indexes
        indexed = sorted(column.name for index in indexes for column in index.columns)
        assert indexed == ["store_id", "user_id"]


# -- 57: several apps, any order -----------------------------------------------------------------


def test_two_apps_in_one_process(make_site: SiteFactory) -> None:
    """57: two apps have separate users and sessions, and don't receive each other's signals."""
    one, other = make_site(), make_site()
    firefox, chrome = one.browser(), other.browser()
    firefox.login("ann")
    chrome.login("ann")
    with one.context():
        one.sessions.revoke_all(one.user("ann"))
        one.db.session.commit()
    assert not firefox.is_signed_in
    assert chrome.is_signed_in


def test_two_apps_on_one_db(tmp_path: t.Any) -> None:
    """57: two apps can share one 'db' and one registry: one table in two databases."""
    db, sessions, login_manager = SQLAlchemy(), SessionRegistry(), LoginManager()
    model = user_class(db)

    def create_app(name: str) -> Flask:
        app = Flask(name)
        app.config.update(SECRET_KEY="x", SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/{name}")
        db.init_app(app)
        login_manager.init_app(app)
        sessions.init_app(app)
        with app.app_context():
            db.create_all()
            db.session.add(model(name="ann", password_hash="x"))
            db.session.commit()
        return app

    apps = create_app("one"), create_app("two")
    for app in apps:
        with app.app_context():
            assert sessions.active(db.session.scalar(sa.select(model))) == []
            assert app.extensions["session_registry"] is sessions


def test_app_is_collected(tmp_path: t.Any) -> None:
    """57: an app without references is garbage-collected with its registry state."""
    db, sessions = SQLAlchemy(), SessionRegistry()
    model = user_class(db)
    app = Flask("short-lived")
    app.config.update(SECRET_KEY="x", SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/x.db")
    db.init_app(app)
    LoginManager(app)
    sessions.init_app(app)
    assert app.test_client().get("/").status_code == 404
    with app.app_context():
        db.engine.dispose()
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None
    assert model.__name__ == "User"


def test_registry_without_a_reference(make_site: SiteFactory) -> None:
    """57: 'SessionRegistry(app)' needs no reference: its receivers live as long as the app."""
    site = make_site(init=False)
    SessionRegistry(site.app)
    gc.collect()
    site.sessions = site.app.extensions["session_registry"]
    with site.context():
        site.db.create_all()
        site.db.session.add(site.User(name="ann", password_hash="x"))
        site.db.session.commit()
    firefox = site.browser()
    firefox.login()
    assert firefox.is_signed_in
    assert len(site.rows()) == 1


def test_before_the_other_extensions(app: Flask) -> None:
    """57: Flask-SQLAlchemy, Flask-Login and the user model can all be set up later."""
    sessions = SessionRegistry(app)
    db = SQLAlchemy(app)
    model = user_class(db)
    LoginManager(app).user_loader(lambda key: db.session.get(model, int(key)))
    with app.app_context():
        assert "user_sessions" in db.metadata.tables
        assert sessions.UserSession.__tablename__ == "user_sessions"
    assert app.test_client().get("/").status_code == 404


# -- 58: incorrect setup -------------------------------------------------------------------------


WRONG = {
    "SESSION_REGISTRY_PASSWORD_ATTRIBUTE": [5, (), ("a", 5), "", [""], b"x"],
    "SESSION_REGISTRY_REVOKE_ON_PASSWORD_CHANGE": ["yes", 1, None],
    "SESSION_REGISTRY_HASH_SESSION_IDS": ["no", 0, None],
    "SESSION_REGISTRY_TOUCH_INTERVAL": [0, -1, "5 min", True, float("inf"), float("nan"), 1e300],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_wrong_setting(app: Flask, name: str, value: t.Any) -> None:
    """58: a wrong setting raises an error at start-up that names it and the allowed values."""
    app.config[name] = value
    with pytest.raises(ConfigurationError, match=rf"'{name}' is .* It must be"):
        SessionRegistry(app)


def test_unknown_setting(app: Flask) -> None:
    """58: a misspelled setting raises an error, so that it can't disable a promise."""
    app.config["SESSION_REGISTRY_HASH_SESSION_ID"] = True
    with pytest.raises(ConfigurationError, match="mean 'SESSION_REGISTRY_HASH_SESSION_IDS'"):
        SessionRegistry(app)
    del app.config["SESSION_REGISTRY_HASH_SESSION_ID"]
    app.config["SESSION_REGISTRY_XYZZY"] = True
    with pytest.raises(ConfigurationError, match="Known settings: SESSION_REGISTRY_PASSWORD_ATTR"):
        SessionRegistry(app)


@pytest.mark.parametrize("value", [None, 60, 0.5])
def test_touch_interval(make_site: SiteFactory, value: t.Any) -> None:
    """58: TOUCH_INTERVAL accepts seconds, a timedelta or None."""
    site = make_site(SESSION_REGISTRY_TOUCH_INTERVAL=value)
    firefox = site.browser()
    firefox.login()
    yesterday = days_ago(1)
    with site.context():
        site.change(last_seen_at=yesterday)
    firefox.get("/me")
    assert (site.rows()[0].last_seen_at == yesterday) is (value is None)


def test_no_password_attribute_found(app: Flask) -> None:
    """58: a user model without a recognizable password column raises an error."""
    db = SQLAlchemy(app)
    model = type(
        "User",
        (UserMixin, db.Model),
        {"__tablename__": "u", "id": sa_orm.mapped_column(sa.Integer, primary_key=True)},
    )
    with pytest.raises(ConfigurationError, match="maps no column 'password_hash', 'password'"):
        SessionRegistry(app)
    app.config["SESSION_REGISTRY_PASSWORD_ATTRIBUTE"] = "secret"
    with pytest.raises(ConfigurationError, match="maps no column 'secret'"):
        SessionRegistry(app, user_model=model)


def _text() -> t.Any:
    return sa_orm.mapped_column(sa.String(50), nullable=True)


def _user_with(db: SQLAlchemy, *bases: type[t.Any], **attributes: t.Any) -> type[t.Any]:
    key = {"id": sa_orm.mapped_column(sa.Integer, primary_key=True)}
    return type("User", (UserMixin, *bases, db.Model), {"__tablename__": "u", **key, **attributes})


def _two_columns(db: SQLAlchemy) -> list[type[t.Any]]:
    return [_user_with(db, password_hash=_text(), password=_text())]


def _two_columns_by_attribute(db: SQLAlchemy) -> list[type[t.Any]]:
    named = sa_orm.mapped_column("pw", sa.String(50))
    return [_user_with(db, hashed_password=_text(), password=named)]


def _mixed_in(db: SQLAlchemy) -> list[type[t.Any]]:
    return [_user_with(db, type("Legacy", (), {"password_hash": _text()}), password=_text())]


def _in_the_parent(db: SQLAlchemy) -> list[type[t.Any]]:
    person = type(
        "Person",
        (db.Model,),
        {
            "__tablename__": "person",
            "id": sa_orm.mapped_column(sa.Integer, primary_key=True),
            "password_hash": _text(),
        },
    )
    key = sa_orm.mapped_column(sa.ForeignKey("person.id"), primary_key=True)
    user = type("User", (UserMixin, person), {"__tablename__": "u", "id": key, "password": _text()})
    return [person, user]


def _in_a_subclass(db: SQLAlchemy) -> list[type[t.Any]]:
    user = _user_with(db, password=_text())
    return [user, type("Admin", (user,), {"password_hash": _text()})]


@pytest.mark.parametrize(
    "make", [_two_columns, _two_columns_by_attribute, _mixed_in, _in_the_parent, _in_a_subclass]
)
def test_two_columns_may_hold_the_password(
    app: Flask, make: t.Callable[[SQLAlchemy], list[type[t.Any]]]
) -> None:
    """58: with two candidate columns, the app must name one.

    Otherwise the wrong one might be watched, silently.
    """
    classes = make(SQLAlchemy(app))
    with pytest.raises(
        ConfigurationError, match="Set 'SESSION_REGISTRY_PASSWORD_ATTRIBUTE' to the right one"
    ) as error:
        SessionRegistry(app)
    assert str(error.value).count("password") >= 2
    app.config["SESSION_REGISTRY_PASSWORD_ATTRIBUTE"] = "password"
    SessionRegistry(app)
    credentials = app.extensions["session_registry.app"].credentials
    assert credentials.names == ("password",)
    assert credentials.user_model in classes


def test_second_column_mapped_later(app: Flask) -> None:
    """58: a second column mapped after the setup is found by the first request."""
    model = user_class(SQLAlchemy(app))
    LoginManager(app)
    SessionRegistry(app)
    model.password = _text()
    assert "'password_hash' and 'password'" in first_request(app)


@pytest.mark.parametrize(
    "other",
    [
        lambda: sa_orm.synonym("hashed_password"),
        lambda: property(lambda self: self.hashed_password),
        lambda: sa_orm.column_property(sa.literal("x")),
    ],
    ids=["synonym", "property", "expression"],
)
def test_one_column_under_two_names(app: Flask, other: t.Callable[[], t.Any]) -> None:
    """58: a synonym, property or expression doesn't count as a second password."""
    model = _user_with(SQLAlchemy(app), hashed_password=_text(), password=other())
    SessionRegistry(app)
    credentials = app.extensions["session_registry.app"].credentials
    assert credentials.names == ("hashed_password",)
    assert credentials.user_model is model


def test_expression_holds_no_password(app: Flask) -> None:
    """58: a column expression can't be the password attribute: it can't be watched."""
    expression = sa_orm.column_property(sa.literal("x"))
    model = _user_with(SQLAlchemy(app), password_hash=_text(), password=expression)
    app.config["SESSION_REGISTRY_PASSWORD_ATTRIBUTE"] = "password"
    with pytest.raises(ConfigurationError, match="maps no column 'password'"):
        SessionRegistry(app, user_model=model)


def test_no_user_model(app: Flask) -> None:
    """58: without a user model, the first request raises an error."""
    SQLAlchemy(app)
    LoginManager(app)
    SessionRegistry(app)
    assert "No mapped class is a Flask-Login user" in first_request(app)


def test_several_user_models(app: Flask) -> None:
    """58: several user models raise an error: at start-up, at the first request, or on use."""
    db = SQLAlchemy(app)
    LoginManager(app)

    def make(name: str) -> type[t.Any]:
        return type(
            name,
            (UserMixin, db.Model),
            {
                "__tablename__": name,
                "id": sa_orm.mapped_column(sa.Integer, primary_key=True),
                "password": sa_orm.mapped_column(sa.String(50)),
            },
        )

    one = make("User")
    SessionRegistry(app)
    other = make("Customer")
    assert "'Customer', 'User'" in first_request(app)
    later = Flask("later")
    later.config.update(app.config)
    db.init_app(later)
    with pytest.raises(ConfigurationError, match="Name the class that signs in"):
        SessionRegistry(later)
    SessionRegistry(later, user_model=one)
    another = Flask("another")
    another.config.update(app.config)
    db.init_app(another)
    with pytest.raises(ConfigurationError, match="belongs to the user model 'User'"):
        SessionRegistry(another, user_model=other)


@pytest.mark.parametrize("user_model", [int, "User", object()])
def test_invalid_user_model(app: Flask, user_model: t.Any) -> None:
    """58: a user model that isn't a Flask-Login user class raises an error."""
    SQLAlchemy(app)
    with pytest.raises(ConfigurationError, match="not a class of Flask-Login users"):
        SessionRegistry(app, user_model=user_model)


def test_unmapped_user_model(app: Flask) -> None:
    """58: a user model that is still unmapped at the first request raises an error there."""
    SQLAlchemy(app)
    LoginManager(app)
    SessionRegistry(app, user_model=type("User", (UserMixin,), {}))
    assert "No mapped class is a Flask-Login user" in first_request(app)


@pytest.mark.parametrize("kind", ["query", "join"])
def test_user_model_without_a_table(app: Flask, kind: str) -> None:
    """58: the error says what to do."""
    db = SQLAlchemy(app)
    accounts = sa.Table(
        "accounts",
        db.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("password_hash", sa.String(255)),
    )
    details = sa.Table(
        "details",
        db.metadata,
        sa.Column("account_id", sa.ForeignKey(accounts.c.id), primary_key=True),
    )
    mapped: t.Any = sa.select(accounts).subquery("live")
    if kind == "join":
        mapped = accounts.join(details)

    class User(UserMixin, db.Model):  # type: ignore[name-defined]
        __table__ = mapped
        if kind == "join":
            id = sa_orm.column_property(accounts.c.id, details.c.account_id)

    with pytest.raises(ConfigurationError, match="mapped to a query or a join"):
        SessionRegistry(app)


def test_key_of_two_columns(app: Flask) -> None:
    """58: a composite primary key raises an error."""
    db = SQLAlchemy(app)
    model = type(
        "User",
        (UserMixin, db.Model),
        {
            "__tablename__": "u",
            "a": sa_orm.mapped_column(sa.Integer, primary_key=True),
            "b": sa_orm.mapped_column(sa.Integer, primary_key=True),
            "password": sa_orm.mapped_column(sa.String(50)),
        },
    )
    with pytest.raises(ConfigurationError, match="has 2 columns"):
        SessionRegistry(app, user_model=model)


def test_table_exists_already(app: Flask) -> None:
    """58: an app that already has a 'user_sessions' table gets an error."""
    db = SQLAlchemy(app)
    user = user_class(db)
    mine = type(
        "Mine",
        (db.Model,),
        {
            "__tablename__": "user_sessions",
            "id": sa_orm.mapped_column(sa.Integer, primary_key=True),
        },
    )
    with pytest.raises(ConfigurationError, match="There is a table 'user_sessions' already"):
        SessionRegistry(app)
    assert user is not mine


def test_no_flask_sqlalchemy(app: Flask) -> None:
    """58: without Flask-SQLAlchemy, the first request raises an error."""
    LoginManager(app)
    SessionRegistry(app)
    assert "Flask-SQLAlchemy is not set up on this app" in first_request(app)


def test_setup_is_verified_first(app: Flask) -> None:
    """58: the setup is verified before any code of the app runs, even URL preprocessors."""

    @app.url_value_preprocessor
    def ask(*_: object) -> None:
        raise AssertionError("The app's own code ran first.")

    user_class(SQLAlchemy(app))
    SessionRegistry(app)
    assert "Flask-Login is not set up on this app" in first_request(app)


def test_no_flask_login(app: Flask) -> None:
    """58: without Flask-Login, the first request raises an error."""
    db = SQLAlchemy(app)
    model = user_class(db)
    SessionRegistry(app)
    assert "Flask-Login is not set up on this app" in first_request(app)
    assert model.__name__ == "User"


def test_set_up_twice(app: Flask) -> None:
    """58: a second registry on an app raises an error."""
    SessionRegistry(app)
    with pytest.raises(ConfigurationError, match="set up on this app already"):
        SessionRegistry(app)


def test_not_set_up(app: Flask) -> None:
    """58: a verb on an app without the registry raises an error."""
    with app.app_context(), pytest.raises(NotInstalledError, match="Call 'init_app\\(app\\)'"):
        _ = SessionRegistry().current


def test_flask_session_after_it(app: Flask) -> None:
    """58: Flask-Session set up too late raises an error, at start-up or at the first request."""
    app.config.update(SESSION_TYPE="cachelib", SESSION_CACHELIB=SimpleCache())
    with pytest.raises(ConfigurationError, match="Move 'Session\\(app\\)' before"):
        SessionRegistry(app)
    del app.config["SESSION_TYPE"]
    db = SQLAlchemy(app)
    model = user_class(db)
    LoginManager(app)
    SessionRegistry(app)
    app.config["SESSION_TYPE"] = "cachelib"
    Session(app)
    assert "Move 'Session(app)' before its 'init_app'" in first_request(app)
    with app.test_request_context():
        with pytest.raises(ConfigurationError, match="Move 'Session\\(app\\)' before"):
            login_user(model(id=1, name="ann"))
        assert "_user_id" not in session
        assert "_login_user" not in g


def test_import_needs_no_store_clients(tmp_path: t.Any) -> None:
    """The core doesn't import any store's client library."""
    code = (
        "import sys, flask_session_registry;"
        "print(sorted({'redis', 'pymemcache', 'pymongo', 'boto3', 'psycopg'} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert answer.stdout.strip() == "[]"


def test_first_requests_at_once() -> None:
    """57: a table defined late is defined once, even with concurrent first requests."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(10):
            db = SQLAlchemy()
            users = user_class(db)
            app = Flask("late")
            app.config.update(SECRET_KEY="x", SQLALCHEMY_DATABASE_URI="sqlite://")
            SessionRegistry(app, user_model=users)
            LoginManager(app)
            db.init_app(app)
            app.add_url_rule("/", "index", lambda: "hello")
            visits = [lambda: app.test_client().get("/").status_code] * 8  # noqa: B023
            assert at_once(visits) == [200] * 8
    finally:
        sys.setswitchinterval(before)


def test_settings_are_declared_on_their_class() -> None:
    """Each setting says its name, its default and its help where it is declared."""
    declared = Settings.touch_interval
    assert (declared.name, declared.default) == ("TOUCH_INTERVAL", dt.timedelta(minutes=5))
    assert declared in SETTINGS
