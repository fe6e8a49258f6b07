"""Facts about other libraries that the registry is built around.

If one of these fails, a library has changed: the code that its docstring names can be simplified,
or must be reviewed.
"""

from __future__ import annotations

import typing as t

import flask_session.base
import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from cachelib import SimpleCache
from flask import Flask, g, session
from flask_login import (
    LoginManager,
    UserMixin,
    current_user,
    decode_cookie,
    encode_cookie,
    login_user,
    user_accessed,
    user_logged_in,
)
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy


class User(UserMixin):
    id = "1"


@pytest.fixture
def app() -> Flask:
    """Return an app without the registry."""
    app = Flask("plain")
    app.config.update(SECRET_KEY="x", SESSION_TYPE="cachelib", SESSION_CACHELIB=SimpleCache())
    LoginManager(app).user_loader(lambda _: User())
    Session(app)

    @app.post("/login")
    def login() -> str:
        login_user(User(), remember=True)
        return "ok"

    @app.get("/me")
    def me() -> str:
        return str(current_user.is_authenticated)

    return app


def entries(app: Flask) -> dict[str, t.Any]:
    return dict(app.config["SESSION_CACHELIB"]._cache)


def test_reading_request_writes_a_deleted_entry_back(app: Flask) -> None:
    """1: so the row decides, never the entry (session check)."""

    @app.get("/read")
    def read() -> str:
        assert current_user.is_authenticated
        app.config["SESSION_CACHELIB"].clear()
        return "ok"

    client = app.test_client()
    client.post("/login")
    client.get("/read")
    assert len(entries(app)) == 1
    assert client.get("/me").text == "True"


def test_id_survives_a_login(app: Flask) -> None:
    """3: so a login changes the id (auth events)."""

    @app.post("/cart")
    def cart() -> str:
        session["cart"] = 1
        return "ok"

    client = app.test_client()
    client.post("/cart")
    before = client.get_cookie("session")
    client.post("/login")
    assert before is not None
    assert client.get_cookie("session").value == before.value  # type: ignore[union-attr]


def test_regenerate_deletes_at_once(app: Flask) -> None:
    """4: so 'store_keys.change' isn't 'regenerate'."""

    @app.post("/regenerate")
    def regenerate() -> str:
        before = len(entries(app))
        app.session_interface.regenerate(session)  # type: ignore[attr-defined]
        return f"{before} {len(entries(app))}"

    client = app.test_client()
    client.post("/login")
    assert client.post("/regenerate").text == "1 0"


