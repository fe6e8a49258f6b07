"""The errors that this extension raises."""

from __future__ import annotations

from werkzeug.exceptions import Conflict


class SessionRegistryError(Exception):
    """Base of every error that this extension raises."""


class ConfigurationError(SessionRegistryError):
    """The app is misconfigured.

    Raised at start-up where possible, otherwise at the first request.
    """


class NotInstalledError(SessionRegistryError, RuntimeError):
    """The registry was used on an app that it isn't set up on. Call ``init_app(app)`` first."""


class UserError(SessionRegistryError, ValueError):
    """The value given as a user is not a user of this registry, or not saved yet."""


class RecordsError(SessionRegistryError):
    """The user sessions can't be read or written.

    Redis is down, or their table is missing or differs from its model. If a revocation raises it,
    nothing was revoked, or not everything: call it again. If the table is the cause, nothing of the
    transaction is stored.
    """


class StaleRequestError(SessionRegistryError, Conflict):
    """The password can't be changed: another request changed it, or ended this session, first.

    Raised by the flush that would have stored the password, or by the commit. Nothing of the
    transaction is stored, and no session has ended. Roll back, load the user again and check the
    current password again before the next try. If the app doesn't handle it, Flask responds
    with 409.
    """

    description = (
        "The password, or this session, was changed by another request in the meantime. This change"
        " was not stored."
    )


class PurgeError(SessionRegistryError):
    """Store entries of ended sessions could not be deleted.

    It names only the class of the error that the client of the store raised: the text might hold a
    key.
    """
