"""The purge: deleting the store entries of ended sessions."""

from __future__ import annotations

import logging
import time
import typing as t
import uuid
from collections.abc import Iterable, Sequence

from flask import Flask

from .. import signals
from .._diagnosis import report
from .._log import log
from ..errors import PurgeError
from .backends import TIMEOUT

if t.TYPE_CHECKING:
    from .._app import Registry

#: How many seconds a command waits for the store: longer than a response may be delayed.
LONG_TIMEOUT = 60.0


class EndedSession(t.Protocol):
    """A user session that has ended, with the keys of the store entries to delete."""

    @property
    def id(self) -> uuid.UUID: ...

    @property
    def keys(self) -> Sequence[str]: ...


class Purge:
    """Deletes the entries of ended sessions, batch by batch, until the store fails once.

    :param timeout: for each batch, in seconds. By default all batches together may take as long as
        a response may be delayed.
    :param is_logged: whether failures are logged as warnings, or reported by the caller.
    """

    def __init__(
        self,
        registry: Registry,
        app: Flask,
        *,
        timeout: float | None = None,
        is_logged: bool = True,
    ) -> None:
        self._registry = registry
        self._app = app
        self._timeout = timeout
        self._level = logging.WARNING if is_logged else logging.DEBUG
        self._spent = 0.0
        #: The failure; ``None`` while there is none.
        self.error: PurgeError | None = None

    def delete_keys(self, keys: Iterable[str]) -> bool:
        """Delete the entries with these keys; log a failure and return ``False``."""
        if self.error is None:
            began = time.monotonic()
            timeout = self._timeout
            if timeout is None:
                timeout = max(0.0, TIMEOUT - self._spent)
            try:
                self._registry.entries.delete(list(keys), timeout=timeout)
            except Exception as error:
                name = type(error).__name__
                self.error = PurgeError(f"Store entries could not be deleted ({name}).")
                log.log(
                    self._level,
                    "Store entries could not be deleted (%s). The sessions are revoked regardless.",
                    name,
                )
            self._spent += time.monotonic() - began
        return self.error is None

    def delete_entries_of(self, ended: Sequence[EndedSession]) -> bool:
        """Delete the entries of ended sessions; signal a failure and return ``False``."""
        if self.delete_keys(key for session in ended for key in session.keys):
            return True
        ids = tuple(session.id for session in ended if session.keys)
        signals.send(signals.purge_failed, self._app, ids=ids, error=self.error)
        return False

    def delete_and_mark(self, ended: Sequence[EndedSession]) -> None:
        """Delete the entries that sessions had when they ended, and record that."""
        ids = [session.id for session in ended if session.keys]
        if not ids or not self.delete_entries_of(ended):
            return
        keys = [key for session in ended for key in session.keys]
        try:
            self._registry.records.mark_purged(ids, keys=keys)
        except Exception as error:
            # They will be deleted again.
            report("Could not mark store entries as purged.", error)
