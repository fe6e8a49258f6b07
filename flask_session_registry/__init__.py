"""Know where a user is signed in, and end it, for certain, when the password changes."""

from .errors import ConfigurationError, NotInstalledError, SessionRegistryError, UserError
from .extension import SessionRegistry
from .models import UserSessionMixin
from .signals import purge_failed, session_registered, session_rejected, session_revoked
from .version import __version__

__all__ = [
    "ConfigurationError",
    "NotInstalledError",
    "SessionRegistry",
    "SessionRegistryError",
    "UserError",
    "UserSessionMixin",
    "__version__",
    "purge_failed",
    "session_registered",
    "session_rejected",
    "session_revoked",
]
