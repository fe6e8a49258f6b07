"""How does a mail get to somebody?

By the server of the configuration; where there is none, mail is shown on the terminal. It is sent
in the background: nobody waits for a server that is slow, or down, and an answer that took longer
for the addresses that exist would tell which do.

A mail that can't be sent is logged, and lost. So is one that is under way when the process ends.
Where that won't do, hand it to a queue of jobs here.
"""

import smtplib
import ssl
from threading import Thread

import click
from flask import Flask, current_app
from flask_mail import Connection, Message

#: How many seconds the server may take for each of its answers.
TIMEOUT = 10


def send(recipient: str, *, subject: str, text: str, html: str | None = None) -> None:
    """Returns at once. What becomes of the mail is at most logged."""
    app = current_app._get_current_object()
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
            # Only the kind of the error: its text may name the recipient, or be the mail itself.
            app.logger.error(  # noqa: TRY400
                "A mail was not sent, because of '%s'. Look at the 'MAIL_' variables, and at what"
                " the mail server has logged.",
                type(error).__name__,
            )


class _Connection(Connection):
    """Flask-Mail's own waits for ever, takes any certificate, and prints all when debugging."""

    def configure_host(self) -> smtplib.SMTP:
        server = smtplib.SMTP(self.mail.server, self.mail.port, timeout=TIMEOUT)
        try:
            if self.mail.use_tls:
                server.starttls(context=ssl.create_default_context())
            if self.mail.username and self.mail.password:
                server.login(self.mail.username, self.mail.password)
        except Exception:
            # Or it would stay open: the error holds on to it, and is in no hurry to be collected.
            server.close()
            raise
        return server
