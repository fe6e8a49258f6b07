"""No secret is shown, logged, raised or sent (SCENARIOS 22, 53, 54, 79)."""

from __future__ import annotations

import builtins
import functools
import gc
import logging
import re
import sys
import traceback
import types
import typing as t
import uuid

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from flask import Flask
from flask_login import LoginManager
from flask_sqlalchemy import SQLAlchemy
from site_under_test import Site, user_class
from test_faults import Broken
from test_users import uuid_keys

import flask_session_registry
from flask_session_registry import (
    ConfigurationError,
    PurgeError,
    RecordsError,
    SessionRegistry,
    UserSessionMixin,
    purge_failed,
    session_registered,
    session_revoked,
)
from flask_session_registry._config import PREFIX, SETTINGS
from flask_session_registry._request import signing

SECRET = "hunter2"

#: Text that a client might produce, with a key, a value, or a URL with a password.
TEXT = f"redis://:{SECRET}@host refused 'session:{SECRET}'"


# -- objects ---------------------------------------------------------------------------------------


def _shown_by_our_objects() -> str:
    """Return the ``repr()`` of all the package's live objects and scheduled calls."""
    ours = flask_session_registry.__name__
    shown = []
    for one in gc.get_objects():
        # A bound method or a 'partial' shows its object or its arguments.
        called = {types.MethodType: "__func__", functools.partial: "func"}.get(type(one))
        subject = getattr(one, called) if called else type(one)
        if str(getattr(subject, "__module__", "")).startswith(ours):
            shown.append(repr(one))
    return "\n".join(shown)


def test_objects_in_use_show_no_secret(site: Site) -> None:
    """79: nor does any object that exists before, during or after a commit that ends sessions."""
    firefox, chrome = site.browser(), site.browser()
    shown: list[str] = []

    def look(*_: t.Any, **__: t.Any) -> None:
        shown.append(_shown_by_our_objects())

    @site.app.post("/rotate")
    def rotate() -> str:
        site.sessions.rotate()
        look()
        return "rotated"

    for browser in (firefox, chrome):
        browser.login(remember="1")
    firefox.post("/rotate")
    cookies = [*firefox.cookies.values(), *chrome.cookies.values()]
    before = site.rows()
    with session_revoked.connected_to(look, site.app):
        sa.event.listen(site.db.session, "before_commit", look)
        firefox.post("/password", password="new")
        sa.event.remove(site.db.session, "before_commit", look)
    assert len(shown) >= 3
    secrets = {
        secret
        for row in (*before, *site.rows())
        for secret in (row.store_id, row.fingerprint)
        if secret is not None
    } | {*site.stale_keys()}
    assert len(secrets) >= 6
    assert any("Revocation" in text for text in shown)
    for secret in (*secrets, *cookies):
        assert not any(secret in text for text in shown)


def _show_all(one: t.Any) -> str:
    """Show all columns, as many apps' base models do."""
    return repr({name: getattr(one, name) for name, _ in sa.inspect(type(one)).columns.items()})


def test_mapped_user_session_shows_no_secret() -> None:
    """79: nor does an app's own class, even if the app's base model shows all columns."""
    db = SQLAlchemy()
    t.cast(t.Any, db.Model).__repr__ = _show_all
    app = Flask("shows all")
    app.config.update(SECRET_KEY="x", SQLALCHEMY_DATABASE_URI="sqlite://")
    db.init_app(app)
    LoginManager(app)
    users = user_class(db)
    sessions = SessionRegistry(app)
    own = type(
        "Device",
        (UserSessionMixin, db.Model),
        {
            "__tablename__": "devices",
            "user_id": sa_orm.mapped_column(sa.ForeignKey("account.id"), index=True),
        },
    )
    with app.app_context():
        assert SECRET in repr(users(id=1, name=SECRET))
        for model in (sessions.UserSession, own):
            secrets = dict.fromkeys(("store_id", "fingerprint"), SECRET)
            row = model(id=uuid.UUID(int=7), **secrets)
            assert repr(row) == f"<{model.__name__} {uuid.UUID(int=7)}>"
            assert SECRET not in f"{row!s} {[row]}"
            assert SECRET not in repr(model.__tombstones__(store_id=SECRET))


