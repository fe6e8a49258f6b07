"""The command ``flask revoke-sessions``."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import sys
import typing as t
from collections.abc import Callable, Iterator

import click
from flask import current_app
from flask.cli import with_appcontext

from ..._app import Registry, get_registry
from ..._compat.flask import unwrap
from ..._diagnosis import diagnose
from ..._records.base import UNAVAILABLE
from ..._revocation.bulk import Tally, revoke_many
from ..._revocation.revoke import check_reason
from .. import serializers
from ..counts import entries_of, sessions_of
from ..filters import Filter
from .base import Command, failure
from .options import by_option, filter_options, format_option, parsed_by
from .users import find_users

#: The number of sessions that a dry run shows.
_SAMPLE_SIZE = 10


@click.command("revoke-sessions", cls=Command)
@click.argument("users", nargs=-1, metavar="[USER]...")
@click.option("--all", "everybody", is_flag=True, help="Revoke the sessions of all users.")
@by_option
@filter_options
@click.option(
    "--reason",
    default="revoked",
    show_default=True,
    callback=parsed_by(check_reason),
    help="Stored with the sessions and sent with the signal.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be revoked. Change nothing.")
@click.option("--yes", is_flag=True, help="Revoke the sessions of all users without asking.")
@format_option
@with_appcontext
def revoke_sessions(
    users: tuple[str, ...],
    everybody: bool,
    by: str | None,
    reason: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **conditions: t.Any,
) -> None:
    """Revoke the sessions of the named users, or of all users.

    Every device is signed out at its next request. Filters combine: a session must match all of
    them ('--older-than', '--idle-for', '--ip', '--user-agent'). If interrupted, the command prints
    how many sessions have ended; run it again for the rest. Without a terminal to confirm on, as in
    a cron job, '--all' fails unless '--yes' is given.

    \b
    Exit codes:
      0  Done, even if there was nothing to revoke.
      1  An error. Nothing was changed, unless the message says how many sessions have ended.
      2  Wrong usage.
    """
    _check_usage(users, everybody, by)
    registry, filter = get_registry(), Filter(**conditions)
    if filter.last_seen_until is not None and registry.settings.touch_interval is None:
        raise click.UsageError(
            "'SESSION_REGISTRY_TOUCH_INTERVAL' is None, so it is not known when a session was last"
            " seen. Use '--older-than'."
        )
    user_ids = None if everybody else find_users(registry, users, by, changes=not dry_run)
    if dry_run:
        _show(registry, user_ids, filter, as_json=as_json)
        return
    count = None
    if everybody and not yes:
        count = registry.records.count(user_ids, filter)
        matching = "" if filter.is_met_by_all() else "matching "
        _confirm(f"Revoke {sessions_of(count, matching)} of all users?")
    tally = _revoke(registry, user_ids, filter, reason=reason, count=count)
    _report(tally, as_json=as_json)


def _check_usage(users: tuple[str, ...], everybody: bool, by: str | None) -> None:
    """
    :raises UsageError: it isn't clear whose sessions to revoke.
    """
    if users and everybody:
        raise click.UsageError("Name one or more users, or use '--all', not both.")
    if not users and not everybody:
        raise click.UsageError("Name one or more users, or use '--all'.")
    if everybody and by is not None:
        raise click.UsageError("'--by' does not apply to '--all'. Use it with named users.")


def _confirm(question: str) -> None:
    """Ask, and return if the answer is yes.

    :raises ClickException: there is no terminal to answer on.
    :raises Abort: the answer is no, or the question was interrupted.
    """
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort as abort:
        if sys.stdin.isatty() or not isinstance(abort.__context__, EOFError):
            raise
        # Ends the line of the question.
        click.echo(err=True)
        raise click.ClickException(
            "There is no terminal to answer this question on. Nothing was changed. Add '--yes'."
        ) from None


def _show(
    registry: Registry, user_ids: list[t.Any] | None, filter: Filter, *, as_json: bool
) -> None:
    """Print what would be revoked."""
    count = registry.records.count(user_ids, filter)
    matching = itertools.chain.from_iterable(registry.records.matching(user_ids, filter))
    sample = list(itertools.islice(matching, _SAMPLE_SIZE))
    if as_json:
        rows = [serializers.summary_as_json(summary) for summary in sample]
        click.echo(json.dumps({"would_end": count, "sample": rows}))
        return
    click.echo(f"{sessions_of(count)} would end. Nothing was changed.")
    for line in serializers.summaries_as_lines(sample):
        click.echo(f"  {line}")
    if count > len(sample) > 0:
        click.echo(f"  ... and {count - len(sample)} more")


def _revoke(
    registry: Registry,
    user_ids: list[t.Any] | None,
    filter: Filter,
    *,
    reason: str,
    count: int | None,
) -> Tally:
    """Revoke batch after batch, and show the progress.

    :param count: how many sessions match, if known.
    """
    app, tally = unwrap(current_app), Tally()

    def length() -> int:
        return registry.records.count(user_ids, filter) if count is None else count

    try:
        with _progress_bar(length) as advance:
            for ended in revoke_many(registry, app, user_ids, filter, reason=reason, tally=tally):
                advance(ended)
    except UNAVAILABLE as error:
        is_about_table = diagnose(error).is_about_table
        raise failure(error, "" if is_about_table else _stopped(tally)) from None
    except BaseException:
        click.echo(_stopped(tally), err=True)
        raise
    return tally


@contextlib.contextmanager
def _progress_bar(length: Callable[[], int]) -> Iterator[Callable[[int], None]]:
    """Show progress on a terminal. In a pipe, show nothing and don't compute the length."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=length(), label="Ending sessions", file=sys.stderr) as bar:
        yield bar.update


def _stopped(tally: Tally) -> str:
    return f"Stopped: {sessions_of(tally.ended)} ended so far. Run it again for the rest."


def _report(tally: Tally, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(tally)))
        return
    click.echo(
        f"{sessions_of(tally.ended)} ended; {entries_of(tally.purged)} purged from the session"
        " store."
    )
    if tally.unpurged:
        click.echo(
            f"{entries_of(tally.unpurged)} could not be deleted. The sessions are revoked"
            " regardless: run 'flask sessions prune' when the session store is back.",
            err=True,
        )
