"""User models of every kind (SCENARIO 26)."""

from __future__ import annotations

import itertools
import typing as t
import uuid

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from conftest import SiteFactory
from flask import session
from flask_login import UserMixin, current_user, login_user
from flask_sqlalchemy import SQLAlchemy
from site_under_test import Site, days_ago
from sqlalchemy.dialects import mysql

from flask_session_registry import ConfigurationError, SessionRegistry, UserSessionMixin
from flask_session_registry._request import persistence


def columns(**more: t.Any) -> dict[str, t.Any]:
    return {
        "__tablename__": "account",
        "name": sa_orm.mapped_column(sa.String(50), unique=True),
        "password_hash": sa_orm.mapped_column(sa.String(100)),
        "note": sa_orm.mapped_column(sa.String(100), nullable=True),
        **more,
    }


def make_class(db: SQLAlchemy, **more: t.Any) -> type[t.Any]:
    return type("User", (UserMixin, db.Model), columns(**more))


def uuid_keys(db: SQLAlchemy) -> type[t.Any]:
    return make_class(db, id=sa_orm.mapped_column(sa.Uuid, primary_key=True, default=uuid.uuid4))


def string_keys(db: SQLAlchemy) -> type[t.Any]:
    key = sa_orm.mapped_column(sa.String(40), primary_key=True, default=lambda: f"u-{uuid.uuid4()}")
    return make_class(db, id=key)


def keys_in(
    key: sa.types.TypeEngine[t.Any], **options: t.Any
) -> t.Callable[[SQLAlchemy], type[t.Any]]:
    """Return a model with text keys, in a table with its own charset or collation."""

    def model(db: SQLAlchemy) -> type[t.Any]:
        counter = itertools.count(1)
        id = sa_orm.mapped_column(key, primary_key=True, default=lambda: f"u-{next(counter)}")
        return make_class(db, id=id, __table_args__=options)

    return model


TEXT, LATIN = (
    sa.String(40),
    sa.String(40).with_variant(mysql.VARCHAR(40, charset="latin1"), "mysql"),
)
TEXTS = [
    keys_in(TEXT, mysql_charset="latin1"),
    keys_in(TEXT, mysql_default_charset="utf8mb3", mysql_collate="utf8mb3_bin"),
    keys_in(TEXT, mysql_COLLATE="utf8mb4_bin"),
    keys_in(sa.CHAR(40), mysql_character_set="latin1"),
    keys_in(mysql.VARCHAR(40, collation="utf8mb4_bin"), mysql_charset="latin1"),
    keys_in(LATIN, mysql_charset="utf8mb3"),
]


class DigitsOfNumber(sa.types.TypeDecorator[str]):
    """A number in the database that is text in the app."""

    impl = sa.Integer
    cache_ok = True
    python_type = str

    def process_bind_param(self, value: str | None, _: object) -> int | None:
        return None if value is None else int(value.strip())

    def process_result_value(self, value: int | None, _: object) -> str | None:
        return None if value is None else str(value)


def keys_of_the_apps_own_type(db: SQLAlchemy) -> type[t.Any]:
    counter = itertools.count(1)
    key = sa_orm.mapped_column(
        DigitsOfNumber, primary_key=True, default=lambda: str(next(counter)), autoincrement=False
    )
    return make_class(db, id=key)


def text_of_uuids(db: SQLAlchemy) -> type[t.Any]:
    key = sa_orm.mapped_column(
        sa.Uuid(as_uuid=False), primary_key=True, default=lambda: str(uuid.uuid4())
    )
    return make_class(db, id=key)


def small_keys(db: SQLAlchemy) -> type[t.Any]:
    counter = itertools.count(1)
    key = sa_orm.mapped_column(
        sa.SmallInteger, primary_key=True, default=lambda: next(counter), autoincrement=False
    )
    return make_class(db, id=key)


def renamed_keys(db: SQLAlchemy) -> type[t.Any]:
    return make_class(
        db,
        number=sa_orm.mapped_column("account_no", sa.Integer, primary_key=True),
        get_id=lambda self: str(self.number),
    )


def changing_ids(db: SQLAlchemy) -> type[t.Any]:
    """Return a model whose 'get_id()' is another column, which changes with the password."""

    def renew(target: t.Any, value: str, *_: t.Any) -> None:
        target.uniquifier = uuid.uuid4().hex

    model = make_class(
        db,
        id=sa_orm.mapped_column(sa.Integer, primary_key=True),
        uniquifier=sa_orm.mapped_column(sa.String(40), default=lambda: uuid.uuid4().hex),
        get_id=lambda self: self.uniquifier,
    )
    sa.event.listen(model.password_hash, "set", renew)
    return model