def test_sql_store_commits_the_app_s_transaction(tmp_path: t.Any) -> None:
    """5: even of a view that raised. So the end of the request rolls back what is uncommitted."""
    app = Flask("plain")
    app.config.update(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/x.db", SECRET_KEY="x")
    db = SQLAlchemy(app)
    app.config.update(SESSION_TYPE="sqlalchemy", SESSION_SQLALCHEMY=db)
    Session(app)
    thing = type(
        "Thing",
        (db.Model,),
        {"__tablename__": "thing", "id": sa_orm.mapped_column(sa.Integer, primary_key=True)},
    )

    @app.post("/raise")
    def raise_() -> str:
        session["x"] = 1
        db.session.add(thing(id=1))
        db.session.flush()
        raise RuntimeError

    with app.app_context():
        db.create_all()
    app.test_client().post("/raise")
    with app.app_context():
        assert db.session.get(thing, 1) is not None


def test_store_ids_are_made_in_one_method() -> None:
    """46: so replacing it on the instance hashes the keys of every store ('store_keys')."""
    source = t.cast(t.Any, flask_session.base)
    with open(source.__file__) as file:  # noqa: PTH123
        text = file.read()
    assert text.count("self._get_store_id(") == 3
    assert text.count("self.key_prefix") == 2


def test_signal_comes_before_the_session_is_read(app: Flask) -> None:
    """12: so a receiver can empty the session and hide the remember cookie (session check)."""

    def receiver(sender: t.Any) -> None:
        assert "_login_user" not in g
        session.clear()

    client = app.test_client()
    client.post("/login")
    client.delete_cookie("remember_token")
    with user_accessed.connected_to(receiver, app):
        assert client.get("/me").text == "False"


def test_remember_cookie_is_the_same_everywhere(app: Flask) -> None:
    """13: so the cookie alone is worthless ('remember_cookies')."""
    one, other = app.test_client(), app.test_client()
    values = set()
    for client in (one, other):
        client.post("/login")
        values.add(client.get_cookie("remember_token").value)  # type: ignore[union-attr]
    assert len(values) == 1


def test_return_by_cookie_is_not_a_login(app: Flask) -> None:
    """14: so it has a receiver of its own (auth events)."""
    told = []

    def receiver(sender: t.Any, user: t.Any) -> None:
        told.append(user)

    client = app.test_client()
    client.post("/login")
    client.delete_cookie("session")
    with user_logged_in.connected_to(receiver, app):
        assert client.get("/me").text == "True"
    assert told == []


def test_receiver_that_raises_leaves_a_signed_in_user(app: Flask) -> None:
    """16: so the receiver undoes the login before it raises (auth events)."""

    def receiver(sender: t.Any, user: t.Any) -> None:
        raise RuntimeError

    client = app.test_client()
    with user_logged_in.connected_to(receiver, app):
        assert client.post("/login").status_code == 500
    assert client.get("/me").text == "True"


def test_non_ascii_remember_cookie_is_an_error(app: Flask) -> None:
    """Flask-Login itself fails on it, so it is refused earlier ('remember_cookies')."""
    with app.test_request_context():
        assert decode_cookie(encode_cookie("1")) == "1"
        with pytest.raises(TypeError):
            decode_cookie("1|é")


def test_app_context_outlives_requests(app: Flask) -> None:
    """22, 45: so the state of a request is kept with the request ('context')."""
    with app.app_context():
        app.test_client().post("/login")
        assert app.test_client().get("/me").text == "True"


def test_after_commit_is_sent_for_savepoints() -> None:
    """23: so 'on_commit' checks whether the commit is that of a savepoint."""
    told = []
    with sa_orm.Session(sa.create_engine("sqlite://")) as db:
        sa.event.listen(
            db, "after_commit", lambda session: told.append(session.in_nested_transaction())
        )
        with db.begin_nested():
            pass
        db.commit()
    assert told == [True, False]


def test_closing_sends_no_rollback() -> None:
    """26: so 'on_commit' listens to the end of the transaction."""
    told = []
    db = sa_orm.Session(sa.create_engine("sqlite://"))
    db.execute(sa.text("SELECT 1"))
    sa.event.listen(db, "after_rollback", lambda session: told.append("rollback"))
    sa.event.listen(db, "after_transaction_end", lambda session, _: told.append("end"))
    db.close()
    assert told == ["end"]


def test_first_after_request_function_is_the_last(app: Flask) -> None:
    """42: so the end of the request comes after all else, in any order of extensions."""
    order: list[str] = []

    def note(name: str) -> t.Any:
        def function(response: t.Any) -> t.Any:
            order.append(name)
            return response

        return function

    app.after_request(note("registered"))
    app.after_request_funcs.setdefault(None, []).insert(0, note("inserted"))
    app.test_client().get("/me")
    assert order == ["registered", "inserted"]


def test_first_teardown_function_is_the_last(app: Flask) -> None:
    """So maintenance runs after Flask-SQLAlchemy's session has been removed ('persistence')."""
    order: list[str] = []
    app.teardown_appcontext(lambda _: order.append("registered"))
    app.teardown_appcontext_funcs.insert(0, lambda _: order.append("inserted"))
    app.test_client().get("/me")
    assert order == ["registered", "inserted"]
