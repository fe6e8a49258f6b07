"""Sending mail.

Mail goes through the configured server; without one, it is shown on the terminal. It is sent in the
background, so that no response waits for a server that is slow or down. A response that took longer
for existing addresses would also reveal which exist.

A mail that can't be sent is logged and lost. So is a mail in progress when the process ends. If
that isn't enough, hand it to a job queue here.
"""

import smtplib
import ssl
from threading import Thread
from typing import cast

import click
from flask import Flask, current_app
from flask_mail import Connection, Message
from werkzeug.local import LocalProxy

#: The most seconds that the server may take for each of its answers.
TIMEOUT = 10


def send(recipient: str, *, subject: str, text: str, html: str | None = None) -> None:
    """Send in the background and return at once. A failure is only logged."""
    app = cast("LocalProxy[Flask]", current_app)._get_current_object()
    if not app.config["MAIL_SERVER"]:
        click.echo(f"\nMail to {recipient}:\n{text}\n", err=True)
        return
    message = Message(subject, [recipient], text, html)
    Thread(target=_deliver, args=(app, message), name="mail", daemon=True).start()


def _deliver(app: Flask, message: Message) -> None:
    with app.app_context():
        try:
            with _Connection(app.extensions["mail"]) as connection:
                connection.send(message)
        except Exception as error:
            # Only the kind of the error: its text may contain the recipient or the mail itself.
            app.logger.error(  # noqa: TRY400
                "A mail was not sent, because of '%s'. Look at the 'MAIL_' variables, and at what"
                " the mail server has logged.",
                type(error).__name__,
            )


class _Connection(Connection):
    """Flask-Mail's connection, but with a timeout, verified certificates and no debug output."""

    def configure_host(self) -> smtplib.SMTP:
        server = smtplib.SMTP(self.mail.server, self.mail.port, timeout=TIMEOUT)
        try:
            if self.mail.use_tls:
                server.starttls(context=ssl.create_default_context())
            if self.mail.username and self.mail.password:
                server.login(self.mail.username, self.mail.password)
        except Exception:
            # Otherwise it stays open, because the error keeps a reference to it.
            server.close()
            raise
        return server
