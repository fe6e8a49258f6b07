"""Run other libraries' own tests with the registry: ``python3 tests/foreign/run.py``.

Downloads the sources of Flask-Login, Flask-Session and Flask-Security-Too into ``.tests``, runs
their tests without the registry and with it, and compares the outcomes test by test. Exits with 1
if a difference isn't expected, if an expected difference doesn't occur, or if no test ran.

For each library, a pytest plugin beside this file prepares the apps of its tests. They get the
registry if ``WITH_REGISTRY`` is in the environment.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import run

HERE = Path(__file__).resolve().parent

#: Flask-Security's datastores that the registry doesn't support, as its test names call them.
OTHER_DATASTORES = ["mongo", "peewee", "sqla-session", "sqlalchemy-session"]

HASHED = "looks up the session id in the store, which has only its hash"
NO_SIGNAL = "FlaskLoginClient sends no login signal, so there is no row; use SessionRegistryClient"
STAYS_SIGNED_IN = "a user who resets their password while signed in stays signed in on this device"


def from_pypi(requirement: str) -> Callable[[Path, Path], None]:
    """Download a release from PyPI."""

    def download(programs: Path, folder: Path) -> None:
        options = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
        run.pip(programs, "download", *options, "--dest", str(folder), requirement)

    return download


def from_debian(path: str, sha256: str) -> Callable[[Path, Path], None]:
    """Download the source of a Debian package: the project's whole tree."""

    def download(_: Path, folder: Path) -> None:
        helper = Path("/usr/lib/apt/apt-helper")
        if not helper.exists():
            print(f"Cannot download '{path}' from Debian: this machine has no apt.")
            return
        kind = ["Created-By: Packages", "Label: Debian"]
        command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", *kind]
        archives = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        if not archives:
            print("apt lists no Debian archive. Run 'apt-get update' first.")
            return
        url, target = archives.split()[0] + path, str(folder / Path(path).name)
        run.run([str(helper), "download-file", url, target, f"SHA256:{sha256}"])

    return download


@dataclasses.dataclass(frozen=True)
class Suite:
    """The tests of one library."""

    name: str
    #: The plugin module beside this file.
    plugin: str
    download: Callable[[Path, Path], None]
    #: Options of pytest.
    options: list[str]
    #: The tests whose outcome the registry changes, and why that is right.
    expected: Mapping[str, str]
    #: Environment variables. Those that begin with ``FLASK_`` are settings of the apps.
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)


FLASK_SESSION = Suite(
    name="Flask-Session",
    plugin="on_flask_session",
    # The release on PyPI has no tests.
    download=from_debian(
        "pool/main/f/flask-session/flask-session_0.8.0.orig.tar.gz",
        "017c852d3df6b8492666b5e3544bb4f283a49ca357fac28af465b8cb8017f1e4",
    ),
    # No server of MongoDB or DynamoDB can be installed freely.
    options=[f"--ignore=tests/test_{name}.py" for name in ("mongodb", "dynamodb")],
    expected={
        "test_cachelib.TestCachelibSession::test_filesystem_default": HASHED,
        "test_filesystem.TestFileSystemSession::test_filesystem_default": HASHED,
        "test_memcached.TestMemcachedSession::test_memcached_default": HASHED,
        "test_redis.TestRedisSession::test_redis_default": HASHED,
        "test_sqlalchemy.TestSQLAlchemy::test_use_signer": HASHED,
    },
)

