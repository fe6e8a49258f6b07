"""Run something after a database transaction has durably committed.

A savepoint's release is no commit; a transaction that is rolled back, closed or forgotten commits
nothing. SQLAlchemy sends ``after_commit`` for savepoints too, and while the connection is still
checked out; so what was asked for here runs when the *outermost* transaction has ended after such a
commit and its connection is back in the pool.
"""

from __future__ import annotations

import logging
import threading
import typing as t
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.orm import Session, SessionTransaction

_log = logging.getLogger("flask_session_registry")
_KEY = "flask_session_registry.transaction"


class Pending:
    """Something that waits for the commit of one transaction."""

    def __init__(self, session: Session, callback: Callable[[], None]) -> None:
        self.session = session
        self.callback = callback
        self._thread = threading.get_ident()
        #: Whether the transaction is neither committed nor rolled back yet.
        self.is_open = True

    def is_of_this_thread(self, session: Session) -> bool:
        """Whether nobody else can be using its session: it is this thread's, or ``session``."""
        return self._thread == threading.get_ident() or self.session is session


class _Waiting(t.TypedDict):
    transaction: SessionTransaction
    pending: list[Pending]
    committed: bool


def on_commit(session: Session, callback: Callable[[], None]) -> Pending:
    """Call ``callback`` once the transaction that ``session`` is in has committed.

    It runs at most once, in the thread that commits, with no transaction of ``session`` open.
    An exception in it is logged: the data are committed by then.
    """
    if _KEY not in session.info:
        sa.event.listen(session, "after_commit", _committed)
        sa.event.listen(session, "after_transaction_end", _ended)
        session.info[_KEY] = None
    waiting: _Waiting | None = session.info[_KEY]
    transaction = session.get_transaction() or session.begin()
    if waiting is None:
        waiting = {"transaction": transaction, "pending": [], "committed": False}
        session.info[_KEY] = waiting
    pending = Pending(session, callback)
    waiting["pending"].append(pending)
    return pending


def _committed(session: Session) -> None:
    waiting: _Waiting | None = session.info[_KEY]
    if waiting is not None and not session.in_nested_transaction():
        waiting["committed"] = True


def _ended(session: Session, transaction: SessionTransaction) -> None:
    waiting: _Waiting | None = session.info[_KEY]
    if waiting is None or transaction is not waiting["transaction"]:
        return
    session.info[_KEY] = None
    for pending in waiting["pending"]:
        pending.is_open = False
        if waiting["committed"]:
            try:
                pending.callback()
            except Exception:
                _log.exception("What had to follow a committed revocation failed.")
