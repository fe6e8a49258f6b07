"""A pytest plugin for Flask-Login's own tests: adds the registry to each of their apps.

Flask-Login's test users are plain objects. The plugin maps their class and adds rows of them to
each app's database. The objects that sign in stay as they are: built by hand, with their keys set.
"""

from __future__ import annotations

import functools
import os
import typing as t

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Map the tests' user classes, which are imported by now."""
    import sqlalchemy as sa
    from flask import Flask
    from flask_login import LoginManager
    from flask_sqlalchemy import SQLAlchemy

    from flask_session_registry import SessionRegistry

    class Key(sa.types.UserDefinedType[t.Any]):
        """A key that is stored unchanged: a whole number or text."""

        cache_ok = True

        def get_col_spec(self, **_: t.Any) -> str:
            return "BLOB"

    (module,) = {item.getparent(pytest.Module).obj for item in items}
    db = SQLAlchemy()
    table = sa.Table(
        "users",
        db.metadata,
        sa.Column("id", Key(), primary_key=True),
        sa.Column("name", sa.String(50)),
        sa.Column("active", sa.Boolean()),
        sa.Column("password", sa.String(50)),
    )
    db.Model.registry.map_imperatively(module.User, table)
    rows = [{**vars(user), "password": "a hash"} for user in module.USERS.values()]
    for user in module.USERS.values():
        # Again, because SQLAlchemy doesn't know objects created before their class was mapped.
        user.__init__(**vars(user))
    init_app = LoginManager.init_app

    @functools.wraps(init_app)
    def init_app_and_registry(
        self: LoginManager, app: Flask, *args: t.Any, **kwargs: t.Any
    ) -> None:
        init_app(self, app, *args, **kwargs)
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        db.init_app(app)
        if "WITH_REGISTRY" in os.environ:
            SessionRegistry(app)
        with app.app_context():
            db.create_all()
            db.session.execute(table.insert(), rows)
            db.session.commit()

    LoginManager.init_app = init_app_and_registry
