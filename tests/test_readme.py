"""Run every example of the README (SCENARIO 60)."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import types
import typing as t
import venv
from pathlib import Path

import docutils.core
import docutils.nodes
import flask_babel
import pytest
import servers
import sqlalchemy as sa
from flask import Flask
from flask.sessions import SessionInterface

from flask_session_registry import SessionRegistry, __version__
from flask_session_registry._config import PREFIX, SETTINGS
from flask_session_registry._store import backends as entries

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.rst").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(
        rf"^( *)\.\. code-block:: {language}\n\n((?:(?:\1 {{4}}.*)?\n)+)",
        README,
        flags=re.MULTILINE,
    )
    return [textwrap.dedent(block).strip() + "\n" for _, block in found]


def commands() -> list[str]:
    return [line[2:] for block in blocks("console") for line in block.splitlines()]


def test_is_well_formed() -> None:
    """docutils reports no problem."""
    document = docutils.core.publish_doctree(
        README.replace("code-block::", "code::"),
        settings_overrides={"halt_level": 2, "syntax_highlight": "none"},
    )
    titles = [str(node.astext()) for node in document.findall(docutils.nodes.title)]
    assert "What is promised" in titles


def test_every_setting_is_explained() -> None:
    """The README names all existing settings, and no others."""
    named = set(re.findall(rf"``({PREFIX}[A-Z_]+)``", README))
    assert named == {PREFIX + setting.name for setting in SETTINGS}
    assert all(setting.help for setting in SETTINGS)


def test_every_claim_has_its_test() -> None:
    """Each test that the README refers to exists."""
    claims = set(re.findall(r"``(\w+)\.py::(test_\w+)``", README))
    assert len(claims) > 10
    for module, name in claims:
        assert f"def {name}(" in (ROOT / "tests" / f"{module}.py").read_text(), (module, name)
    requirements = re.findall(r"^7\.\d\.\d", README, flags=re.MULTILINE)
    assert len(requirements) == len(set(requirements)) == 19


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick start, and everything shown after it, works on one app."""
    monkeypatch.setenv("FLASK_SQLALCHEMY_DATABASE_URI", f"sqlite:///{tmp_path}/app.db")
    module = types.ModuleType("readme_app")
    monkeypatch.setitem(sys.modules, "readme_app", module)
    names = vars(module)
    for block in blocks("python"):
        exec(compile(block, "README.rst", "exec"), names)
    app, db, user_class = names["create_app"](), names["db"], names["User"]
    with app.app_context():
        db.create_all()
        user = user_class(email="ann@example.com")
        user.set_password("old")
        db.session.add(user)
        db.session.commit()

    names["add_page"](app)
    # Flask-Admin needs it if Flask-Babel is installed, as it is here.
    flask_babel.Babel(app)
    names["add_admin_pages"](app)

    def find() -> t.Any:
        return db.session.scalar(sa.select(user_class))

    @app.route("/do/<name>", methods=["POST"])
    def do(name: str) -> t.Any:
        arguments = {"rehash": lambda: (find(), "new"), "lock_out": lambda: (find(),)}
        rows = names["sessions"].active(find())
        arguments["end_one"] = lambda: (str(rows[-1].id),)
        arguments["first_step"] = lambda: (find(), "new")
        return {"answer": names[name](*arguments.get(name, tuple)())}

    firefox, chrome, phone = (app.test_client() for _ in range(3))
    form = {"email": "ann@example.com", "password": "old", "remember": "yes"}
    for client in (firefox, chrome, phone):
        assert client.post("/sign-in", data=form).text == "Signed in."
    assert chrome.post("/sign-in", data=form | {"password": "x"}).status_code == 403
    devices = chrome.post("/do/where_you_are_signed_in").json["answer"]
    assert [device["this one"] for device in devices].count(True) == 1
    assert chrome.post("/account/password", data={"old": "x", "new": "y"}).status_code == 403
    everybody = chrome.get("/admin/usersession/").text
    assert everybody.count("127.0.0.1") == 3
    found = chrome.get("/account/sessions/", headers={"Accept": "application/json"}).json
    assert [one["is_current"] for one in found["sessions"]] == [True, False, False]
    chrome.post("/account/password", data={"old": "old", "new": "new"})
    answers = [client.get("/").text for client in (firefox, chrome, phone)]
    assert answers == ["Nobody", "ann@example.com", "Nobody"]
    chrome.post("/do/rehash")
    assert chrome.get("/").text == "ann@example.com"
    firefox.post("/sign-in", data=form | {"password": "new"})
    chrome.post("/do/end_the_others")
    assert [client.get("/").text for client in (firefox, chrome)] == ["Nobody", "ann@example.com"]
    assert chrome.post("/do/lock_out").json == {"answer": 1}
    assert chrome.get("/").text == "Nobody"
    chrome.post("/sign-in", data=form | {"password": "new"})
    assert chrome.post("/do/end_one").json == {"answer": True}
    assert chrome.get("/").text == "Nobody"
    with app.app_context():
        names["test_index"](app, find())
        assert names["make_session_model"](db).__tablename__ == "devices"
    assert firefox.post("/do/first_step").json == {"answer": "Now the code, please."}
    firefox.post("/do/second_step")
    assert firefox.get("/").text == "ann@example.com"
    check_stores(names)
    check_homes(names)
    with app.app_context():
        db.engine.dispose()


