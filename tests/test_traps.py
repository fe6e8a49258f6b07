"""Facts about the libraries below us that the registry relies on.

If one of these tests fails, a library has changed. The code that its docstring names may be
simplified, or must be adapted. The second part has a test for each private part of a library that
an adapter in ``_compat`` uses.
"""

from __future__ import annotations

import datetime as dt
import importlib
import inspect
import typing as t

import click
import flask_session.base as flask_session_base
import memcache
import pymemcache
import pytest
import redis.asyncio
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from cachelib import FileSystemCache, RedisCache, SimpleCache
from click.testing import CliRunner
from flask import Flask, appcontext_pushed, g, request, session
from flask.cli import ScriptInfo, with_appcontext
from flask.globals import app_ctx
from flask.sessions import SecureCookieSessionInterface
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
from flask_session.dynamodb import DynamoDBSessionInterface
from flask_session.mongodb import MongoDBSessionInterface
from flask_session.redis import RedisSessionInterface
from flask_session.sqlalchemy import SqlAlchemySessionInterface
from flask_sqlalchemy import SQLAlchemy
from pymemcache.client.retrying import RetryingClient
from redis.cluster import ClusterNode
from werkzeug.exceptions import Conflict, ServiceUnavailable

from flask_session_registry._compat import clients, databases, flask_login, flask_session
from flask_session_registry._compat import flask as compat
from flask_session_registry._compat import sqlalchemy as compat_sqlalchemy


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
    assert client.get_cookie("session").value == before.value


def test_regenerate_deletes_at_once(app: Flask) -> None:
    """4: so 'store_keys.regenerate_id' isn't Flask-Session's 'regenerate'."""

    @app.post("/regenerate")
    def regenerate() -> str:
        before = len(entries(app))
        app.session_interface.regenerate(session)
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
    source = t.cast(t.Any, flask_session_base)
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
        values.add(client.get_cookie("remember_token").value)
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


# -- private parts of Flask ------------------------------------------------------------------------


def test_flask_keeps_contexts_in_context_variables(app: Flask) -> None:
    """'_cv_app', and up to 3.1 '_cv_request': so the request is found from an app context in it."""
    assert compat.request_context() is None
    with app.test_request_context() as context:
        assert compat.request_context() is context
        with app.app_context():
            assert compat.request_context() is context
    assert compat.request_context() is None


def test_flask_runs_functions_in_the_order_of_its_lists(app: Flask) -> None:
    """'url_value_preprocessors' and the others: so ours are the first or the last of all."""
    order: list[str] = []

    def note(name: str) -> t.Any:
        def function(*arguments: t.Any) -> t.Any:
            order.append(name)
            return arguments[0] if name == "finish" else None

        return function

    app.before_request(note("before"))
    app.after_request(lambda response: order.append("after") or response)
    app.teardown_request(note("teardown"))
    app.teardown_appcontext(note("teardown of context"))
    names = {name: note(name) for name in ("begin", "finish", "end", "end_of_context")}
    compat.surround_requests(app, **names)
    app.before_request(note("before, later"))
    app.test_client().get("/me")
    assert order == [
        *("begin", "before", "before, later", "after", "finish", "teardown", "end"),
        *("teardown of context", "end_of_context"),
    ]


@pytest.mark.parametrize("name", ["do_teardown_request", "do_teardown_appcontext"])
def test_flask_runs_its_teardown_functions_by_methods(app: Flask, name: str) -> None:
    """Ours follow these methods, however they are called, and also if they raise."""
    seen: list[object] = []

    def note(error: object = None, *_: object) -> None:
        seen.append(error)

    def nothing(*_: object) -> None:
        pass

    names = ("end", "end_of_context") if "request" in name else ("end_of_context", "end")
    functions = {names[0]: note, names[1]: nothing, "begin": nothing, "finish": nothing}
    compat.surround_requests(app, **functions)
    error = ValueError()
    with app.test_request_context():
        seen.clear()
        getattr(app, name)(exc=error)
        getattr(app, name)(error)
        getattr(app, name)()
        assert seen == [error, error, None]

        def fail(_: object) -> None:
            raise ZeroDivisionError

        getattr(app, name.removeprefix("do_"))(fail)
        with pytest.raises(ZeroDivisionError):
            getattr(app, name)(None)
        assert len(seen) == 4
        app.teardown_request_funcs.clear()
        app.teardown_appcontext_funcs.clear()