def joined_inheritance(db: SQLAlchemy) -> type[t.Any]:
    base = make_class(
        db,
        id=sa_orm.mapped_column(sa.Integer, primary_key=True),
        kind=sa_orm.mapped_column(sa.String(10)),
        __mapper_args__={"polymorphic_on": "kind", "polymorphic_identity": "user"},
    )
    return type(
        "Admin",
        (base,),
        {
            "__tablename__": "admin",
            "id": sa_orm.mapped_column(sa.ForeignKey(base.id), primary_key=True),
            "level": sa_orm.mapped_column(sa.Integer, default=1),
            "__mapper_args__": {"polymorphic_identity": "admin"},
        },
    )


def tag_class(db: SQLAlchemy) -> type[t.Any]:
    return type(
        "Tag",
        (db.Model,),
        {
            "__tablename__": "tag",
            "id": sa_orm.mapped_column(sa.Integer, primary_key=True),
            "user_id": sa_orm.mapped_column(sa.ForeignKey("account.id")),
        },
    )


def eager_relationship(db: SQLAlchemy) -> type[t.Any]:
    """Return a model with a relationship that a join loads as several rows for one user."""
    return make_class(
        db,
        id=sa_orm.mapped_column(sa.Integer, primary_key=True),
        tags=sa_orm.relationship(tag_class(db), lazy="joined"),
    )


def other_schema(db: SQLAlchemy) -> type[t.Any]:
    return make_class(
        db,
        id=sa_orm.mapped_column(sa.Integer, primary_key=True),
        __table_args__={"schema": "people"},
    )


def outer_joined(db: SQLAlchemy) -> type[t.Any]:
    """Return users of two kinds, all loaded along with the other kind's columns."""
    return _with_employees(db, {"with_polymorphic": "*"}, {})


def outer_joined_inline(db: SQLAlchemy) -> type[t.Any]:
    return _with_employees(db, {}, {"polymorphic_load": "inline"})


def _with_employees(
    db: SQLAlchemy, options: dict[str, t.Any], more: dict[str, t.Any]
) -> type[t.Any]:
    kind = sa_orm.mapped_column(sa.String(10))
    key = sa_orm.mapped_column(sa.Integer, primary_key=True)
    polymorphic = {"polymorphic_on": "kind", "polymorphic_identity": "user", **options}
    base = make_class(db, id=key, kind=kind, __mapper_args__=polymorphic)
    base.Employee = type(
        "Employee",
        (base,),
        {
            "__tablename__": "employee",
            "id": sa_orm.mapped_column(sa.ForeignKey("account.id"), primary_key=True),
            "desk": sa_orm.mapped_column(sa.Integer, default=1),
            "__mapper_args__": {"polymorphic_identity": "employee", **more},
        },
    )
    return base


def below_a_party(db: SQLAlchemy) -> type[t.Any]:
    """Return a model with its key in a table of other people, too, and its password in its own."""
    party = type(
        "Party",
        (db.Model,),
        {
            "__tablename__": "party",
            "id": sa_orm.mapped_column(sa.Integer, primary_key=True),
            "kind": sa_orm.mapped_column(sa.String(10)),
            "__mapper_args__": {
                "polymorphic_on": "kind",
                "polymorphic_identity": "party",
                "with_polymorphic": "*",
            },
        },
    )
    key = sa_orm.mapped_column(sa.ForeignKey("party.id"), primary_key=True)
    arguments = {"polymorphic_identity": "user"}
    return type("User", (UserMixin, party), columns(id=key, __mapper_args__=arguments))


MODELS = [
    uuid_keys,
    string_keys,
    keys_of_the_apps_own_type,
    text_of_uuids,
    small_keys,
    renamed_keys,
    changing_ids,
    joined_inheritance,
    outer_joined,
    outer_joined_inline,
    below_a_party,
    eager_relationship,
]


