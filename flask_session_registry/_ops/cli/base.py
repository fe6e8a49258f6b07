"""Command classes that report every failure in one line of plain text."""

from __future__ import annotations

import contextlib
import typing as t
from collections.abc import Iterator

import click

from ..._diagnosis import diagnose, shows_tracebacks
from ..._log import describe
from ..._plain_text import plain
from ..._records.base import UNAVAILABLE
from ...errors import SessionRegistryError


def failure(error: BaseException, progress: str = "") -> click.ClickException:
    """Return the exception that ends a command: the diagnosis of an error, on one line.

    :param progress: a sentence on what the command had done by then.
    """
    if shows_tracebacks():
        click.echo(describe(error), err=True)
    return click.ClickException(plain(f"{diagnose(error)} {progress}".strip()))


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Keep control characters of the user's input, and tracebacks, out of error messages."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = plain(error.message)
        raise
    except (*UNAVAILABLE, SessionRegistryError) as error:
        raise failure(error) from None


class Command(click.Command):
    """A command whose errors are one line, without control characters."""

    def make_context(self, *args: t.Any, **kwargs: t.Any) -> click.Context:
        with _plain_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> t.Any:
        with _plain_errors():
            return super().invoke(ctx)


class Group(Command, click.Group):
    """A group of such commands."""

    command_class = Command
