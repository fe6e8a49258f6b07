"""The records of user sessions as rows of a table in the app's own database.

Methods that take ``execute`` neither commit nor roll back: the transaction is the app's. All others
that write use short transactions of their own (see ``transactions``).
"""

from __future__ import annotations

from ..protocols import Records
from .check import SQLCheckRecords
from .listing import SQLListingRecords
from .login import SQLLoginRecords
from .maintenance import SQLMaintenanceRecords
from .operator import SQLOperatorRecords
from .own_session import SQLOwnSessionRecords
from .revocation import SQLRevocationRecords


class SQLRecords(
    SQLCheckRecords,
    SQLLoginRecords,
    SQLOwnSessionRecords,
    SQLRevocationRecords,
    SQLListingRecords,
    SQLMaintenanceRecords,
    SQLOperatorRecords,
    Records,
):
    """The user sessions of one app, in a table."""
