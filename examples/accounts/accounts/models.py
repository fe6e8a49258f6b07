"""The user model."""

import functools

import sqlalchemy as sa
from flask_login import UserMixin
from sqlalchemy.orm import Mapped, mapped_column
from werkzeug.security import check_password_hash, generate_password_hash

from .extensions import db, login_manager


class User(UserMixin, db.Model):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    #: In lower case.
    email: Mapped[str] = mapped_column(sa.String(254), unique=True)
    name: Mapped[str] = mapped_column(sa.String(100))
    password_hash: Mapped[str] = mapped_column(sa.String(255))

    @classmethod
    def with_email(cls, email: str) -> "User | None":
        return db.session.scalar(sa.select(cls).where(cls.email == email))

    @classmethod
    def authenticate(cls, email: str, password: str) -> "User | None":
        """Return the user with this address and password.

        Takes as long for an unknown address, so that the time doesn't reveal it.
        """
        user = cls.with_email(email)
        if user is None:
            check_password_hash(_hash_of_nobody(), password)
            return None
        return user if user.check_password(password) else None

    def set_password(self, password: str) -> None:
        self.password_hash = generate_password_hash(password)

    def check_password(self, password: str) -> bool:
        return check_password_hash(self.password_hash, password)

    @property
    def is_password_hash_outdated(self) -> bool:
        """Whether Werkzeug would hash a password in another way now."""
        return _method(self.password_hash) != _method(_hash_of_nobody())


@login_manager.user_loader
def load_user(user_id: str) -> User | None:
    # By primary key: the registry has just loaded this user, so this runs no statement.
    return db.session.get(User, int(user_id)) if user_id.isdecimal() else None


@functools.cache
def _hash_of_nobody() -> str:
    return generate_password_hash("")


def _method(password_hash: str) -> str:
    return password_hash.partition("$")[0]
