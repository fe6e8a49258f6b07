"""Flask-Login: what it keeps in the app context and in ``flask.session``."""

from __future__ import annotations

import typing as t

from flask import Flask
from flask_login import UserMixin

from .flask import app_globals

#: The keys in ``flask.session`` of the user's id, and of whether the login is fresh.
USER_ID, FRESH = "_user_id", "_fresh"

#: The keys in ``flask.session`` that belong to a login.
LOGIN_KEYS = (USER_ID, FRESH, "_id", "_remember", "_remember_seconds")

#: The name in ``g`` of the user of this app context.
_CACHED_USER = "_login_user"


def take_cached_user() -> t.Any:
    """Remove the user from the app context, so that it is loaded again; ``None`` if not loaded."""
    return vars(app_globals()).pop(_CACHED_USER, None)


def cache_user(user: t.Any) -> None:
    """Make this the user of the app context, without loading it."""
    setattr(app_globals(), _CACHED_USER, user)


def replace_cached_user(user: t.Any) -> None:
    """Make this the user of the app context; if ``None``, it is loaded again."""
    kept = vars(app_globals())
    if user is not None:
        kept[_CACHED_USER] = user
    else:
        kept.pop(_CACHED_USER, None)


def load_user(app: Flask, user_id: str) -> t.Any:
    """Call the app's user loader; ``None`` if there is no such user, or no user loader."""
    load = app.login_manager._user_callback  # type: ignore[attr-defined]
    return None if load is None else load(user_id)


def has_usual_ids(app: Flask) -> bool:
    """Return whether users are identified by their ``get_id()``."""
    attribute: str = app.login_manager.id_attribute  # type: ignore[attr-defined]
    return attribute == "get_id"


def has_plain_id(app: Flask, user: t.Any) -> bool:
    """Return whether the id of a user in Flask-Login's cookie and session is ``user.id``."""
    return has_usual_ids(app) and type(user).get_id is UserMixin.get_id


def get_id(app: Flask, user: t.Any) -> str:
    """Return the id of a user in Flask-Login's cookie and session."""
    return str(getattr(user, app.login_manager.id_attribute)())  # type: ignore[attr-defined]
