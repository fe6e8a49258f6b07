"""The command line of an operator."""

from __future__ import annotations

import sys
import typing as t

import click
from flask import current_app
from flask.cli import with_appcontext

from .installation import get_installation, unwrap
from .records import Records
from .revocation import check_reason, revoke_users

#: How many users are signed out in one transaction.
_USERS = 500


def _reason(_: click.Context, __: click.Parameter, value: str) -> str:
    try:
        return check_reason(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command("revoke-sessions")
@click.argument("users", nargs=-1, metavar="[USER]...")
@click.option("--all", "everybody", is_flag=True, help="End the sessions of everybody.")
@click.option("--by", metavar="COLUMN", help="What USER is a value of. [default: the primary key]")
@click.option(
    "--reason",
    default="revoked",
    show_default=True,
    callback=_reason,
    help="Kept with the sessions, and told by the signal.",
)
@click.option("--dry-run", is_flag=True, help="Only say how many sessions would end.")
@click.option("--yes", is_flag=True, help="Do not ask before ending everybody's sessions.")
@with_appcontext
def revoke_sessions(
    users: tuple[str, ...],
    everybody: bool,
    by: str | None,
    reason: str,
    dry_run: bool,
    yes: bool,
) -> None:
    """End all sessions of the users named, or of everybody.

    They are signed out at their next request, on every device. Interrupted, it has ended what it
    said; started again, it goes on with the rest.
    """
    if bool(users) == everybody:
        raise click.UsageError("Name one or more users, or say '--all'.")
    if everybody and by is not None:
        raise click.UsageError("'--by' goes with the users that you name.")
    records = get_installation().records
    user_ids = None if everybody else _find(records, users, by)
    if dry_run:
        click.echo(f"{_sessions(records.count(user_ids))} would end. Nothing was changed.")
        return
    if everybody and not yes:
        click.confirm(f"End {_sessions(records.count(None))}, of everybody?", abort=True, err=True)
    _revoke(records, user_ids, reason)


commands: dict[str, click.Command] = {"revoke-sessions": revoke_sessions}


def _find(records: Records, users: tuple[str, ...], by: str | None) -> list[t.Any]:
    """The keys of the users named.

    :raises ClickException: a user is unknown, or the column is.
    """
    model = records.credentials.user_model
    if by is not None and by not in records.user_columns:
        raise click.ClickException(f"'{model.__name__}' has no column '{by}'.")
    found: list[t.Any] = []
    unknown = []
    for user in users:
        try:
            matches = records.find_users(by or records.user_key.key, user)
        except TypeError:
            raise click.ClickException(
                f"Users can't be named by '{by}', which holds neither text nor whole numbers nor"
                " UUIDs."
            ) from None
        found += matches
        if not matches:
            unknown.append(user)
    if unknown:
        names = ", ".join(f"'{name}'" for name in unknown)
        raise click.ClickException(
            f"There is no user whose '{by or records.user_key.key}' is {names}."
            " Nothing was changed."
        )
    return list(dict.fromkeys(found))


def _revoke(records: Records, user_ids: list[t.Any] | None, reason: str) -> None:
    installation, app = get_installation(), unwrap(current_app)
    session = records.db.session
    ended = purged = unpurged = 0
    with click.progressbar(
        length=records.count(user_ids),
        label="Ending sessions",
        file=sys.stderr,
    ) as bar:
        for batch in _batches(records, user_ids):
            count, revocation = revoke_users(
                installation, app, batch, reason=reason, session=session()
            )
            session.commit()
            ended += count
            purged += revocation.purged
            unpurged += revocation.unpurged
            bar.update(count)
    click.echo(f"{_sessions(ended)} ended; {_entries(purged)} purged from the session store.")
    if unpurged:
        click.echo(
            f"{_entries(unpurged)} could not be deleted. The sessions are over all the same.",
            err=True,
        )


def _batches(records: Records, user_ids: list[t.Any] | None) -> t.Iterator[list[t.Any]]:
    if user_ids is not None:
        yield from (user_ids[n : n + _USERS] for n in range(0, len(user_ids), _USERS))
        return
    batch: list[t.Any] = records.holders(None, _USERS)
    while batch:
        yield batch
        batch = records.holders(batch[-1], _USERS)


def _sessions(count: int) -> str:
    return f"{count} session{'' if count == 1 else 's'}"


def _entries(count: int) -> str:
    return f"{count} entr{'y' if count == 1 else 'ies'}"