def check_homes(names: dict[str, t.Any]) -> None:
    """Check the example for records in Redis."""
    app = Flask("elsewhere")
    app.config.update(SECRET_KEY="only for tests", SQLALCHEMY_DATABASE_URI="sqlite://")
    names["keep_records_in_redis"](app, servers.redis_url())
    SessionRegistry(app)
    assert app.extensions["session_registry.app"].redis is not None


def check_stores(names: dict[str, t.Any]) -> None:
    """Check the examples for a Redis Cluster, and for a custom store."""
    app = Flask("cluster")
    app.config.update(SECRET_KEY="only for tests", SQLALCHEMY_DATABASE_URI="sqlite://")
    cluster = servers.redis_cluster()
    with pytest.warns(RuntimeWarning, match="No valid Redis instance"):
        names["use_cluster"](app, cluster)
    assert t.cast(t.Any, app.session_interface).client is cluster
    cluster.close()

    class Interface(SessionInterface):
        def __init__(self) -> None:
            self.entries = {"kept": 1}

    names["use_own_store"](Interface)
    interface = Interface()
    store = entries.store_of(interface)
    assert store is not None
    key = store.key(interface, "a")
    assert "a" not in {key}
    interface.entries[key] = 2
    entries.Entries(interface, store).delete([key, "gone"])
    assert interface.entries == {"kept": 1}
    entries._registered.clear()


def run(command: str, folder: Path, programs: Path | None = None, *, exit_code: int = 0) -> str:
    """Run a command of the README in a folder with the README's app."""
    words = shlex.split(command)
    path = str(programs or Path(sys.executable).parent) + os.pathsep + os.environ["PATH"]
    answer = subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": path},
        check=False,
    )
    assert answer.returncode == exit_code, answer.stderr
    return answer.stdout + answer.stderr


