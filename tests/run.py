"""Run the whole test suite, with everything it needs: ``python3 tests/run.py``.

Needs nothing but a Python of at least 3.10. Makes virtual environments in ``.tests`` and runs

1. the checks (ruff, mypy) and the suite on the newest Python here with the newest SQLAlchemy,
   from the checkout, with branch coverage, which must be complete;
2. the suite on the oldest Python here with SQLAlchemy 2.0 and Flask 3.0, against the built wheel,
   but for the tests that are marked "once";
3. the lane "upstream": what depends most on the extensions below us, on the newest pre-releases of
   them, where there are any.

Whatever follows the command is passed on to pytest; the coverage is not checked then, no test is
left out, and there is no third lane.
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

#: What the lane "upstream" is about.
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
    """The oldest and the newest Python here, of those that are new enough."""
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
    """Whether it runs, and can make virtual environments."""
    code = "import ensurepip, sys, venv; print(sys.version_info[:2])"
    answer = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
    return answer.stdout.strip() == str(version)


def environment(name: str, python: str, *packages: str) -> Path:
    """A virtual environment with these packages: its folder of programs.

    Kept from one run to the next, as long as what is to be installed stays the same.
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
    """Run a command in the root of the repository, and stop if it fails."""
    print("$", " ".join(part.removeprefix(f"{ROOT}/") for part in command), flush=True)
    code = subprocess.run(command, cwd=ROOT, env=os.environ | variables, check=False).returncode
    if code:
        sys.exit(code)


def wheel(programs: Path) -> str:
    """Build the wheel anew."""
    folder = HOME / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    pip(programs, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    return str(next(folder.glob("*.whl")))


def pre_releases(programs: Path) -> list[str]:
    """The newest releases of what is below us, as requirements, if they are pre-releases."""
    command = [str(programs / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    command += ["install", "--dry-run", "--upgrade", "--pre", "--no-deps", "--report", "-"]
    answer = subprocess.run([*command, *UPSTREAM], capture_output=True, text=True, check=False)
    try:
        found = [one["metadata"] for one in json.loads(answer.stdout)["install"]]
    except (KeyError, ValueError):
        # Of a pip that can't say it.
        found = []
    is_pre = re.compile(r"(a|b|c|rc|dev)\d*(\+.*)?$").search
    return [f"{one['name']}=={one['version']}" for one in found if is_pre(one["version"])]


def upstream(programs: Path, newest: str, suite: list[str]) -> None:
    """Run the lane of that name, or say why not."""
    found = pre_releases(programs)
    if not found:
        print("Skipped the lane 'upstream': no pre-releases of", ", ".join(UPSTREAM), "can be had.")
        return
    print("The lane 'upstream':", ", ".join(found))
    programs = environment("upstream", newest, "-e", f"{ROOT}[tests]", "psycopg2-binary")
    pip(programs, "install", "--no-deps", *found)
    # What is deprecated there is no fault yet.
    tests = ["-W", "ignore::DeprecationWarning", *UPSTREAM_TESTS]
    run([str(programs / "pytest"), *suite, *tests])


def main(arguments: list[str]) -> None:
    oldest, newest = pythons()
    # One more than there are cores: a third of the time is spent waiting, for servers and locks.
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
    # Some of what the tests need asks for a newer Flask than we do.
    pip(programs, "install", "--force-reinstall", "--no-deps", built, "Flask<3.1")
    left_out = ["-m", "not once"]
    run([str(programs / "pytest"), *suite, *([] if arguments else left_out)], TEST_WHEEL="1")
    if not arguments:
        upstream(checkout, newest, suite)
    print("All tests have passed, on the checkout and on the wheel.")


if __name__ == "__main__":
    main(sys.argv[1:])
