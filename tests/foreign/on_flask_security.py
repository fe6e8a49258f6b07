"""A pytest plugin for Flask-Security-Too's own tests: adds the registry to each of their apps."""

from __future__ import annotations

import functools
import os
import typing as t

if t.TYPE_CHECKING:
    import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Set up the registry together with Flask-Security, on a ``db`` that the registry can find."""
    from flask import Flask
    from flask_security import Security
    from flask_sqlalchemy_lite import SQLAlchemy as SQLAlchemyLite

    from flask_session_registry import SessionRegistry

    # Its tests ignore Flask-Security's warnings only where its own modules cause them.
    config.addinivalue_line("filterwarnings", f"ignore:::{__name__}")
    init_app = Security.init_app

    @functools.wraps(init_app)
    def init_app_and_registry(self: Security, app: Flask, *args: t.Any, **kwargs: t.Any) -> None:
        init_app(self, app, *args, **kwargs)
        db = getattr(self.datastore, "db", None)
        is_set_up = app.extensions.get("sqlalchemy") is db and db is not None
        if is_set_up and "session_registry" not in app.extensions:
            # Lite has no models of its own, so other tests' models would be taken for this app's.
            is_lite = isinstance(db, SQLAlchemyLite)
            SessionRegistry(app, user_model=self.datastore.user_model if is_lite else None)
            with app.app_context():
                self.datastore.user_model.metadata.create_all(db.engine)

    if "WITH_REGISTRY" in os.environ:
        Security.init_app = init_app_and_registry