def seed(folder: Path, programs: Path) -> None:
    code = (
        "from app import create_app, db, User\n"
        "app = create_app()\n"
        "with app.app_context():\n"
        "    for id, name in ((1, 'ann'), (17, 'bob'), (42, 'eve')):\n"
        "        user = User(id=id, email=f'{name}@example.com')\n"
        "        user.set_password('old')\n"
        "        db.session.add(user)\n"
        "    db.session.commit()\n"
        "clients = [app.test_client() for _ in range(4)]\n"
        "for client, name in zip(clients, ('ann', 'ann', 'bob', 'eve')):\n"
        "    form = {'email': f'{name}@example.com', 'password': 'old'}\n"
        "    assert client.post('/sign-in', data=form).status_code == 200\n"
        "new = {'old': 'old', 'new': 'new'}\n"
        "assert clients[0].post('/account/password', data=new).status_code == 200\n"
        "print([client.get('/').text for client in clients])\n"
    )
    answer = subprocess.run(
        [str(programs / "python"), "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stdout.strip() == (
        "['ann@example.com', 'Nobody', 'bob@example.com', 'eve@example.com']"
    ), answer.stderr


def check_commands(folder: Path, programs: Path) -> None:
    (folder / "app.py").write_text(blocks("python")[0])
    flask = [command for command in commands() if command.startswith("flask --app app")]
    migrations = [command for command in flask if " db " in command]
    revocations = [command for command in flask if "revoke-sessions" in command]
    others = [command for command in flask if " sessions " in command]
    assert len(migrations) + len(revocations) + len(others) == len(flask) == 12
    for command in migrations:
        run(command, folder, programs)
    seed(folder, programs)
    answers = [run(command, folder, programs) for command in revocations]
    assert "1 session ended" in answers[0]
    assert "2 sessions ended" in answers[1]
    assert "0 sessions ended" in answers[2]
    assert "0 sessions would end" in answers[3]
    assert "0 sessions would end" in answers[4]
    assert "0 sessions ended" in answers[5]
    listed, examined, pruned = others
    assert run(listed, folder, programs).count("stolen laptop") == 1
    assert "'SECRET_KEY' is a placeholder" in run(examined, folder, programs, exit_code=1)
    assert "0 sessions had expired" in run(pruned, folder, programs)


def test_flask_commands(tmp_path: Path) -> None:
    """The migration and the command line work on the app of the quick start."""
    check_commands(tmp_path, Path(sys.executable).parent)


def files_of(package: Path) -> set[str]:
    paths = package.rglob("*")
    return {str(path.relative_to(package)) for path in paths if "__pycache__" not in path.parts}


@pytest.mark.once
def test_wheel_with_nothing_else(tmp_path: Path) -> None:
    """60: the built wheel, installed without anything else, runs the quick start."""
    pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.cfg", "README.rst", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    package = ROOT / "flask_session_registry"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, source / package.name, ignore=ignored)
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = str(environment / "bin" / "python")
    subprocess.run(
        [python, *pip, "wheel", "--no-deps", "-w", str(tmp_path), str(source)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([python, *pip, "install", str(wheel)], check=True)
    listed = subprocess.run(
        [python, "-c", "import flask_session_registry as r; print(r.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    installed = Path(listed.stdout.strip()).parent
    assert installed.is_relative_to(environment)
    assert files_of(installed) == files_of(package)
    page = subprocess.run(
        [python, "-c", "import flask_session_registry as r; r.SessionRegistry().blueprint"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Install 'Flask-Session-Registry[web]'." in page.stderr
    folder = tmp_path / "app"
    folder.mkdir()
    check_commands(folder, environment / "bin")


def test_version_is_that_of_the_project() -> None:
    """It is written in one place only, pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{__version__}"\n' in text


def test_set_up_commands_are_there() -> None:
    """The two set-up commands name programs in the repository."""
    files = [command.split()[1] for command in commands() if command.startswith("python3 ")]
    assert files == ["examples/accounts/run.py", "tests/run.py"]
    assert all((ROOT / file).is_file() for file in files)


def test_tested_package_is_the_wheel() -> None:
    """If the wheel is under test, the checkout isn't imported."""
    import flask_session_registry

    is_checkout = ROOT in Path(flask_session_registry.__file__).parents and (
        ".tests" not in Path(flask_session_registry.__file__).parts
    )
    assert is_checkout is ("TEST_WHEEL" not in os.environ)
