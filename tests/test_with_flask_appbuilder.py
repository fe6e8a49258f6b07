"""Flask-AppBuilder's own pages, with the registry's default settings (SCENARIO 59)."""

from __future__ import annotations

import typing as t
import warnings

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from flask_login import current_user

from flask_session_registry import SessionRegistry

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from flask_appbuilder import AppBuilder
    from flask_appbuilder.security.sqla.models import User
    from flask_appbuilder.utils.legacy import get_sqla_class

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

OLD, NEW = "old password", "new password"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    """Return one app for all tests: Flask-AppBuilder takes seconds to store its permissions."""
    folder = tmp_path_factory.mktemp("builder")
    app = Flask("builder")
    app.config.update(
        SECRET_KEY="only for tests",
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{folder}/site.db",
        SQLALCHEMY_ENGINE_OPTIONS={"poolclass": sa.NullPool},
        WTF_CSRF_ENABLED=False,
        FAB_PASSWORD_HASH_METHOD="pbkdf2:sha256:1",
        RATELIMIT_ENABLED=False,
        SESSION_REGISTRY_AUTO_PRUNE=None,
    )
    db = get_sqla_class()()
    db.init_app(app)

    @app.get("/me")
    def me() -> dict[str, t.Any]:
        return {"name": current_user.username if current_user.is_authenticated else None}

    with app.app_context():
        builder = AppBuilder(app, db.session)
        # Its users are mapped on a base of its own.
        SessionRegistry(app, user_model=builder.sm.user_model)
        db.create_all()
        for name, role in (
            ("ann", "Public"),
            ("bob", "Public"),
            ("root", "Admin"),
            ("boss", "Admin"),
        ):
            found = builder.sm.find_role(role)
            builder.sm.add_user(name, name, "X", f"{name}@example.com", found, password=OLD)
    return app


def sign_in(app: Flask, name: str, password: str = OLD) -> FlaskClient:
    client = app.test_client()
    client.post("/login/", data={"username": name, "password": password})
    assert name_shown(client) == name
    return client


def name_shown(client: FlaskClient) -> t.Any:
    return client.get("/me").json["name"]


def copy_of(client: FlaskClient) -> FlaskClient:
    copy = client.application.test_client()
    copy.set_cookie("session", client.get_cookie("session").value)
    return copy


def test_own_password(app: Flask) -> None:
    """59: "reset my password" ends the other sessions and all copies. This browser stays."""
    firefox, chrome = sign_in(app, "root"), sign_in(app, "root")
    copy = copy_of(chrome)
    form = {"password": NEW, "conf_password": NEW}
    assert chrome.post("/resetmypassword/form", data=form).status_code == 302
    assert [name_shown(client) for client in (chrome, firefox, copy)] == ["root", None, None]
    assert name_shown(sign_in(app, "root", NEW)) == "root"


def test_password_of_another(app: Flask) -> None:
    """7, 59: an administrator's "reset password" ends that user's sessions, and no others."""
    firefox, chrome = sign_in(app, "ann"), sign_in(app, "boss")
    with app.app_context():
        db = app.extensions["sqlalchemy"]
        key = db.session.scalar(sa.select(User.id).filter_by(username="ann"))
    form = {"password": NEW, "conf_password": NEW}
    assert chrome.post(f"/resetpassword/form?pk={key}", data=form).status_code == 302
    assert [name_shown(client) for client in (chrome, firefox)] == ["boss", None]


def test_logout(app: Flask) -> None:
    """19, 59: a copy of the cookie is invalid."""
    chrome = sign_in(app, "bob")
    copy = copy_of(chrome)
    chrome.get("/logout/")
    assert [name_shown(client) for client in (chrome, copy)] == [None, None]