def check_site(site: Site) -> None:
    """Sign in and remember two browsers. If one changes the password, the other's cookies die."""
    if not hasattr(site.User, "uniquifier"):
        loader = site.load_user
    else:

        def loader(id: str) -> t.Any:
            return site.db.session.scalar(sa.select(site.User).filter_by(uniquifier=id))

    site.login_manager.user_loader(loader)
    firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
    firefox.login(remember="1")
    chrome.login(remember="1")
    assert firefox.is_signed_in
    assert chrome.is_signed_in
    firefox.lose("session")
    assert firefox.is_signed_in
    with site.context():
        key = sa.inspect(site.user("ann")).identity[0]
        assert {row.user_id for row in site.sessions.active(site.user("ann"))} == {key}
    late = chrome.copy("session")
    chrome.post("/password", password="new")
    assert chrome.is_signed_in
    assert late.rejected == "rotated"
    chrome.lose("session")
    assert chrome.is_signed_in
    firefox_lost = firefox.copy("remember_token", "remember_token_session")
    assert not firefox.is_signed_in
    assert not firefox_lost.is_signed_in
    with site.context():
        assert site.sessions.revoke_all(site.user("ann")) == 1
        site.db.session.commit()
    assert not chrome.is_signed_in
    site.change(ended=True, revoked_at=days_ago(1))
    with site.context():
        site.sessions.prune()
    assert site.stale_keys() == []


@pytest.mark.parametrize("model", MODELS)
def test_kinds_of_models(make_site: SiteFactory, database: str, model: t.Any) -> None:
    """26: integer, UUID and string keys, an id other than the key, and inheritance."""
    check_site(make_site("files", database, model=model))


@pytest.mark.table
@pytest.mark.parametrize("model", [outer_joined, outer_joined_inline])
@pytest.mark.parametrize("database", ["postgresql", "mariadb"])
def test_users_of_two_kinds(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch, database: str, model: t.Any
) -> None:
    """26: both kinds can rotate, be pruned and be deleted, and a late request is checked again."""
    monkeypatch.setattr(persistence, "SLOW_AFTER", 0)
    site = make_site("redis", database, model=model)
    add_views(site)
    with site.context():
        employee = site.User.Employee(name="eve", password_hash="hash of eve")
        site.db.session.add(employee)
        site.db.session.commit()
    for name in ("ann", "eve"):
        firefox, chrome = site.browser("Firefox"), site.browser("Chrome")
        firefox.login(name)
        chrome.login(name)
        assert firefox.post("/sudo").status_code == 200
        assert firefox.get("/late").text == name
        assert firefox.name_shown == name
        site.change({"user_agent": "Chrome"}, last_seen_at=days_ago(60))
        with site.context():
            assert site.sessions.prune().ended == 1
            site.db.session.delete(site.user(name))
            site.db.session.commit()
        assert not firefox.is_signed_in
        assert {row.revoked_reason for row in site.rows()} <= {"expired", "deleted"}


def add_views(site: Site) -> None:
    @site.app.post("/sudo")
    def sudo() -> str:
        site.sessions.rotate()
        return "ok"

    @site.app.get("/late")
    def late() -> str:
        return str(current_user.name)


@pytest.mark.table
@pytest.mark.parametrize("model", TEXTS)
def test_charset_of_the_key(make_site: SiteFactory, model: t.Any) -> None:
    """26: MariaDB creates the foreign key, and a user agent may contain any character."""
    site = make_site("cookie", "mariadb", model=model)
    firefox = site.browser()
    firefox.login()
    assert firefox.is_signed_in
    assert site.rows()[0].user_id == "u-1"
    with site.context():
        (key,) = sa.inspect(site.db.engine).get_foreign_keys("user_sessions")
        assert key["options"] == {"onupdate": "CASCADE", "ondelete": "SET NULL"}
    site.change(user_agent="Browser \N{PARTY POPPER}")
    assert site.rows()[0].user_agent == "Browser \N{PARTY POPPER}"


@pytest.mark.table
@pytest.mark.parametrize("how", ["instance", "SQL"])
def test_key_that_is_changed(make_site: SiteFactory, database: str, how: str) -> None:
    """26: the sessions follow the user, to be listed and revoked, but are signed out.

    Flask-Login names the user by the key, and so the session still names the user's old one.
    """
    site = make_site("cookie", database, model=string_keys)
    with site.context():
        for engine in site.db.engines.values():
            if database == "sqlite":
                sa.event.listen(engine, "connect", _enforce_foreign_keys)
                engine.dispose()
    firefox, edge = site.browser("Firefox"), site.browser("Edge")
    firefox.login()
    edge.login("bob")
    with site.context():
        if how == "SQL":
            renamed = sa.update(site.User).where(site.User.name == "ann").values(id="renamed")
            site.db.session.execute(renamed)
        else:
            site.user("ann").id = "renamed"
        site.db.session.commit()
        assert [row.user_id for row in site.sessions.active(site.user("ann"))] == ["renamed"]
    assert firefox.rejected == "unknown"
    assert not firefox.is_signed_in
    assert edge.is_signed_in
    with site.context():
        assert site.sessions.revoke_all(site.user("ann")) == 1
        site.db.session.commit()
    assert firefox.login().status_code == 200
    assert firefox.is_signed_in


