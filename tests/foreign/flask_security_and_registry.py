"""Flask-Security-Too's own tests, without the registry and with it.

``python3 tests/foreign/flask_security_and_registry.py`` downloads its source, runs its tests of
everything that has to do with passwords, logins and tokens twice, and compares. In the second run
each of its apps on Flask-SQLAlchemy has the registry, with default settings: then this file is a
plugin of pytest.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tarfile
import typing as t
import xml.etree.ElementTree as ElementTree
from pathlib import Path

#: The same project, under the name that its source is published by.
SOURCE = "Flask-Security==5.9.2"
NEEDS = [
    *("argon2-cffi", "asgiref", "bcrypt", "cryptography", "flit_core", "freezegun", "Flask-Babel"),
    *("Flask-Mail", "nh3", "phonenumberslite", "pytest", "pytest-xdist", "qrcode", "webauthn"),
    "zxcvbn",
]
FILES = [
    *("async", "basic", "change_email", "changeable", "confirmable", "csrf", "misc"),
    *("recoverable", "registerable", "tokens", "trackable", "two_factor", "unified_signin"),
]
#: Their tests that come out otherwise, and why that is right.
EXPECTED = {
    "tests.test_recoverable::test_auth_csrf": "whoever resets their own password stays signed in",
    "tests.test_recoverable::test_recoverable_auth_json": "the same",
    "tests.test_basic::test_token_query": "counts the statements of a login, which has a row now",
}


def main() -> int:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import run

    package = SOURCE.replace("Flask-Security", "Flask-Security-Too")
    programs = run.environment(
        "flask-security", run.pythons()[1], "-e", str(run.ROOT), package, "SQLAlchemy>=2.1", *NEEDS
    )
    folder = run.HOME / "flask-security-source"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = ["--no-deps", "--no-build-isolation", "--no-binary", "Flask-Security"]
    run.pip(programs, "download", *options, "--dest", str(folder), SOURCE)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as source:
        source.extractall(folder, filter="data")
    root = next(path for path in folder.iterdir() if path.is_dir())
    # What is tested is what is installed.
    shutil.rmtree(root / "flask_security")
    without, with_registry = (outcomes(programs, root, plugin=plugin) for plugin in (False, True))
    differ = {name for name in without if without[name] != with_registry.get(name)}
    for name in sorted(differ):
        print(f"{name}: {without[name]}, with the registry {with_registry.get(name)}:", end=" ")
        print(EXPECTED.get(name, "NOT EXPECTED"))
    return int(not without or differ != set(EXPECTED))


def outcomes(programs: Path, root: Path, *, plugin: bool) -> dict[str, str]:
    """The name of each test, and how it ended."""
    report = root / "report.xml"
    command = [str(programs / "python"), "-m", "pytest", "-q", "-n", str(os.cpu_count() or 1)]
    command += ["-o", "addopts=--strict-markers", f"--junit-xml={report}"]
    # The users of all others are not in Flask-SQLAlchemy.
    command += ["--tb=no", "-k", "not (cl-mongo or cl-peewee or cl-sqla-session or cl-fsqlalite)"]
    command += ["-p", Path(__file__).stem] if plugin else []
    command += [f"tests/test_{name}.py" for name in FILES]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run(command, cwd=root, env=environment, check=False)
    return {
        f"{case.get('classname')}::{case.get('name')}": ending.tag
        if ending is not None
        else "passed"
        for case in ElementTree.parse(report).iter("testcase")
        for ending in [next((e for e in case if e.tag in ("failure", "error", "skipped")), None)]
    }


def install() -> None:
    """Let each app that Flask-Security is set up on have the registry."""
    from flask import Flask
    from flask_security import Security
    from flask_sqlalchemy import SQLAlchemy

    from flask_session_registry import SessionRegistry

    init_app = Security.init_app

    @functools.wraps(init_app)
    def init_app_and_registry(self: Security, app: Flask, *args: t.Any, **kwargs: t.Any) -> None:
        init_app(self, app, *args, **kwargs)
        db = getattr(self.datastore, "db", None)
        is_new = "session_registry" not in app.extensions
        if is_new and isinstance(db, SQLAlchemy) and app.extensions.get("sqlalchemy") is db:
            SessionRegistry(app)
            with app.app_context():
                db.create_all()

    Security.init_app = init_app_and_registry


if __name__ == "__main__":
    sys.exit(main())
else:
    install()
