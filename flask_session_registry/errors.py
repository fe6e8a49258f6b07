"""What can go wrong for the developer of an app."""

from __future__ import annotations

from werkzeug.exceptions import Conflict


class SessionRegistryError(Exception):
    """Base of every error that this extension raises."""


class ConfigurationError(SessionRegistryError):
    """The app is put together in a way that the registry can't work with.

    Raised at start-up where that can be seen, otherwise at the first request.
    """


class NotInstalledError(SessionRegistryError, RuntimeError):
    """The registry was asked on an app on which 'init_app' was not called."""


class UserError(SessionRegistryError, ValueError):
    """What was given as a user is none: another class, or not saved yet."""


class RecordsError(SessionRegistryError):
    """The user sessions can't be asked: their home, Redis say, is down; or their table is missing,
    or not as its model says.

    From a revocation it means that nothing was revoked, or not everything: call it again. Where the
    table is to blame, nothing of the transaction is stored.
    """


class StaleRequestError(SessionRegistryError, Conflict):
    """A password can't be changed: another request has changed it, or ended this session, first.

    Raised by the flush that would have stored it, or by the commit. Nothing of the transaction is
    stored, and no session has ended. Roll back, load the user again and check the current password
    again before another try. Left to Flask, it is answered with 409.
    """

    description = (
        "The password, or this session, was changed by another request in the meantime. This change"
        " was not stored."
    )


class PurgeError(SessionRegistryError):
    """Store entries of ended sessions could not be deleted. It names the class of what the client
    of the store raised, whose text might hold a key.
    """
