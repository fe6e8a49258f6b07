"""Options of the commands."""

from __future__ import annotations

import typing as t
from collections.abc import Callable

import click

from .. import filters

_Decorator = Callable[..., t.Any]


def parsed_by(parse: Callable[[str], t.Any]) -> Callable[..., t.Any]:
    """Return a callback for an option whose value has a notation of its own.

    :param parse: returns the value, or raises a ``ValueError`` that says what to write instead.
    """

    def convert(_: click.Context, __: click.Parameter, value: str | None) -> t.Any:
        if value is None:
            return None
        try:
            value.encode()
            return parse(value)
        except UnicodeEncodeError:
            raise click.BadParameter("It is not UTF-8. Set your terminal to UTF-8.") from None
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return convert


by_option: _Decorator = click.option(
    "--by", metavar="COLUMN", help="The column that identifies USER. [default: the primary key]"
)

format_option: _Decorator = click.option(
    "--format",
    "as_json",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    callback=lambda _, __, value: value == "json",
    help="The output format. 'json' prints a single object.",
)

_FILTERS: tuple[_Decorator, ...] = (
    click.option(
        "--older-than",
        "created_until",
        callback=parsed_by(filters.ago),
        metavar="DURATION",
        help="Only sessions that began at least this long ago: '45s', '90m', '12h', '30d', '2w'.",
    ),
    click.option(
        "--idle-for",
        "last_seen_until",
        callback=parsed_by(filters.ago),
        metavar="DURATION",
        help="Only sessions last seen at least this long ago. How precise that is depends on"
        " 'SESSION_REGISTRY_TOUCH_INTERVAL'.",
    ),
    click.option(
        "--ip",
        "network",
        callback=parsed_by(filters.network),
        metavar="ADDRESS|NETWORK",
        help="Only sessions last seen from this address or network: '203.0.113.9', '10.0.0.0/8'.",
    ),
    click.option(
        "--user-agent",
        callback=parsed_by(filters.part_of_user_agent),
        metavar="TEXT",
        help="Only sessions whose user agent contains this text. Case is ignored.",
    ),
)


def filter_options(command: _Decorator) -> t.Any:
    """Add the options that make a :class:`~.filters.Filter`, by the names of its fields."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command