# -- settings --------------------------------------------------------------------------------------


class _Client:
    def __repr__(self) -> str:
        return f"Client({TEXT})"


@pytest.mark.parametrize("value", [TEXT, _Client()], ids=type)
@pytest.mark.parametrize("name", [setting.name for setting in SETTINGS])
def test_wrong_setting_is_not_repeated(name: str, value: t.Any) -> None:
    """54: a server's URL, put into any setting, doesn't appear in an error."""
    app = Flask("wrong")
    app.config.update(SECRET_KEY="x", SQLALCHEMY_DATABASE_URI="sqlite://")
    app.config[PREFIX + name] = value
    if name == "REDIS":
        app.config[f"{PREFIX}RECORDS"] = "redis"
    if name in ("PASSWORD_ATTRIBUTE", "REDIS_PREFIX", "BASE_TEMPLATE") and isinstance(value, str):
        return  # Any text is valid.
    with pytest.raises(ConfigurationError, match=name) as error:
        SessionRegistry(app)
    assert SECRET not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize(
    ("setting", "client"), [("redis://localhost", None), ("redis", "redis://localhost")]
)
def test_address_in_the_place_of_a_client(setting: str, client: str | None) -> None:
    """58: the error says what is expected."""
    app = Flask("wrong")
    app.config.update(SESSION_REGISTRY_RECORDS=setting, SESSION_REGISTRY_REDIS=client)
    with pytest.raises(ConfigurationError, match=r"'redis.Redis.from_url\(…\)'"):
        SessionRegistry(app)


@pytest.mark.parametrize("value", ["sqll", 5, None])
def test_plain_value_is_repeated(value: t.Any) -> None:
    """58: a typo is shown as it was written."""
    app = Flask("wrong")
    app.config["SESSION_REGISTRY_RECORDS"] = value
    with pytest.raises(ConfigurationError, match=re.escape(f"is {value!r}. It must be")):
        SessionRegistry(app)


# -- logs and errors -------------------------------------------------------------------------------


class _DriverError(Exception):
    sqlstate = "23505"


def _fails(cause: BaseException | None) -> BaseException:
    """Return an error of a library, raised during a second and caused by a third."""

    def fail() -> None:
        try:
            {}[TEXT]
        except KeyError:
            raise ConnectionError(111, TEXT) from cause

    with pytest.raises(ConnectionError) as failed:
        fail()
    return failed.value


@pytest.fixture
def log() -> logging.Logger:
    return logging.getLogger("flask_session_registry")