def test_flask_looks_up_error_handlers_in_its_dictionary(app: Flask) -> None:
    """'error_handler_spec': so one can be added after the first request."""

    @app.get("/conflict")
    def conflict() -> str:
        raise Conflict

    client = app.test_client()
    assert client.get("/conflict").status_code == 409
    compat.set_error_handler(app, Conflict, lambda _: app.response_class("ours", 409))
    assert client.get("/conflict").text == "ours"


def test_flask_answers_errors_by_its_methods(app: Flask) -> None:
    """'handle_exception', 'handle_user_exception', 'finalize_request': errors raised late."""

    @app.after_request
    def fail(response: t.Any) -> t.Any:
        if request.path == "/me" and response.status_code == 200:
            raise ServiceUnavailable
        return response

    compat.handle_wherever_raised(app, ServiceUnavailable)
    assert app.test_client().get("/me").status_code == 503


def test_flask_makes_responses_by_its_methods(app: Flask) -> None:
    """'handle_http_exception' and 'process_response': so a request can be answered early."""
    app.after_request(lambda response: response.headers.add("X-After", "yes") or response)
    with app.test_request_context():
        response = compat.response_to(app, Conflict())
        assert response.status_code == 409
        session["x"] = 1
        response = compat.process_response(app, response)
        assert response.headers["X-After"] == "yes"
        assert "session=" in response.headers["Set-Cookie"]


def test_flask_runs_before_request_functions_in_one_method(app: Flask) -> None:
    """'preprocess_request' is on the stack in these, and not in a view."""
    found: list[bool] = []
    app.before_request(lambda: found.append(compat.is_before_request()))

    @app.get("/view")
    def view() -> str:
        found.append(compat.is_before_request())
        return ""

    app.test_client().get("/view")
    assert found == [True, False]


def test_flask_pushes_the_context_of_a_request_in_one_method(app: Flask) -> None:
    """'RequestContext.push' is on the stack then; from 3.2 on the context says so itself."""
    found: list[bool] = []

    def receiver(sender: t.Any) -> None:
        found.append(compat.begins_request(t.cast(t.Any, app_ctx)._get_current_object()))

    with appcontext_pushed.connected_to(receiver, app):
        app.test_client().get("/me")
        with app.app_context():
            pass
    assert found == [True, False]


def test_flask_loads_the_app_of_a_command_in_one_method(app: Flask) -> None:
    """'ScriptInfo.load_app' is on the stack while a factory runs, and not in the command."""
    found: list[bool] = []

    def create_app() -> Flask:
        with app.app_context():
            found.append(compat.is_of_command())
        return app

    @click.command()
    @with_appcontext
    def command() -> None:
        found.append(compat.is_of_command())

    CliRunner().invoke(command, obj=ScriptInfo(create_app=create_app))
    assert found == [False, True]
    assert not compat.is_of_command()


def test_flask_marks_permanent_sessions_by_a_key(app: Flask) -> None:
    """'_permanent': so it isn't taken for something that the app has written."""
    with app.test_request_context():
        session.permanent = True
        assert session[compat.PERMANENT] is True


def test_test_client_sends_and_keeps_cookies(app: Flask) -> None:
    """Werkzeug's '_add_cookies_to_wsgi' and '_update_cookies_from_response' ('testing')."""
    client = app.test_client()
    with app.test_request_context("/me") as context:
        response = app.response_class()
        response.set_cookie("one", "1")
        compat.receive_cookies(client, context.request, response)
    cookie = client.get_cookie("one")
    assert cookie is not None
    assert cookie.value == "1"
    environ = app.test_request_context("/me").request.environ
    compat.send_cookies(client, environ)
    assert environ["HTTP_COOKIE"] == "one=1"


# -- private parts of Flask-Login ------------------------------------------------------------------


