"""The application factory.

Not included: limiting password guesses (Flask-Limiter), and refusing common passwords (OWASP ASVS
5.0, 6.2.4).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask_mail import Mail
from flask_session import Session
from sqlalchemy.engine.interfaces import DBAPIConnection

from flask_session_registry import session_registered

from . import account, auth, cli, config, errors, headers
from .extensions import csrf, db, login_manager, migrate, sessions

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


def create_app(settings: Mapping[str, Any] | None = None) -> Flask:
    """Create an app; ``settings`` override the environment."""
    folder = os.environ.get("ACCOUNTS_INSTANCE")
    app = Flask(__name__, instance_path=str(Path(folder).resolve()) if folder else None)
    Path(app.instance_path).mkdir(mode=0o700, parents=True, exist_ok=True)
    app.config.update(config.from_environ(Path(app.instance_path)))
    app.config.update(settings or {})

    # Behind a proxy, wrap 'app.wsgi_app' in Werkzeug's ProxyFix, or all visitors have its address.
    db.init_app(app)
    _prepare_sqlite(app)
    migrate.init_app(app, db, directory=str(MIGRATIONS), render_as_batch=True)
    login_manager.init_app(app)
    csrf.init_app(app)
    Mail(app)
    Session(app)
    sessions.init_app(app)
    session_registered.connect(auth.tell_of_new_device, app)

    app.register_blueprint(auth.blueprint)
    app.register_blueprint(account.blueprint)
    app.register_blueprint(sessions.blueprint, url_prefix="/account/sessions")
    app.cli.add_command(cli.seed)
    app.after_request(headers.protect)
    errors.register(app)
    return app


def _prepare_sqlite(app: Flask) -> None:
    """Make SQLite enforce foreign keys, and let readers work beside writers."""
    with app.app_context():
        engine = db.engine
    if engine.dialect.name != "sqlite":
        return

    @sa.event.listens_for(engine, "connect")
    def connected(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()