SUITES = [
    Suite(
        name="Flask-Login",
        plugin="on_flask_login",
        download=from_pypi("Flask-Login==0.6.3"),
        # They turn warnings into errors, and newer versions of Python warn about 'utcnow()'.
        options=["-o", "filterwarnings="],
        expected={
            f"tests.test_login.CustomTestClientTestCase::{name}": NO_SIGNAL
            for name in (
                "test_user_arg_to_test_client",
                "test_fresh_login_arg_to_test_client",
                "test_session_protection_modes",
            )
        },
    ),
    FLASK_SESSION,
    # Without hashing, the same tests pass to the end.
    dataclasses.replace(
        FLASK_SESSION,
        name="Flask-Session without hashed session ids",
        expected={},
        variables={"FLASK_SESSION_REGISTRY_HASH_SESSION_IDS": "false"},
    ),
    Suite(
        name="Flask-Security-Too",
        plugin="on_flask_security",
        # The project publishes its source under this name.
        download=from_pypi("Flask-Security==5.9.2"),
        options=[f"-n{os.cpu_count()}", "-k", f"not ({' or '.join(OTHER_DATASTORES)})"],
        expected={
            "tests.test_recoverable::test_auth_csrf": STAYS_SIGNED_IN,
            "tests.test_recoverable::test_recoverable_auth_json": STAYS_SIGNED_IN,
            "tests.test_basic::test_token_query": "counts the statements of a login, which now"
            " writes a row",
            "tests.test_basic::test_session_query": "counts the statements of a request; its user"
            " loader doesn't ask for the primary key, so it can't use what the check has loaded",
        },
    ),
]


def main() -> int:
    packages = (HERE / "requirements.txt").read_text().split()
    programs = run.environment("foreign", run.pythons()[1], "-e", str(run.ROOT), *packages)
    as_expected = [is_as_expected(suite, programs) for suite in SUITES]
    return int(not all(as_expected))


def is_as_expected(suite: Suite, programs: Path) -> bool:
    """Run a library's tests twice, print the differences, and return whether all are expected."""
    root = source(suite, programs)
    if root is None:
        return False
    without = outcomes(suite, programs, root)
    with_registry = outcomes(suite, programs, root, WITH_REGISTRY="1")
    names = without.keys() | with_registry.keys()
    differ = sorted(name for name in names if without.get(name) != with_registry.get(name))
    print(f"\n{suite.name}: {len(without)} tests, {len(differ)} with a different outcome.")
    for name in differ:
        why = suite.expected.get(name, "NOT EXPECTED")
        print(f"{name}: {without.get(name)}, with the registry {with_registry.get(name)}: {why}")
    missing = sorted(suite.expected.keys() - differ)
    for name in missing:
        print(f"{name}: {without.get(name)}, EXPECTED TO DIFFER: {suite.expected[name]}")
    return bool(without) and not missing and suite.expected.keys() >= set(differ)


def source(suite: Suite, programs: Path) -> Path | None:
    """Download a library's source and return its folder, or ``None`` if that fails."""
    folder = run.HOME / suite.plugin.replace("on_", "source_")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    suite.download(programs, folder)
    for archive in folder.glob("*.tar.gz"):
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
    root = next((path for path in folder.iterdir() if path.is_dir()), None)
    if root is not None:
        # The tests must import the installed package.
        for name in ("src", "flask_security"):
            shutil.rmtree(root / name, ignore_errors=True)
    return root


def outcomes(suite: Suite, programs: Path, root: Path, **variables: str) -> dict[str, str]:
    """Run a library's tests and return the outcome of each, by name."""
    report = root / "report.xml"
    report.unlink(missing_ok=True)
    command = [str(programs / "python"), "-m", "pytest", "-q", "--tb=no", "--no-summary", "tests"]
    # Without the project's own options, which measure coverage.
    command += ["-o", "addopts=", f"--junit-xml={report}", "-p", suite.plugin]
    environment = os.environ | suite.variables | variables | {"PYTHONPATH": str(HERE)}
    subprocess.run([*command, *suite.options], cwd=root, env=environment, check=False)
    if not report.exists():
        return {}
    return {
        f"{case.get('classname')}::{case.get('name')}": ending.tag
        if ending is not None
        else "passed"
        for case in ElementTree.parse(report).iter("testcase")
        for ending in [next((e for e in case if e.tag in ("failure", "error", "skipped")), None)]
    }


if __name__ == "__main__":
    sys.exit(main())
