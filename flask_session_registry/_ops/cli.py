"""The command line of an operator."""

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

from .. import _clock as clock
from .._app import Registry, get_registry, unwrap
from .._config import PASSWORD_ATTRIBUTES
from .._diagnosis import diagnose, shows_tracebacks
from .._log import description_of
from .._plain_text import plain
from .._records.base import UNAVAILABLE, Records
from .._revocation.bulk import Tally, revoke_many
from .._revocation.revoke import check_reason
from .._store.purge import LONG_TIMEOUT, Purge
from ..errors import SessionRegistryError
from . import filters
from . import serializers as shown
from .doctor import examine
from .filters import Filter
from .maintenance import prune

#: How many sessions a dry run shows.
_SAMPLE = 10


def _written(read: Callable[[str], t.Any]) -> Callable[..., t.Any]:
    """A value in a notation of ours.

    :param read: makes the value of what was written, or raises a ``ValueError`` that says what to
        write instead.
    """

    def convert(_: click.Context, __: click.Parameter, value: str | None) -> t.Any:
        if value is None:
            return None
        try:
            value.encode()
            return read(value)
        except UnicodeEncodeError:
            raise click.BadParameter("It is not UTF-8.") from None
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return convert


_by = click.option(
    "--by", metavar="COLUMN", help="What USER is a value of. [default: the primary key]"
)
_as_json = click.option(
    "--format",
    "as_json",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    callback=lambda _, __, value: value == "json",
    help="How to answer; as JSON, in one object.",
)


