"""The commands ``flask revoke-sessions`` and ``flask sessions``."""

from __future__ import annotations

import click

from .revoke import revoke_sessions
from .sessions import sessions

commands: list[click.Command] = [revoke_sessions, sessions]
