"""The users that a command names."""

from __future__ import annotations

import typing as t
from collections.abc import Sequence

import click

from ..._app import Registry
from ..._config import PASSWORD_ATTRIBUTES


def find_users(
    registry: Registry, names: Sequence[str], by: str | None, *, changes: bool
) -> list[t.Any]:
    """Return the primary keys of the users with these names, each once.

    :param by: the column that identifies them; by default, the primary key.
    :param changes: whether the command would have changed something.
    :raises ClickException: a user or the column is unknown.
    """
    users = registry.users
    column = _column(registry, by)
    matches = {name: _find(registry, column, name) for name in names}
    # What follows is read over another connection, and there may be only one.
    users.release()
    unknown = ", ".join(f"'{name}'" for name, found in matches.items() if not found)
    if unknown:
        problem = f"There is no user whose '{column}' is {unknown}."
        raise click.ClickException(f"{problem} Nothing was changed." if changes else problem)
    return list(dict.fromkeys(user_id for found in matches.values() for user_id in found))


def _column(registry: Registry, by: str | None) -> str:
    users = registry.users
    if by is None:
        return str(users.key.key)
    if by not in users.columns:
        raise click.ClickException(
            f"'{users.model.__name__}' has no column '{by}'. {_usable_columns(registry)}"
        )
    return by


def _find(registry: Registry, column: str, name: str) -> list[t.Any]:
    try:
        return list(registry.users.find(column, name))
    except TypeError:
        raise click.ClickException(
            f"Users can't be named by '{column}': it holds neither text nor integers nor UUIDs."
            f" {_usable_columns(registry)}"
        ) from None


def _usable_columns(registry: Registry) -> str:
    """Return a sentence on what '--by' accepts: no column that holds a password."""
    users = registry.users
    hidden = {*registry.credentials.names, *PASSWORD_ATTRIBUTES}
    names = [name for name, _ in users.columns.items() if name not in hidden]
    usable = [f"'{name}'" for name in names if users.can_be_named_by(name)]
    return f"Name users by one of {', '.join(usable)}."