def test_flask_login_caches_the_user_in_g(app: Flask) -> None:
    """'_login_user' in 'g': so it can be taken from there, and put back."""
    user = User()
    with app.test_request_context():
        flask_login.cache_user(user)
        assert current_user._get_current_object() is user
        assert flask_login.take_cached_user() is user
        assert flask_login.take_cached_user() is None
        assert not current_user.is_authenticated


def test_flask_login_keys_in_the_session(app: Flask) -> None:
    """A login writes these and no others: so everything else belongs to the app ('store_keys')."""
    with app.test_request_context():
        login_user(User(), remember=True, duration=dt.timedelta(days=1))
        assert set(session) == set(flask_login.LOGIN_KEYS) | {compat.PERMANENT}
        assert session[flask_login.USER_ID] == "1"
        assert session[flask_login.FRESH] is True


def test_flask_login_keeps_the_user_loader_in_its_manager(app: Flask) -> None:
    """'_user_callback': so a session that a test has written by hand can be registered."""
    assert isinstance(flask_login.load_user(app, "1"), User)
    LoginManager(app)
    assert flask_login.load_user(app, "1") is None


def test_flask_login_identifies_users_by_an_attribute(app: Flask) -> None:
    """'id_attribute': apps may set another one than 'get_id'."""
    assert flask_login.has_usual_ids(app)
    assert flask_login.get_id(app, User()) == "1"
    manager = t.cast(t.Any, app).login_manager
    manager.id_attribute = "other_id"
    user = User()
    vars(user)["other_id"] = lambda: 7
    assert not flask_login.has_usual_ids(app)
    assert flask_login.get_id(app, user) == "7"


# -- private parts of Flask-Session ----------------------------------------------------------------


def test_flask_session_entries(app: Flask) -> None:
    """'_generate_sid', '_get_store_id', '_retrieve_session_data', '_delete_session'."""
    interface = app.session_interface
    assert flask_session.owns(interface)
    ids = {flask_session.new_session_id(interface) for _ in range(2)}
    assert len(ids) == 2
    id = ids.pop()
    assert flask_session.store_key(interface, id) == f"{flask_session.key_prefix(interface)}{id}"
    flask_session.set_store_key_function(interface, lambda session_id: f"ours:{session_id}")
    client = app.test_client()
    client.post("/login")
    (key,) = entries(app)
    sid = t.cast(t.Any, client.get_cookie("session")).value
    assert key == f"ours:{sid}" == flask_session.store_key(interface, sid)
    loaded = flask_session.load_session(interface, key, sid)
    assert loaded["_user_id"] == "1"
    assert (loaded.sid, loaded.modified) == (sid, False)
    flask_session.delete_entry(interface, key)
    assert entries(app) == {}
    assert flask_session.load_session(interface, key, sid) is None


def test_flask_session_sign_ids_by_a_method(app: Flask) -> None:
    """'use_signer', '_sign' and '_unsign', which are deprecated."""
    interface: t.Any = app.session_interface
    assert flask_session.verified_session_id(interface, app, "an id") == "an id"
    interface.use_signer = True
    signed = interface._sign(app, "an id")
    assert flask_session.verified_session_id(interface, app, signed) == "an id"
    assert flask_session.verified_session_id(interface, app, "an id.forged") is None


@pytest.mark.parametrize("is_on_server", [True, False])
def test_flask_session_asks_before_it_writes(app: Flask, is_on_server: bool) -> None:
    """'should_set_storage', and Flask's 'should_set_cookie': so refreshes can be deferred."""
    if not is_on_server:
        app.session_interface = SecureCookieSessionInterface()
    interface = app.session_interface
    assert flask_session.asks_before_writing(interface)
    name, decide = flask_session.write_decision_of(interface)
    asked: list[object] = []
    setattr(interface, name, lambda app, session: asked.append(decide(app, session)))
    app.test_client().post("/login")
    assert asked == [True]


