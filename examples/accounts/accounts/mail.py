"""Where mail would be sent.

Put your mail service here, and let it send in the background: an answer that takes longer for the
addresses that exist tells which do.
"""

import click


def send(recipient: str, text: str) -> None:
    click.echo(f"\nMail to {recipient}:\n{text}\n", err=True)
