"""Know where a user is signed in, and end it, for certain, when the password changes."""

from .entries import register_session_store
from .errors import (
    ConfigurationError,
    NotInstalledError,
    PurgeError,
    RecordsError,
    SessionRegistryError,
    StaleRequestError,
    UserError,
)
from .extension import SessionRegistry
from .home import Home, UserSession
from .housekeeping import PruneResult
from .models import UserSessionMixin
from .records import Stored
from .signals import purge_failed, session_registered, session_rejected, session_revoked
from .version import __version__

__all__ = [
    "ConfigurationError",
    "Home",
    "NotInstalledError",
    "PruneResult",
    "PurgeError",
    "RecordsError",
    "SessionRegistry",
    "SessionRegistryError",
    "StaleRequestError",
    "Stored",
    "UserError",
    "UserSession",
    "UserSessionMixin",
    "__version__",
    "purge_failed",
    "register_session_store",
    "session_registered",
    "session_rejected",
    "session_revoked",
]