def test_flask_session_attributes_of_interfaces(app: Flask, tmp_path: t.Any) -> None:
    """'client', 'cache', 'store', 'sql_session_model': what entries are deleted by."""
    assert flask_session.cache_of(app.session_interface) is app.config["SESSION_CACHELIB"]
    assert flask_session.client_of(app.session_interface) is None
    client = redis.Redis()
    interface = RedisSessionInterface(Flask("redis"), client)
    assert flask_session.client_of(interface) is client
    assert flask_session.cache_of(interface) is None
    assert flask_session.is_kind(interface, "RedisSessionInterface")
    for kind in (MongoDBSessionInterface, DynamoDBSessionInterface):
        assert "self.store = " in inspect.getsource(kind.__init__)
    sql = Flask("sql")
    sql.config.update(SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path}/x.db", SECRET_KEY="x")
    db = SQLAlchemy(sql)
    in_sql = SqlAlchemySessionInterface(sql, db)
    assert flask_session.client_of(in_sql) is db
    assert set(sa.inspect(flask_session.model_of(in_sql)).columns.keys()) >= {"session_id", "data"}


def test_flask_session_store_in_postgresql() -> None:
    """'_upsert_session', '_table', '_schema', '_get_cursor' of the development version."""
    module = pytest.importorskip("flask_session.postgresql.postgresql")
    interface = module.PostgreSqlSessionInterface
    source = inspect.getsource(interface)
    assert [*inspect.signature(interface._upsert_session).parameters][1:] == [
        *("session_lifetime", "session", "store_id")
    ]
    for name in ("self._table", "self._schema", "self._get_cursor("):
        assert name in source


# -- private parts of the clients ------------------------------------------------------------------


def test_cachelib_attributes(tmp_path: t.Any) -> None:
    """'_path', '_threshold', '_write_client': what the doctor looks at."""
    cache = FileSystemCache(str(tmp_path), threshold=7)
    assert clients.folder_of_cache(cache) == str(tmp_path)
    assert clients.size_limit_of_cache(cache) == 7
    assert clients.client_of_cache(cache) is None
    client = redis.Redis()
    assert clients.client_of_cache(RedisCache(client)) is client


def test_pymemcache_attributes() -> None:
    """'sock', 'client_pool', 'clients', '_failed_clients', '_client': a twin shares none."""
    address = ("127.0.0.1", 1)
    client = pymemcache.Client(address, ignore_exc=True)
    assert client.sock is None
    client.sock = object()
    twin = clients._pymemcache_twin(client)
    assert (twin.sock, twin.ignore_exc, twin.server) == (None, False, address)

    pooled = pymemcache.PooledClient(address)
    twin = clients._pymemcache_twin(pooled)
    assert twin.client_pool is not pooled.client_pool
    with twin.client_pool.get_and_release() as one:
        assert one.server == address

    hashing = pymemcache.HashClient([address], timeout=1)
    twin = clients._pymemcache_twin(hashing)
    assert twin.clients.keys() == hashing.clients.keys()
    assert all(twin.clients[name] is not hashing.clients[name] for name in twin.clients)
    assert hashing._failed_clients == {} == twin._failed_clients
    assert twin._failed_clients is not hashing._failed_clients

    assert clients._without_retries(RetryingClient(client)) is client


@pytest.mark.parametrize("timeout", [None, 1])
def test_pymemcache_timeouts(timeout: float | None) -> None:
    """'timeout', 'connect_timeout', 'default_kwargs': whether a client waits forever."""
    address = ("127.0.0.1", 1)
    for kind, servers in ((pymemcache.Client, address), (pymemcache.HashClient, [address])):
        client = kind(servers, timeout=timeout, connect_timeout=1)
        assert clients.waits_forever(client) is (timeout is None)


def test_memcache_attributes() -> None:
    """'servers' and 'connect': the client itself hides a server that is down."""
    client = memcache.Client(["127.0.0.1:1"])
    (server,) = client.servers
    assert clients.library_of(client) == "memcache"
    assert callable(server.connect)
    assert callable(client.disconnect_all)


def test_pylibmc_attributes() -> None:
    """'clone': a client for another thread."""
    pylibmc = pytest.importorskip("pylibmc")
    client = pylibmc.Client(["127.0.0.1:1"])
    assert clients.library_of(client) == "pylibmc"
    assert client.clone() is not client