def _enforce_foreign_keys(connection: t.Any, _: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")


def swapped_ids(db: SQLAlchemy) -> type[t.Any]:
    """Return a subclass in which each of two users has the other's key as id."""
    model = joined_inheritance(db)
    model.get_id = lambda self: str(3 - self.id)
    return model


def test_id_that_is_the_key_of_another(make_site: SiteFactory, database: str) -> None:
    """26: the owner of a session is never derived from Flask-Login's id of the user."""
    site = make_site("files", database, model=swapped_ids)
    site.login_manager.user_loader(lambda name: site.load_user(str(3 - int(name))))
    firefox, chrome, bobs = (site.browser(name) for name in ("Firefox", "Chrome", "Edge"))
    firefox.login()
    chrome.login(remember="1")
    bobs.login("bob")
    chrome.lose("session")
    shown = [one.get("/me").json["name"] for one in (firefox, chrome, bobs)]
    assert shown == ["ann", "ann", "bob"]
    chrome.post("/password", password="new")
    assert [one.is_signed_in for one in (firefox, chrome, bobs)] == [False, True, True]


def id_beside_the_key(db: SQLAlchemy) -> type[t.Any]:
    counter = itertools.count(101)
    return make_class(
        db,
        number=sa_orm.mapped_column(sa.Integer, primary_key=True),
        id=sa_orm.mapped_column(sa.Integer, default=lambda: next(counter)),
    )


def small_keys_on_postgresql(db: SQLAlchemy) -> type[t.Any]:
    kind = sa.Integer().with_variant(sa.SmallInteger(), "postgresql")
    return make_class(db, id=sa_orm.mapped_column(kind, primary_key=True))


@pytest.mark.table
@pytest.mark.parametrize(
    "model",
    [
        *(joined_inheritance, eager_relationship, uuid_keys, swapped_ids, string_keys),
        *(text_of_uuids, keys_of_the_apps_own_type, small_keys, small_keys_on_postgresql),
        *(renamed_keys, id_beside_the_key, changing_ids),
    ],
)
def test_one_statement_asks_for_the_session(make_site: SiteFactory, model: t.Any) -> None:
    """Any kind of id works, whatever 'get_id()' is: the marker names the user by the key."""
    site = make_site("files", "postgresql", model=model)
    site.login_manager.user_loader(lambda _: site.user("ann"))
    firefox = site.browser()
    firefox.login()
    with site.count_statements() as statements:
        assert firefox.is_signed_in
    (text,) = (text for text in statements.texts if "user_sessions" in text)
    assert "(SELECT" not in text


@pytest.mark.table
def test_custom_id_attribute(make_site: SiteFactory) -> None:
    """Flask-Login may name users by another attribute than 'get_id()', which isn't a key."""
    site = make_site("files", "postgresql")
    site.User.number = lambda self: str(40_000 + self.id)
    site.login_manager.id_attribute = "number"
    site.login_manager.user_loader(lambda name: site.load_user(str(int(name) - 40_000)))
    firefox = site.browser()
    firefox.login()
    with site.count_statements() as statements:
        assert firefox.is_signed_in
    assert len(statements) == 1


@pytest.mark.parametrize(
    "model", [None, uuid_keys, small_keys, small_keys_on_postgresql, keys_of_the_apps_own_type]
)
@pytest.mark.parametrize(
    "name",
    [
        "2",
        "40000",
        "99999999999",
        "-99999999999",
        "abc",
        "1_0",
        " 1",
        "\N{FULLWIDTH DIGIT ONE}",
        "",
        "1.0",
    ],
)
def test_session_that_names_another_user(make_site: SiteFactory, name: str, model: t.Any) -> None:
    """The session ends without an error, even if the database can't look up such a key."""
    site = make_site("files", "postgresql", **({} if model is None else {"model": model}))

    @site.app.post("/become")
    def become() -> str:
        session["_user_id"] = name
        return ""

    firefox, bobs = site.browser("Firefox"), site.browser("Edge")
    firefox.login()
    bobs.login("bob")
    assert firefox.is_signed_in
    firefox.post("/become")
    assert firefox.get("/me").json == {"name": None, "rejected": "unknown"}
    assert bobs.is_signed_in


@pytest.mark.parametrize("key", [77, None])
def test_new_user_who_is_merged(site: Site, key: int | None) -> None:
    """'merge' stores a user who is in no row yet, and what is stored since counts."""

    @site.app.post("/sync")
    def sync() -> str:
        user = site.User(id=key, name="carl", password_hash="hash of carl")
        merged = site.db.session.merge(user)
        site.db.session.commit()
        login_user(merged)
        return ""

    carl, phone = site.browser("Firefox"), site.browser("Phone")
    carl.post("/sync")
    phone.login("carl")
    assert carl.name_shown == "carl"
    carl.post("/password", password="new")
    assert carl.name_shown == "carl"
    assert phone.rejected == "password_changed"


def test_eager_relationship_is_loaded_whole(make_site: SiteFactory) -> None:
    """26: the user that the check has loaded is complete."""
    site = make_site(model=eager_relationship)
    tag = site.User.tags.property.mapper.class_

    @site.app.get("/tags")
    def tags() -> dict[str, int]:
        from flask_login import current_user

        return {"tags": len(current_user.tags)}

    firefox = site.browser("Firefox")
    firefox.login()
    with site.context():
        site.user("ann").tags = [tag(), tag(), tag()]
        site.db.session.commit()
    assert firefox.get("/tags").json == {"tags": 3}


@pytest.mark.table
def test_schema(make_site: SiteFactory, databases: t.Any) -> None:
    """26: the table is in the schema of the users' table."""
    engine = sa.create_engine(databases("postgresql"))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE SCHEMA people"))
    site = make_site("files", "postgresql", model=other_schema)
    assert site.sessions is not None
    with site.context():
        assert site.sessions.UserSession.__table__.schema == "people"
        assert site.tombstone.__table__.schema == "people"
    check_site(site)
    with site.context():
        site.db.session.remove()
        site.db.drop_all()
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA people CASCADE"))
    engine.dispose()


@pytest.mark.table
@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
def test_bind(make_site: SiteFactory, databases: t.Any, tmp_path: t.Any, kind: str) -> None:
    """26: the table is in the users' database, not in the app's other one."""

    def model(db: SQLAlchemy) -> type[t.Any]:
        return make_class(
            db,
            id=sa_orm.mapped_column(sa.Integer, primary_key=True),
            __bind_key__="people",
        )

    people = databases(kind) or f"sqlite:///{tmp_path}/people.db"
    site = make_site(model=model, SQLALCHEMY_BINDS={"people": people})
    with site.context():
        assert site.sessions.UserSession.__table__.metadata is site.db.metadatas["people"]
        assert site.tombstone.__table__.metadata is site.db.metadatas["people"]
    check_site(site)
    with site.context():
        site.db.session.remove()
        site.db.drop_all()


@pytest.mark.table
@pytest.mark.parametrize("given", [False, True])
def test_imported_after_init_app(make_site: SiteFactory, given: bool) -> None:
    """26: the table is defined together with the user model."""
    site = make_site(init=False)
    db = SQLAlchemy()
    site.app.extensions.pop("sqlalchemy")
    if given:
        site.sessions = SessionRegistry(db=db)
    else:
        db.init_app(site.app)
        site.db = db
    site.sessions.init_app(site.app)
    assert not db.metadata.tables
    site.User = make_class(db, id=sa_orm.mapped_column(sa.Integer, primary_key=True))
    assert set(db.metadata.tables) == {"account", "user_sessions", "user_session_tombstones"}
    if given:
        db.init_app(site.app)
        site.db = db
    with site.context():
        site.db.create_all()
        site.db.session.add(site.User(name="ann", password_hash="x"))
        site.db.session.commit()
    check_site(site)


def test_imported_in_an_app_context(make_site: SiteFactory) -> None:
    """26, 57: Flask-SQLAlchemy comes after us, and the models in the first app context."""
    site = make_site(init=False)
    site.app.extensions.pop("sqlalchemy")
    site.sessions.init_app(site.app)
    site.db = SQLAlchemy()
    site.db.init_app(site.app)
    with site.context():
        site.User = make_class(site.db, id=sa_orm.mapped_column(sa.Integer, primary_key=True))
        site.db.create_all()
        site.db.session.add(site.User(name="ann", password_hash="x"))
        site.db.session.commit()
    check_site(site)


def test_imported_before_and_set_up_after(make_site: SiteFactory) -> None:
    """26, 57: the model exists, and Flask-SQLAlchemy is set up on the app after us."""
    site = make_site(init=False)
    site.app.extensions.pop("sqlalchemy")
    site.db = SQLAlchemy()
    site.User = make_class(site.db, id=sa_orm.mapped_column(sa.Integer, primary_key=True))
    site.sessions.init_app(site.app)
    assert "user_sessions" not in site.db.metadata.tables
    site.db.init_app(site.app)
    with site.context():
        site.db.create_all()
        site.db.session.add(site.User(name="ann", password_hash="x"))
        site.db.session.commit()
    check_site(site)


def test_relationship_to_a_model_that_is_imported_later(make_site: SiteFactory) -> None:
    """26: defining the table doesn't configure mappers that are still incomplete."""
    site = make_site(init=False)
    site.sessions = SessionRegistry()
    db = site.db = SQLAlchemy()
    site.app.extensions.pop("sqlalchemy")
    db.init_app(site.app)
    site.User = make_class(
        db,
        id=sa_orm.mapped_column(sa.Integer, primary_key=True),
        tags=sa_orm.relationship("Tag"),
    )
    site.sessions.init_app(site.app)
    tag = tag_class(db)
    with site.context():
        db.create_all()
        db.session.add(site.User(name="ann", password_hash="x"))
        db.session.commit()
    check_site(site)
    assert tag.__name__ == "Tag"


@pytest.mark.table
def test_custom_session_model(make_site: SiteFactory) -> None:
    """'session_model' can be another table, with more columns and another name for the key."""
    site = make_site(init=False)
    db = site.db

    class Visit(UserSessionMixin, db.Model):  # type: ignore[name-defined]
        __tablename__ = "visits"
        user_id: sa_orm.Mapped[int] = sa_orm.mapped_column(
            "who", sa.ForeignKey("account.id", ondelete="SET NULL"), index=True
        )
        city: sa_orm.Mapped[str] = sa_orm.mapped_column(sa.String(50), server_default="nowhere")

    site.sessions = SessionRegistry(user_model=site.User, session_model=Visit)
    site.sessions.init_app(site.app)
    with site.context():
        db.create_all()
        assert "user_sessions" not in db.metadata.tables
        db.session.add(site.User(name="ann", password_hash="x"))
        db.session.commit()
        assert site.sessions.UserSession is Visit
    check_site(site)
    assert site.rows()[0].city == "nowhere"
    firefox = site.browser()
    firefox.login()
    for password in ("one", "two", "three"):
        firefox.post("/password", password=password)
    assert firefox.is_signed_in


@pytest.mark.table
def test_session_model_that_insists_on_a_user(make_site: SiteFactory) -> None:
    """Adoption works with it: blocks aren't user sessions, and need no user."""
    site = make_site(init=False, SESSION_REGISTRY_UNREGISTERED="adopt")

    class Visit(UserSessionMixin, site.db.Model):  # type: ignore[name-defined]
        __tablename__ = "visits"
        user_id: sa_orm.Mapped[int] = sa_orm.mapped_column(sa.ForeignKey("account.id"))

    site.sessions = SessionRegistry(site.app, session_model=Visit)
    with site.context():
        site.db.create_all()
        site.db.session.add(site.User(name="ann", password_hash="x"))
        site.db.session.commit()
    site.browser().login()
    with site.context():
        assert site.sessions.revoke_all(site.user("ann")) == 1
        site.db.session.commit()
        assert site.registry.adoption.records.is_adoption_blocked(1)
        assert not site.registry.adoption.records.is_adoption_blocked(2)
    assert len(site.rows()) == 1


@pytest.mark.table
def test_session_model_without_user_id(make_site: SiteFactory) -> None:
    """A class without 'user_id' is refused at start-up."""
    site = make_site(init=False)

    class Visit(UserSessionMixin, site.db.Model):  # type: ignore[name-defined]
        __tablename__ = "visits"

    with pytest.raises(ConfigurationError, match="has no 'user_id'"):
        SessionRegistry(site.app, session_model=Visit)


@pytest.mark.table
@pytest.mark.parametrize("session_model", [int, "UserSession"])
def test_invalid_session_model(make_site: SiteFactory, session_model: t.Any) -> None:
    """An object that isn't built on the mixin is refused at start-up."""
    site = make_site(init=False)
    with pytest.raises(ConfigurationError, match="Build it on 'UserSessionMixin'"):
        SessionRegistry(site.app, session_model=session_model)
