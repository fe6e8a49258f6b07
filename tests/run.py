"""Run the whole test suite and everything it needs: ``python3 tests/run.py``.

Needs only Python 3.10 or later. Creates virtual environments in ``.tests`` and runs

1. the checks (ruff, mypy) and the suite on the newest Python found here with the newest SQLAlchemy,
   from the checkout, with branch coverage, which must be complete;
2. the suite on the oldest Python found here with SQLAlchemy 2.0 and Flask 3.0, against the built
   wheel, without the tests marked "once";
3. the lane "upstream": the tests that depend most on the underlying extensions, on the newest
   pre-releases of these, if there are any.

Further arguments are passed to pytest. Coverage is not checked then, no test is left out, and the
third lane does not run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

#: The packages that the lane "upstream" tests.
UPSTREAM = ("Flask", "Flask-Login", "Flask-Session", "Flask-SQLAlchemy", "Flask-SQLAlchemy-Lite")
UPSTREAM_TESTS = [
    f"tests/test_{name}.py"
    for name in (
        *("installation", "next_flask", "password_change", "postgresql_store", "remember"),
        *("shared_context", "start_up", "testing", "with_flask_socketio"),
        "with_flask_sqlalchemy_lite",
    )
]

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".tests"


def pythons() -> list[str]:
    """Return the oldest and the newest supported Python found here."""
    folders = [Path(folder) for folder in os.get_exec_path()]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders += sorted(pyenv.glob("versions/*/bin"))
    found = {sys.version_info[:2]: sys.executable}
    for folder in folders:
        for path in folder.glob("python3.*"):
            if match := re.fullmatch(r"python3\.(\d+)", path.name):
                version = (3, int(match[1]))
                if version >= (3, 10) and version not in found and is_usable(path, version):
                    found[version] = str(path)
    print("Found Python", ", ".join(f"{major}.{minor}" for major, minor in sorted(found)))
    return [found[min(found)], found[max(found)]]


def is_usable(path: Path, version: tuple[int, int]) -> bool:
    """Return whether it runs and can create virtual environments."""
    code = "import ensurepip, sys, venv; print(sys.version_info[:2])"
    answer = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
    return answer.stdout.strip() == str(version)


def environment(name: str, python: str, *packages: str) -> Path:
    """Return the programs folder of a virtual environment with these packages.

    It is reused between runs as long as its requirements stay the same.
    """
    folder = HOME / name
    programs = folder / "bin"
    wanted = "\n".join([python, *packages, (ROOT / "pyproject.toml").read_text()])
    stamp = folder / "stamp"
    digest = hashlib.sha256(wanted.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        print(f"Preparing {name} …", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        run([python, "-m", "venv", str(folder)])
        pip(programs, "install", *packages)
        stamp.write_text(digest)
    return programs


def pip(programs: Path, *arguments: str) -> None:
    """Run pip in a virtual environment."""
    quietly = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
    run([str(programs / "python"), *quietly, *arguments])


def run(command: list[str], **variables: str) -> None:
    """Run a command in the repository's root and exit if it fails."""
    print("$", " ".join(part.removeprefix(f"{ROOT}/") for part in command), flush=True)
    code = subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=False).returncode
    if code:
        sys.exit(code)


def wheel(programs: Path) -> str:
    """Build a fresh wheel and return its path."""
    folder = HOME / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    pip(programs, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    return str(next(folder.glob("*.whl")))


def pre_releases(programs: Path) -> list[str]:
    """Return requirements for the newest upstream releases that are pre-releases."""
    command = [str(programs / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    command += ["install", "--dry-run", "--upgrade", "--pre", "--no-deps", "--report", "-"]
    answer = subprocess.run([*command, *UPSTREAM], capture_output=True, text=True, check=False)
    try:
        found = [one["metadata"] for one in json.loads(answer.stdout)["install"]]
    except (KeyError, ValueError):
        # This pip doesn't support the report.
        found = []
    is_pre = re.compile(r"(a|b|c|rc|dev)\d*(\+.*)?$").search
    return [f"{one['name']}=={one['version']}" for one in found if is_pre(one["version"])]


def upstream(programs: Path, newest: str, suite: list[str]) -> None:
    """Run the lane "upstream", or print why it was skipped."""
    found = pre_releases(programs)
    if not found:
        print("Skipped the lane 'upstream': no pre-releases of", ", ".join(UPSTREAM), "found.")
        return
    print("The lane 'upstream':", ", ".join(found))
    programs = environment("upstream", newest, "-e", f"{ROOT}[tests]", "psycopg2-binary")
    pip(programs, "install", "--no-deps", *found)
    # A deprecation in a pre-release is not a failure yet.
    tests = ["-W", "ignore::DeprecationWarning", *UPSTREAM_TESTS]
    run([str(programs / "pytest"), *suite, *tests])


def main(arguments: list[str]) -> None:
    oldest, newest = pythons()
    # One more than there are cores: a third of the time is spent waiting for servers and locks.
    suite = ["-n", str((os.cpu_count() or 1) + 1), "-q", *arguments]

    checkout = environment("newest", newest, "-e", f"{ROOT}[tests,checks]", "SQLAlchemy>=2.1")
    programs = checkout
    run([str(programs / "ruff"), "check"])
    run([str(programs / "ruff"), "format", "--check"])
    run([str(programs / "mypy")])
    coverage = ["--cov=flask_session_registry", "--cov-report=term", "--cov-fail-under=100"]
    run([str(programs / "pytest"), *suite, *([] if arguments else coverage)])

    built = wheel(programs)
    programs = environment("oldest", oldest, f"{built}[tests]", "SQLAlchemy<2.1")
    # Some of the tests' dependencies require a newer Flask than the package does.
    pip(programs, "install", "--force-reinstall", "--no-deps", built, "Flask<3.1")
    left_out = ["-m", "not once"]
    run([str(programs / "pytest"), *suite, *([] if arguments else left_out)], TEST_WHEEL="1")
    if not arguments:
        upstream(checkout, newest, suite)
    print("All tests passed, on the checkout and on the wheel.")


if __name__ == "__main__":
    main(sys.argv[1:])
