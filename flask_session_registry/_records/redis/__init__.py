"""The records of user sessions in Redis."""

from __future__ import annotations

from ..protocols import Records
from .check import RedisCheckRecords
from .client import RedisClient
from .listing import RedisListingRecords
from .login import RedisLoginRecords
from .maintenance import RedisMaintenanceRecords
from .operator import RedisOperatorRecords
from .own_session import RedisOwnSessionRecords
from .revocation import RedisRevocationRecords
from .session import RedisUserSession

__all__ = ["RedisClient", "RedisRecords", "RedisUserSession"]


class RedisRecords(
    RedisCheckRecords,
    RedisLoginRecords,
    RedisOwnSessionRecords,
    RedisRevocationRecords,
    RedisListingRecords,
    RedisMaintenanceRecords,
    RedisOperatorRecords,
    Records,
):
    """The user sessions of one app, in Redis."""