@contextlib.contextmanager
def _in_plain_text() -> Iterator[None]:
    """Within it, no error repeats the control characters of what was typed, nor is a traceback."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = plain(error.message)
        raise
    except (*UNAVAILABLE, SessionRegistryError) as error:
        raise _failure(error) from None


def _failure(error: BaseException, more: str = "") -> click.ClickException:
    """What a command ends with where it can't go on: the diagnosis, on one line.

    :param more: a sentence on how far it came.
    """
    if shows_tracebacks():
        click.echo(description_of(error), err=True)
    return click.ClickException(plain(f"{diagnose(error)} {more}".strip()))


class _Command(click.Command):
    """One whose errors break no terminal, and that says in a sentence what is wrong."""

    def make_context(self, *args: t.Any, **kwargs: t.Any) -> click.Context:
        with _in_plain_text():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> t.Any:
        with _in_plain_text():
            return super().invoke(ctx)


class _Group(_Command, click.Group):
    """The same of a command that has others."""

    command_class = _Command


@click.command("revoke-sessions", cls=_Command)
@click.argument("users", nargs=-1, metavar="[USER]...")
@click.option("--all", "everybody", is_flag=True, help="End the sessions of everybody.")
@_by
@click.option(
    "--older-than",
    "begun_by",
    callback=_written(filters.ago),
    metavar="DURATION",
    help="Only those that began at least so long ago: '45s', '90m', '12h', '30d', '2w'.",
)
@click.option(
    "--idle-for",
    "unseen_since",
    callback=_written(filters.ago),
    metavar="DURATION",
    help="Only those that were last seen at least so long ago. How exactly that is known, says"
    " 'SESSION_REGISTRY_TOUCH_INTERVAL'.",
)
@click.option(
    "--ip",
    "network",
    callback=_written(filters.network),
    metavar="ADDRESS|NETWORK",
    help="Only those that were last seen from there: '203.0.113.9', '10.0.0.0/8'.",
)
@click.option(
    "--user-agent",
    callback=_written(filters.part_of_user_agent),
    metavar="TEXT",
    help="Only those whose user agent has this in it, in small or capital letters.",
)
@click.option(
    "--reason",
    default="revoked",
    show_default=True,
    callback=_written(check_reason),
    help="Kept with the sessions, and told by the signal.",
)
@click.option("--dry-run", is_flag=True, help="Only say how many would end, and show the first.")
@click.option("--yes", is_flag=True, help="Do not ask before ending everybody's sessions.")
@_as_json
@with_appcontext
def revoke_sessions(
    users: tuple[str, ...],
    everybody: bool,
    by: str | None,
    reason: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **meant: t.Any,
) -> None:
    """End all sessions of the users named, or of everybody; or those of them that are meant.

    They are signed out at their next request, on every device. With several of '--older-than',
    '--idle-for', '--ip' and '--user-agent', only sessions end that all of them mean. Interrupted,
    it says how many have ended; started again, it goes on with the rest. Where there is no
    terminal to confirm it on, in a cron job say, '--all' needs '--yes'; without it, that is an
    error.

    \b
    Exit codes:
      0  Done, also if there was nothing to end.
      1  An error, and nothing was changed; or stopped half-way, and it says how far it came.
      2  Wrong usage.
    """
    if users and everybody:
        raise click.UsageError("Name one or more users, or say '--all', not both.")
    if not users and not everybody:
        raise click.UsageError("Name one or more users, or say '--all'.")
    if everybody and by is not None:
        raise click.UsageError("'--by' goes with the users that you name.")
    filter = Filter(**meant)
    registry = get_registry()
    if filter.unseen_since is not None and registry.settings.touch_interval is None:
        raise click.UsageError(
            "With 'SESSION_REGISTRY_TOUCH_INTERVAL' set to None, nobody knows when a session was"
            " last seen. Use '--older-than'."
        )
    records = registry.records
    user_ids = None if everybody else _find(registry, users, by, changes=not dry_run)
    if dry_run:
        _show(records, user_ids, filter, as_json=as_json)
        return
    count = None
    if everybody and not yes:
        count = records.count(user_ids, filter)
        whose = "everybody" if filter.is_met_by_all() else "everybody who is meant"
        _confirm(f"End {_sessions(count)}, of {whose}?")
    tally = Tally()
    try:
        with _progress(
            lambda: records.count(user_ids, filter) if count is None else count
        ) as advance:
            for ended in revoke_many(
                registry,
                unwrap(current_app),
                user_ids,
                filter,
                reason=reason,
                tally=tally,
            ):
                advance(ended)
    except UNAVAILABLE as error:
        is_about_table = diagnose(error).is_about_table
        raise _failure(error, "" if is_about_table else _stopped(tally)) from None
    except BaseException:
        click.echo(_stopped(tally), err=True)
        raise
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(tally)))
        return
    click.echo(
        f"{_sessions(tally.ended)} ended; {_entries(tally.purged)} purged from the session store."
    )
    if tally.unpurged:
        click.echo(
            f"{_entries(tally.unpurged)} could not be deleted. The sessions are revoked regardless:"
            " run 'flask sessions prune' when the session store is back.",
            err=True,
        )


@click.group("sessions", cls=_Group)
def sessions() -> None:
    """User sessions: where people are signed in."""


@sessions.command("list")
@click.argument("user")
@_by
@click.option("--ended", is_flag=True, help="Also those that are over, as far as they are kept.")
@_as_json
@with_appcontext
def list_sessions(user: str, by: str | None, ended: bool, as_json: bool) -> None:
    """Show where a user is signed in, most recently seen first."""
    registry = get_registry()
    records, expiry = registry.records, registry.expiry(unwrap(current_app))
    session = registry.db_session
    found: list[tuple[t.Any, bool]] = []
    for user_id in _find(registry, (user,), by, changes=False):
        active = records.active(session, user_id, expiry=expiry)
        found += [(row, True) for row in active]
        if ended:
            rows = records.list_all(session, user_id)
            found += [(row, False) for row in rows if row not in active]
    if as_json:
        details = [shown.details_of(row, is_active=is_active) for row, is_active in found]
        click.echo(json.dumps({"sessions": details}))
        return
    blocks = [shown.block_of(row, is_active=is_active) for row, is_active in found]
    click.echo("\n\n".join(blocks) or "No sessions.")


@sessions.command("prune")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="How many sessions at most, of each kind. [default: all]",
)
@_as_json
@with_appcontext
def prune_sessions(limit: int | None, as_json: bool) -> None:
    """End what has expired, purge what is pending, forget what is old.

    For a cron job, where 'SESSION_REGISTRY_AUTO_PRUNE' is off. It may be run twice, or while the
    app prunes by itself.

    \b
    Exit codes:
      0  Done, or as much of it as '--limit' allows.
      1  An error; or entries could not be deleted from the session store, and it says how many.
      2  Wrong usage.
    """
    registry, app = get_registry(), unwrap(current_app)
    purge = Purge(registry, app, timeout=LONG_TIMEOUT, is_logged=False)
    result = prune(registry, app, limit=limit, purge=purge)
    unpurged = 0
    if purge.error is not None or limit is not None:
        unpurged = registry.records.count_unpurged(ended_by=clock.now())
    if as_json:
        click.echo(json.dumps({**result._asdict(), "unpurged": unpurged}))
    else:
        click.echo(
            f"{_sessions(result.ended)} had expired and ended; {result.purged} purged from the"
            f" session store; {result.forgotten} forgotten."
        )
    whose = f"The entries of {_sessions(unpurged)}" if unpurged else "What sessions left behind"
    if purge.error is not None:
        raise click.ClickException(
            f"{purge.error} {whose} must still be purged. Run it again when the store is back."
        )
    if unpurged and not as_json:
        click.echo(f"{whose} must still be purged. Run it again for the rest.")


@sessions.command("doctor")
@_as_json
@with_appcontext
def examine_installation(as_json: bool) -> None:
    """Say what is wrong with the installation, and what to do.

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
        for level, problem, remedy in findings:
            click.echo(f"{level.capitalize()}: {plain(problem)} {plain(remedy)}")
        click.echo(
            f"{_number(errors, 'error')}, {_number(len(findings) - errors, 'warning')}."
            if findings
            else "Nothing is wrong."
        )
    if errors:
        sys.exit(1)


