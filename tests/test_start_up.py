"""Missing or misordered parts are reported before the app serves a request."""

from __future__ import annotations

import logging
import subprocess
import sys
import typing as t
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from cachelib import SimpleCache
from flask import Flask, has_app_context
from flask_login import LoginManager, UserMixin
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy
from site_under_test import user_class

from flask_session_registry import ConfigurationError, SessionRegistry


@pytest.fixture
def app() -> Flask:
    app = Flask("starts")
    app.config.update(SECRET_KEY="only for tests", SQLALCHEMY_DATABASE_URI="sqlite://")
    return app


def without_flask_login(app: Flask) -> t.Any:
    model = user_class(SQLAlchemy(app))
    SessionRegistry(app)
    return model


def without_flask_sqlalchemy(app: Flask) -> t.Any:
    LoginManager(app)
    SessionRegistry(app)


def with_flask_session_after_it(app: Flask) -> t.Any:
    model = without_flask_login(app)
    LoginManager(app)
    app.config.update(SESSION_TYPE="cachelib", SESSION_CACHELIB=SimpleCache())
    Session(app)
    return model


def without_user_model(app: Flask) -> t.Any:
    db = SQLAlchemy(app)
    LoginManager(app)
    SessionRegistry(app)
    return db


FAULTS: dict[Callable[[Flask], t.Any], str] = {
    without_flask_login: "Flask-Login is not set up on this app.",
    without_flask_sqlalchemy: "Flask-SQLAlchemy is not set up on this app.",
    with_flask_session_after_it: "Move 'Session(app)' before its 'init_app'.",
    without_user_model: "No mapped class is a Flask-Login user. Import your user model",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_first_app_context(app: Flask, fault: Callable[[Flask], t.Any]) -> None:
    """58: it raises and leaves nothing behind, and does so again until the fault is fixed."""
    made = fault(app)
    for _ in range(2):
        with pytest.raises(Exception) as error, app.app_context():  # noqa: PT011
            pass
        # Flask 3.2 wraps exceptions from popping a context in groups.
        told: t.Any = error.value
        while hasattr(told, "exceptions"):
            (told,) = told.exceptions
        assert isinstance(told, ConfigurationError)
        assert FAULTS[fault] in str(told)
        assert not has_app_context()
    assert made is None or made


@pytest.mark.parametrize("fault", FAULTS)
def test_first_request(app: Flask, fault: Callable[[Flask], t.Any]) -> None:
    """58: no request is served, whether an app context was pushed before it or not."""
    made = fault(app)
    asked = []

    @app.get("/")
    def index() -> str:
        asked.append(1)
        return "served"

    for _ in range(2):
        answer = app.test_client().get("/")
        assert (answer.status_code, asked) == (500, [])
    app.testing = True
    with pytest.raises(ConfigurationError) as error:
        app.test_client().get("/")
    assert FAULTS[fault] in str(error.value)
    assert not has_app_context()
    assert made is None or made


def test_models_that_are_imported_within_it(app: Flask) -> None:
    """58: many factories import them there."""
    db = without_user_model(app)
    with app.app_context():
        model = user_class(db)
    with app.app_context():
        assert "user_sessions" in db.metadata.tables
    assert model.__name__ == "User"


def test_invalid_models(app: Flask) -> None:
    """58: nor does it hide that they are invalid."""
    db = without_user_model(app)

    def use() -> None:
        with app.app_context():
            columns = {"__tablename__": "u", "id": db.Column(db.Integer, primary_key=True)}
            type("User", (UserMixin, db.Model), columns)

    with pytest.raises(ConfigurationError, match="maps no column"):
        use()
    assert not has_app_context()


def test_error_within_it(app: Flask) -> None:
    """58: an error of the app itself isn't hidden by what is missing."""
    without_user_model(app)
    with pytest.raises(KeyError), app.app_context():
        raise KeyError


def test_all_is_well(app: Flask) -> None:
    """58: nothing is checked again."""
    model = without_flask_login(app)
    LoginManager(app)
    with app.app_context():
        pass
    del app.login_manager
    with app.app_context():
        pass
    assert model.__name__ == "User"


@pytest.mark.parametrize("fault", FAULTS)
def test_other_command(
    app: Flask, fault: Callable[[Flask], t.Any], caplog: pytest.LogCaptureFixture
) -> None:
    """58: it runs, and the log says what is wrong. A migration without the table is an example."""
    made = fault(app)

    @app.cli.command("other")
    def other() -> None:
        click.echo("done")

    with caplog.at_level(logging.ERROR, logger="flask_session_registry"):
        result = app.test_cli_runner().invoke(args=["other"])
    assert (result.exit_code, result.stdout) == (0, "done\n")
    (record,) = caplog.records
    assert FAULTS[fault] in record.getMessage()
    assert made is None or made


FACTORY = """
from flask import Flask
from flask_login import LoginManager
from flask_sqlalchemy import SQLAlchemy
from flask_session_registry import SessionRegistry

def create_app():
    app = Flask(__name__)
    app.config.update(SECRET_KEY="x", SQLALCHEMY_DATABASE_URI="sqlite://")
    db = SQLAlchemy(app)
    %s
    SessionRegistry(app)
    with app.app_context():
        db.create_all()
    return app
"""


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", "Flask-Login is not set up on this app."),
        ("LoginManager(app)", "No mapped class is a Flask-Login user."),
    ],
)
def test_flask_run(tmp_path: Path, line: str, sentence: str) -> None:
    """58: 'flask run' doesn't even start if the factory uses the app."""
    (tmp_path / "starts.py").write_text(FACTORY % line)
    answer = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "starts", "run", "--port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode != 0
    assert sentence in answer.stderr
    assert "Running on" not in answer.stderr