def test_log_has_no_text_of_other_errors(
    log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    """54: the log has the class, code and place of each error in the chain, but no text."""
    driver = _DriverError(TEXT)
    statement = sa.exc.IntegrityError("INSERT", {"store_id": SECRET}, driver)
    error = _fails(statement)
    log.error("Failed.", exc_info=error)
    for found in ("ConnectionError (111)", "KeyError", "sqlalchemy.exc.IntegrityError"):
        assert found in caplog.text
    assert "test_secrets.py" in caplog.text
    assert SECRET not in caplog.text
    # The error belongs to the app, which may log it as it likes.
    assert SECRET in str(error)
    assert SECRET in str(statement)
    assert error.__cause__ is statement


def test_log_has_the_codes_of_drivers(
    log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    """54: an operator can look up the code."""
    for error in (_DriverError(TEXT), Exception(1062, TEXT), OSError(28, TEXT)):
        log.error("Failed.", exc_info=error)
    assert re.findall(r"\(([0-9]+)\)", caplog.text) == ["23505", "1062", "28"]
    assert SECRET not in caplog.text


def test_log_has_the_more_exact_of_two_codes(
    log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    """MariaDB's number says more than an SQLSTATE shared by many errors."""
    error = Exception(1205, TEXT)
    vars(error)["sqlstate"] = "HY000"
    log.error("Failed.", exc_info=error)
    assert "Exception (1205)" in caplog.text


def test_log_has_the_texts_of_our_errors(
    log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    """Our errors say what to do."""
    log.error("Failed.", exc_info=RecordsError("Try again."))
    assert "RecordsError: Try again." in caplog.text


@pytest.mark.skipif(sys.version_info < (3, 11), reason="There are no groups before.")
def test_log_has_no_text_of_a_group(log: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    """54: the text of no member is logged, and an endless chain is cut."""
    group = vars(builtins)["ExceptionGroup"](TEXT, [ValueError(TEXT), _fails(None)])
    group.exceptions[0].__context__ = group
    log.error("Failed.", exc_info=group)
    assert "ValueError" in caplog.text
    assert "ConnectionError (111)" in caplog.text
    caplog.clear()
    last: BaseException = Exception()
    for _ in range(2000):
        last, before = Exception(), last
        last.__context__ = before
    log.error("Failed.", exc_info=last)
    assert SECRET not in caplog.text
    assert len(caplog.text) < 5000


class _OddError(Exception):
    @property
    def errno(self) -> int:
        raise ValueError(TEXT)


def test_log_of_an_odd_error(log: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    """An error that can't be inspected is logged by name, and doesn't break the request."""
    log.error("Failed.", exc_info=_OddError(TEXT))
    assert "_OddError" in caplog.text
    assert SECRET not in caplog.text


def test_log_without_an_error(log: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    """A line logged without a current error stays a single line."""
    log.error("Failed.", exc_info=(None, None, None))
    assert caplog.text.count("\n") <= 2


@pytest.mark.table
def test_error_of_the_records_shows_no_text_of_their_client(
    make_site: SiteFactory, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """54: logging the error shows only the class of the client's error."""

    def refuse(*_: t.Any, **__: t.Any) -> t.Any:
        raise ConnectionError(TEXT)

    site = make_site(records="redis")
    firefox = site.browser()
    firefox.login()
    monkeypatch.setattr(site.registry.redis.client.connection_pool, "get_connection", refuse)
    with site.context(), pytest.raises(RecordsError, match=r"\(ConnectionError\)") as error:
        site.sessions.revoke_all(site.user("ann"))
    assert SECRET not in "".join(traceback.format_exception(error.value))
    assert firefox.get("/me").status_code == 503
    assert "ConnectionError" in caplog.text
    assert SECRET not in caplog.text


def test_database_that_names_a_value(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """54: neither an outage nor a failing receiver puts its text into the log."""

    def receiver(app: t.Any, **_: t.Any) -> None:
        raise OSError(TEXT)

    firefox = site.browser()
    firefox.login()
    with Broken(site, "user_sessions"):
        assert firefox.get("/me").status_code == 503
    with session_revoked.connected_to(receiver, site.app), site.context():
        site.sessions.revoke_all(site.user("ann"))
        site.db.session.commit()
    assert "the database is down" not in caplog.text
    assert "A receiver of the signal 'session-revoked' failed." in caplog.text
    assert SECRET not in caplog.text


def test_failed_purge_reports_no_text(make_site: SiteFactory) -> None:
    """54: the signal has only the class of the error that the store's client raised."""
    site = make_site("memory")
    errors: list[BaseException] = []

    def receiver(app: t.Any, *, error: BaseException, **_: t.Any) -> None:
        errors.append(error)

    def fail(*_: t.Any, **__: t.Any) -> None:
        raise ConnectionError(TEXT)

    site.browser().login()
    site.cache.delete_many = fail
    with purge_failed.connected_to(receiver, site.app), site.context():
        site.sessions.revoke_all(site.user("ann"))
        site.db.session.commit()
    (error,) = errors
    assert isinstance(error, PurgeError)
    assert str(error) == "Store entries could not be deleted (ConnectionError)."
    assert (error.__cause__, error.__context__) == (None, None)


@pytest.mark.table
@pytest.mark.parametrize("adopts", [False, True])
def test_statement_in_the_app_s_transaction(make_site: SiteFactory, adopts: bool) -> None:
    """54: if our statement fails there, the app's error has no key, which might be a session id."""
    site = make_site(
        "redis",
        SESSION_REGISTRY_HASH_SESSION_IDS=False,
        SESSION_REGISTRY_UNREGISTERED="adopt" if adopts else "reject",
    )
    site.app.config["PROPAGATE_EXCEPTIONS"] = True
    firefox = site.browser()

    @site.app.post("/rotate")
    def rotate() -> str:
        site.sessions.rotate()
        return "rotated"

    firefox.login()
    firefox.post("/rotate")
    if adopts:
        key = f"{site.prefix}{firefox.cookies['session']}"
        site.redis.set(key, site.redis.get(key).replace(b"_user_session", b"_somebody_els"))
    table = "user_sessions" if adopts else "user_session_tombstones"
    with site.context():
        site.db.session.execute(
            sa.text(
                f"CREATE TRIGGER no_row BEFORE INSERT ON {table}"
                " BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        )
        site.db.session.commit()
    with pytest.raises(sa.exc.IntegrityError) as error:
        firefox.post("/password", password="new")
    assert f"INSERT INTO {table}" in str(error.value)
    assert site.prefix not in str(error.value)


# -- the command line ------------------------------------------------------------------------------

NASTY = "\x1b]0;title\x07a\r\nb\u202ec\x9b31m"


@pytest.mark.table
@pytest.mark.parametrize(
    "arguments",
    [
        ["revoke-sessions", NASTY],
        ["revoke-sessions", "--by", NASTY, "1"],
        ["revoke-sessions", "--by", "name", NASTY],
        ["revoke-sessions", "--all", "--ip", NASTY],
        ["revoke-sessions", "--all", "--idle-for", NASTY],
        ["revoke-sessions", "--all", "--reason", NASTY * 9],
        ["revoke-sessions", f"--{NASTY}"],
        ["revoke-sessions", "--all", "--format", NASTY],
        ["sessions", NASTY],
        ["sessions", f"--{NASTY}"],
        ["sessions", "list", NASTY],
        ["sessions", "list", "1", NASTY],
        ["sessions", "prune", "--limit", NASTY],
        ["sessions", "doctor", NASTY],
    ],
    ids=" ".join,
)
def test_command_line_errors_break_no_terminal(make_site: SiteFactory, arguments: t.Any) -> None:
    """53: input is repeated without its control characters."""
    result = make_site().app.test_cli_runner().invoke(args=arguments)
    assert result.exit_code in (1, 2)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", result.output)
    assert "Error:" in result.output


# -- the device ------------------------------------------------------------------------------------


def test_device_cookie_names_no_user(make_site: SiteFactory) -> None:
    """54: on a shared computer the cookie reveals no user, and it fits into a browser."""
    names = tuple(f"user {number}" for number in range(12))
    site = make_site(model=uuid_keys, users=names)
    firefox = site.browser()
    with session_registered.connected_to(lambda *_, **__: None, site.app):
        for name in names:
            firefox.login(name)
    cookie = firefox.client.get_cookie("session_device")
    assert cookie is not None
    assert len(cookie.value) < 1000
    kept = signing.unsign(site.app, cookie.value, purpose="devices")
    assert len(kept) == 10
    with site.context():
        ids = {str(site.user(name).id) for name in names}
    assert not ids & set(kept)


def test_digest_is_worth_nothing_elsewhere() -> None:
    """With another key or for another purpose, the same user has different digests."""
    app = Flask("digests")
    app.config.update(SECRET_KEY="one", SECRET_KEY_FALLBACKS=["two", b"three"])
    found = signing.digests(app, "7", purpose="devices")
    assert len(set(found)) == 3
    assert not set(found) & set(signing.digests(app, "7", purpose="other"))
    assert not set(found) & set(signing.digests(app, "8", purpose="devices"))
    app.config.update(SECRET_KEY="two", SECRET_KEY_FALLBACKS=None)
    assert signing.digests(app, "7", purpose="devices") == found[1:2]
    assert signing.unsign(app, f"Nw.{found[1]}", purpose="devices") is None
