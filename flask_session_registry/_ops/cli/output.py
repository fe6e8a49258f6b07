"""Dialogs of the commands: the progress bar, the question before a large revocation."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

import click


def confirm(question: str) -> None:
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


@contextlib.contextmanager
def progress_bar(length: Callable[[], int]) -> Iterator[Callable[[int], None]]:
    """Show progress on a terminal. In a pipe, show nothing and don't compute the length."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=length(), label="Ending sessions", file=sys.stderr) as bar:
        yield bar.update
