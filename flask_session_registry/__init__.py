"""See where users are signed in; sign them out everywhere, reliably, on a password change."""

from importlib.metadata import version

from ._ops.maintenance import PruneResult
from ._store.backends import register_session_store
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
from .models import UserSessionMixin, UserSessionRecord
from .signals import purge_failed, session_registered, session_rejected, session_revoked

__version__ = version("Flask-Session-Registry")

__all__ = [
    "ConfigurationError",
    "NotInstalledError",
    "PruneResult",
    "PurgeError",
    "RecordsError",
    "SessionRegistry",
    "SessionRegistryError",
    "StaleRequestError",
    "UserError",
    "UserSessionMixin",
    "UserSessionRecord",
    "__version__",
    "purge_failed",
    "register_session_store",
    "session_registered",
    "session_rejected",
    "session_revoked",
]
