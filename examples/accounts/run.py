#!/usr/bin/env python3
"""Install the example into a virtual environment of its own, and start it.

``python3 examples/accounts/run.py`` needs only Python 3.10; ``--help`` lists its options. With
``DATABASE_URL``, ``REDIS_URL`` or ``MAIL_SERVER`` in the environment it uses those servers. Started
again, it installs only what has changed.
"""

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
ENVIRONMENT = HERE / ".venv"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = ENVIRONMENT / "installed.json"
HOST = "127.0.0.1"


def main() -> int | str:
    parser = argparse.ArgumentParser(description="Start the example app.")
    parser.add_argument("--port", type=int, default=5000, help="the port to serve on (5000)")
    parser.add_argument("--workers", type=int, help="serve under gunicorn, with so many workers")
    arguments = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036 - for users with an older Python
        return f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}."
    if arguments.workers is not None and arguments.workers < 1:
        return "There must be at least one worker."
    if arguments.workers is not None and os.name == "nt":
        return "gunicorn does not run on Windows. Leave '--workers' out."
    if not 1 <= arguments.port <= 65535:
        return f"{arguments.port} is no port. Choose one from 1 to 65535."
    if problem := why_not(arguments.port):
        return problem
    try:
        install(wanted_extras(arguments.workers))
        flask("db", "upgrade")
        print("\nTwo users to sign in with:", flush=True)
        flask("seed")
    except subprocess.CalledProcessError as error:
        return f"This failed, see above: {' '.join(map(str, error.cmd))}"
    print(f"\nhttp://{HOST}:{arguments.port}/    (Ctrl-C ends it)\n", flush=True)
    return serve(arguments.port, arguments.workers)


def why_not(port: int) -> str | None:
    """Return why this port can't be served, in a sentence, or ``None``."""
    with socket.socket() as probe:
        if os.name != "nt":
            # An earlier connection that is still closing doesn't matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except PermissionError:
            return f"You may not serve on port {port}. Choose another one with '--port'."
        except OSError:
            return f"Port {port} is taken. Choose another one with '--port'."
    return None


def wanted_extras(workers: int | None) -> list[str]:
    database = os.environ.get("DATABASE_URL", "").partition("://")[0].partition("+")[0]
    extras = {
        "gunicorn": workers is not None,
        "mysql": database in ("mysql", "mariadb"),
        "postgresql": database in ("postgres", "postgresql"),
        "redis": bool(os.environ.get("REDIS_URL")),
    }
    return [extra for extra, is_wanted in extras.items() if is_wanted]


def install(extras: list[str]) -> None:
    """Install the extension and the example, unless they are installed unchanged."""
    # A virtual environment can't be moved, or used by another Python.
    environment = [str(ENVIRONMENT), sys.version]
    contents = [
        hashlib.sha256((folder / "pyproject.toml").read_bytes()).hexdigest()
        for folder in (REPOSITORY, HERE)
    ]
    try:
        installed = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        installed = {}
    if installed.get("environment") != environment or not PYTHON.exists():
        print(f"Making a virtual environment in {ENVIRONMENT} …", flush=True)
        try:
            venv.create(ENVIRONMENT, clear=True, with_pip=True)
        except subprocess.CalledProcessError:
            sys.exit(
                "Python could not make a virtual environment with pip in it. On Debian and Ubuntu"
                " that is what the package 'python3-venv' is for."
            )
        installed = {}
    has = installed.get("extras", [])
    if installed.get("contents") == contents and set(extras) <= set(has):
        return
    extras = sorted({*extras, *has})
    print("Installing …", flush=True)
    example = f"{HERE}[{','.join(extras)}]" if extras else str(HERE)
    pip = [
        str(PYTHON),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
    ]
    run([*pip, "--editable", str(REPOSITORY), "--editable", example])
    STAMP.write_text(
        json.dumps({"environment": environment, "contents": contents, "extras": extras})
    )


def flask(*arguments: str) -> None:
    run([PYTHON, "-m", "flask", "--app", "accounts", *arguments])


def run(command: Sequence[str | Path]) -> None:
    subprocess.run(command, cwd=HERE, env=clean_environ(), stdin=subprocess.DEVNULL, check=True)


def clean_environ() -> dict[str, str]:
    """Return the environment without variables that would mislead another Python or Flask."""
    left_out = ("PYTHONHOME", "PYTHONPATH", "FLASK_APP", "FLASK_DEBUG", "GUNICORN_CMD_ARGS")
    return {name: value for name, value in os.environ.items() if name not in left_out}


def serve(port: int, workers: int | None) -> int:
    """Serve until stopped, and return the exit code."""
    if workers is None:
        command = ["flask", "--app", "accounts", "run", "--no-debug"]
        command += ["--host", HOST, "--port", str(port)]
    else:
        command = ["gunicorn", "--bind", f"{HOST}:{port}", "--workers", str(workers)]
        command += ["accounts:create_app()"]
    command = [str(PYTHON), "-m", *command]
    if os.name == "nt":
        return subprocess.run(command, cwd=HERE, env=clean_environ()).returncode
    # The server replaces this process and receives its signals.
    os.chdir(HERE)
    return os.execve(command[0], command, clean_environ())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
