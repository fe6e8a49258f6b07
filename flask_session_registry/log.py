"""The logger ``flask_session_registry``, to which no session id goes."""

from __future__ import annotations

import logging

from sqlalchemy.exc import StatementError


def _hide_parameters(record: logging.LogRecord) -> bool:
    """Among the parameters of a statement there may be the key of an entry.

    With ``HASH_SESSION_IDS`` off that is a session id.
    """
    error = record.exc_info[1] if record.exc_info else None
    while error is not None:
        if isinstance(error, StatementError):
            error.hide_parameters = True
        error = error.__cause__ or error.__context__
    return True


log = logging.getLogger("flask_session_registry")
log.addFilter(_hide_parameters)
