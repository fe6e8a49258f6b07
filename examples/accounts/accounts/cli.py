"""``flask --app accounts seed`` creates users to try the app with."""

import click
from flask.cli import with_appcontext

from .extensions import db
from .models import User

USERS = (
    ("ann@example.com", "Ann", "correct horse battery"),
    ("bob@example.com", "Bob", "staple horse battery"),
)


@click.command()
@with_appcontext
def seed() -> None:
    """Create two users, unless they exist."""
    for email, name, password in USERS:
        user = User.with_email(email)
        if user is None:
            user = User(email=email, name=name)
            user.set_password(password)
            db.session.add(user)
        is_as_seeded = user.check_password(password)
        click.echo(f"{email}  {password if is_as_seeded else '(has another password by now)'}")
    db.session.commit()