@pytest.mark.parametrize("timeout", [None, 1])
def test_redis_timeouts(timeout: float | None) -> None:
    """'connection_pool', 'connection_class', 'connection_kwargs', 'socket_timeout'."""
    assert clients.waits_forever(redis.Redis(socket_timeout=timeout)) is (timeout is None)


def test_redis_kinds_of_clients() -> None:
    """'zscan' and 'command_stack': pipelines and those of asyncio are refused."""
    client = redis.Redis()
    assert clients.is_blocking_redis(client)
    assert not clients.is_blocking_redis(client.pipeline())
    assert not clients.is_blocking_redis(redis.asyncio.Redis())
    assert not clients.is_cluster(client)
    assert clients.primaries_of(client) == [client]


def test_redis_sentinel_knows_primaries() -> None:
    """'is_master' of the pool: one of replicas is refused."""
    sentinel = redis.Sentinel([("127.0.0.1", 1)])
    assert not clients.reads_from_replicas(sentinel.master_for("one"))
    assert clients.reads_from_replicas(sentinel.slave_for("one"))
    assert not clients.reads_from_replicas(redis.Redis())


def test_redis_cluster_attributes() -> None:
    """'get_nodes', 'get_primaries', 'redis_connection', 'read_from_replicas', and its successor."""
    cluster = redis.RedisCluster
    assert callable(cluster.get_nodes)
    assert callable(cluster.get_primaries)
    assert "redis_connection" in vars(ClusterNode("127.0.0.1", 1))
    source = inspect.getsource(cluster.__init__)
    assert "self.read_from_replicas = " in source
    assert "self.load_balancing_strategy = " in source


# -- private parts of SQLAlchemy, Flask-SQLAlchemy and Flask-SQLAlchemy-Lite -----------------------


class _Thing(sa_orm.DeclarativeBase):
    pass


class _Row(_Thing):
    __tablename__ = "row"
    id: sa_orm.Mapped[int] = sa_orm.mapped_column(primary_key=True)


def test_sqlalchemy_transaction_knows_whether_it_joined() -> None:
    """'SessionTransaction._connections': so a rollback never undoes what others have done."""
    engine = sa.create_engine("sqlite://")
    with sa_orm.Session(engine) as own:
        own.execute(sa.text("SELECT 1"))
        assert not compat_sqlalchemy.reaches_beyond(own, _Row)
    with engine.connect() as connection, connection.begin():
        for mode, reaches in (("rollback_only", True), ("create_savepoint", False)):
            joined = sa_orm.Session(connection, join_transaction_mode=t.cast(t.Any, mode))
            joined.execute(sa.text("SELECT 1"))
            assert compat_sqlalchemy.reaches_beyond(joined, _Row) is reaches
            joined.close()
    engine.dispose()


@pytest.mark.parametrize("level", ["AUTOCOMMIT", None])
def test_sqlalchemy_dialect_knows_the_level_of_its_engine(level: t.Any) -> None:
    """'_on_connect_isolation_level': whether each statement commits by itself."""
    engine = sa.create_engine("sqlite://", **({"isolation_level": level} if level else {}))
    with engine.connect() as connection:
        assert compat_sqlalchemy.is_autocommit(connection) is (level is not None)
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        assert compat_sqlalchemy.is_autocommit(connection)
    engine.dispose()


@pytest.mark.parametrize("package", ["flask_sqlalchemy", "flask_sqlalchemy_lite"])
def test_flask_sqlalchemy_knows_whether_a_session_is_open(package: str) -> None:
    """'session.registry', and '_sqlalchemy_sessions' in 'g': none is opened to look."""
    app = Flask("plain")
    app.config.update(SECRET_KEY="x", SQLALCHEMY_DATABASE_URI="sqlite://")
    app.config["SQLALCHEMY_ENGINES"] = {"default": "sqlite://"}
    importlib.import_module(package).SQLAlchemy().init_app(app)
    database = databases.database_of(app, None)
    assert database is not None
    with app.app_context():
        assert not database.is_session_open
        database.session.execute(sa.text("SELECT 1"))
        assert database.is_session_open
        with database.factory() as other:
            assert isinstance(other, sa_orm.Session)
            assert other is not database.session