commands: list[click.Command] = [revoke_sessions, sessions]


def _confirm(question: str) -> None:
    """Go on if somebody says yes.

    :raises ClickException: nobody is there to say so.
    :raises Abort: they say no, or interrupt it.
    """
    try:
        click.confirm(question, abort=True, err=True)
    except click.Abort as abort:
        if sys.stdin.isatty() or not isinstance(abort.__context__, EOFError):
            raise
        # It ends the line of the question.
        click.echo(err=True)
        raise click.ClickException(
            "There is no terminal to confirm this on. Nothing was changed. Add '--yes'."
        ) from None


def _stopped(tally: Tally) -> str:
    return (
        f"Stopped: {_sessions(tally.ended)} ended so far. Started again, it goes on with the rest."
    )


def _find(
    registry: Registry, named: tuple[str, ...], by: str | None, *, changes: bool
) -> list[t.Any]:
    """The keys of the users named.

    :param changes: whether the command would have changed something.
    :raises ClickException: a user is unknown, or the column is.
    """
    users = registry.users
    if by is not None and by not in users.columns:
        raise click.ClickException(
            f"'{users.model.__name__}' has no column '{by}'. {_columns(registry)}"
        )
    found: list[t.Any] = []
    unknown = []
    for user in named:
        try:
            matches = users.find(by or users.key.key, user)
        except TypeError:
            raise click.ClickException(
                f"Users can't be named by '{by}', which holds neither text nor whole numbers nor"
                f" UUIDs. {_columns(registry)}"
            ) from None
        found += matches
        if not matches:
            unknown.append(user)
    # What follows is read over other connections, of which there may be no second one.
    users.release()
    if unknown:
        names = ", ".join(f"'{name}'" for name in unknown)
        problem = f"There is no user whose '{by or users.key.key}' is {names}."
        raise click.ClickException(f"{problem} Nothing was changed." if changes else problem)
    return list(dict.fromkeys(found))


def _columns(registry: Registry) -> str:
    """A sentence on what '--by' takes: none of what holds a password."""
    users = registry.users
    hidden = {*registry.credentials.names, *PASSWORD_ATTRIBUTES}
    names = [name for name, _ in users.columns.items() if name not in hidden]
    named = [f"'{name}'" for name in names if users.can_be_named_by(name)]
    return f"Name users by one of {', '.join(named)}."


def _show(records: Records, user_ids: list[t.Any] | None, filter: Filter, *, as_json: bool) -> None:
    """What would end."""
    count = records.count(user_ids, filter)
    meant = itertools.chain.from_iterable(records.matching(user_ids, filter))
    sample = list(itertools.islice(meant, _SAMPLE))
    if as_json:
        click.echo(json.dumps({"would_end": count, "sample": list(map(shown.json_of, sample))}))
        return
    click.echo(f"{_sessions(count)} would end. Nothing was changed.")
    for line in shown.lines_of(sample):
        click.echo(f"  {line}")
    if count > len(sample) > 0:
        click.echo(f"  ... and {count - len(sample)} more")


@contextlib.contextmanager
def _progress(length: Callable[[], int]) -> Iterator[Callable[[int], None]]:
    """A progress bar for whoever is watching; in a pipe there is none, nor is its length asked."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=length(), label="Ending sessions", file=sys.stderr) as bar:
        yield bar.update


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _sessions(count: int) -> str:
    return _number(count, "session")


def _entries(count: int) -> str:
    return f"{count} entr{'y' if count == 1 else 'ies'}"
