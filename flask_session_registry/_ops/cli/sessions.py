"""The commands ``flask sessions``: list, prune, doctor."""

from __future__ import annotations

import json
import sys

import click
from flask import current_app
from flask.cli import with_appcontext

from ... import _clock as clock
from ..._app import get_registry
from ..._compat.flask import unwrap
from ..._plain_text import plain
from ..._store.purge import LONG_TIMEOUT, Purge
from ...models import UserSessionRecord
from .. import serializers
from ..counts import count_of, sessions_of
from ..doctor import Finding, examine
from ..maintenance import PruneResult, prune
from .base import Group
from .options import by_option, format_option
from .users import find_users


@click.group("sessions", cls=Group)
def sessions() -> None:
    """User sessions: where users are signed in."""


@sessions.command("list")
@click.argument("user")
@by_option
@click.option("--ended", is_flag=True, help="Also show ended sessions, while they are kept.")
@format_option
@with_appcontext
def list_sessions(user: str, by: str | None, ended: bool, as_json: bool) -> None:
    """Show where a user is signed in, most recently seen first."""
    registry = get_registry()
    records, expiry = registry.records, registry.expiry(unwrap(current_app))
    session = registry.db_session
    found: list[tuple[UserSessionRecord, bool]] = []
    for user_id in find_users(registry, (user,), by, changes=False):
        active = records.active(session, user_id, expiry=expiry)
        found += [(row, True) for row in active]
        if ended:
            rows = records.list_all(session, user_id)
            found += [(row, False) for row in rows if row not in active]
    if as_json:
        details = [serializers.session_as_json(row, is_active=active) for row, active in found]
        click.echo(json.dumps({"sessions": details}))
        return
    blocks = [serializers.session_as_text(row, is_active=active) for row, active in found]
    click.echo("\n\n".join(blocks) or "No sessions.")


@sessions.command("prune")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="The maximum number of sessions of each kind. [default: all]",
)
@format_option
@with_appcontext
def prune_sessions(limit: int | None, as_json: bool) -> None:
    """End expired sessions, purge pending entries, delete old sessions.

    Run it from cron if 'SESSION_REGISTRY_AUTO_PRUNE' is off. It is safe to run it twice at once, or
    while the app prunes by itself.

    \b
    Exit codes:
      0  Done, or as much of it as '--limit' allows.
      1  An error, or entries that could not be deleted from the session store: see how many.
      2  Wrong usage.
    """
    registry, app = get_registry(), unwrap(current_app)
    purge = Purge(registry, app, timeout=LONG_TIMEOUT, is_logged=False)
    result = prune(registry, app, limit=limit, purge=purge)
    unpurged = 0
    if purge.error is not None or limit is not None:
        unpurged = registry.records.count_unpurged(ended_by=clock.now())
    _report_prune(result, unpurged, as_json=as_json)
    pending = f"The entries of {sessions_of(unpurged)}" if unpurged else "Stale entries"
    if purge.error is not None:
        raise click.ClickException(
            f"{purge.error} {pending} must still be purged. Run it again when the store is back."
        )
    if unpurged and not as_json:
        click.echo(f"{pending} must still be purged. Run it again for the rest.")


def _report_prune(result: PruneResult, unpurged: int, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({**result._asdict(), "unpurged": unpurged}))
        return
    click.echo(
        f"{sessions_of(result.ended)} had expired and ended; {result.purged} purged from the"
        f" session store; {result.forgotten} forgotten."
    )


@sessions.command("doctor")
@format_option
@with_appcontext
def examine_installation(as_json: bool) -> None:
    """Report what is wrong with the installation, and what to do.

    \b
    Exit codes:
      0  Nothing is wrong, or there are only warnings.
      1  There are errors.
      2  Wrong usage.
    """
    findings = list(examine(unwrap(current_app)))
    errors = sum(finding.level == "error" for finding in findings)
    if as_json:
        click.echo(json.dumps({"findings": [finding._asdict() for finding in findings]}))
    else:
        _print_findings(findings, errors)
    if errors:
        sys.exit(1)


def _print_findings(findings: list[Finding], errors: int) -> None:
    for level, problem, remedy in findings:
        click.echo(f"{level.capitalize()}: {plain(problem)} {plain(remedy)}")
    warnings = len(findings) - errors
    click.echo(
        f"{count_of(errors, 'error')}, {count_of(warnings, 'warning')}."
        if findings
        else "Nothing is wrong."
    )
