"""What a type checker knows of the public API in an app."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import flask_session_registry

pytest.importorskip("mypy", reason="mypy is not installed: it comes with the extra 'checks'")

APP = """
from flask_login import current_user

from flask_session_registry import SessionRegistry, UserSessionMixin, UserSessionRecord

sessions = SessionRegistry()
reveal_type(sessions.active(current_user))
reveal_type(sessions.current)
for one in sessions.active(current_user):
    reveal_type(one.last_seen_at)
    reveal_type(one.ip_address)
    one.revoked_at = None  # error: for reading only
    one.previous  # error: no such attribute


def describe(session: UserSessionMixin) -> UserSessionRecord:
    return session
"""


@pytest.mark.once
def test_type_checker_knows_what_the_registry_returns(tmp_path: Path) -> None:
    """'active()' and 'current' return the protocol, which rows of the table satisfy."""
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"),
            *("--cache-dir", "cache", "--follow-imports=silent", "--ignore-missing-imports"),
            "app.py",
        ],
        cwd=tmp_path,
        env={"MYPYPATH": str(Path(flask_session_registry.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == ""
    record = "flask_session_registry.models.UserSessionRecord"
    assert re.findall(r'Revealed type is "(.*)"', result.stdout) == [
        f"list[{record}]",
        f"{record} | None",
        "datetime.datetime",
        "str | None",
    ]
    errors = re.findall(r"app\.py:(\d+): error", result.stdout)
    expected = [n for n, line in enumerate(APP.splitlines(), 1) if "# error" in line]
    assert [int(number) for number in errors] == expected, result.stdout
