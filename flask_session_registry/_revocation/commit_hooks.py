"""Callbacks after the commit of a database transaction.

The release of a savepoint isn't a commit; a transaction or a savepoint that is rolled back, closed
or abandoned commits nothing. SQLAlchemy sends ``after_commit`` for savepoints too, and while the
connection is still checked out. So a callback runs when the *outermost* transaction has ended after
such a commit, and its connection is back in the pool.
"""

from __future__ import annotations

import asyncio
import threading
import typing as t
from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.orm import Session, SessionTransaction

from .._log import log
from ..errors import RecordsError

_KEY = "flask_session_registry.transaction"


class Pending:
    """A callback that waits for the commit of one transaction."""

    def __init__(
        self, session: Session, callback: Callable[[], None], subject: object = None
    ) -> None:
        self.session = session
        self.callback = callback
        #: What the callback is about.
        self.subject = subject
        #: The innermost savepoint it depends on that isn't released yet.
        self.savepoint = session.get_nested_transaction()
        self._thread = threading.get_ident()
        self._task = _current_task()
        #: Whether the transaction is still neither committed nor rolled back.
        self.is_open = True

    def is_ours(self, session: Session) -> bool:
        """Return whether no other thread or coroutine can be using the callback's session.

        It is ``session``, or belongs to this thread or to a finished coroutine. Coroutines run in
        another thread.
        """
        if self._task is not None:
            return self._task.done() or self.session is session
        return self._thread == threading.get_ident() or self.session is session


def _current_task() -> asyncio.Task[t.Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # This thread has no loop.
        return None


class _Waiting(t.TypedDict):
    transaction: SessionTransaction
    pending: list[Pending]
    #: The transaction, or the savepoint in it, that has committed and hasn't ended yet.
    committed: SessionTransaction | None


def on_commit(session: Session, callback: Callable[[], None], *, subject: object = None) -> Pending:
    """Call ``callback`` after the transaction that ``session`` is in has committed.

    It runs at most once, in the thread that commits, with no transaction of ``session`` open. If
    the savepoint that ``session`` is in is rolled back, it doesn't run. An exception in it is
    logged, because the data is committed by then; a :exc:`RecordsError` propagates to the caller of
    the commit.
    """
    if _KEY not in session.info:
        sa.event.listen(session, "after_commit", _committed)
        sa.event.listen(session, "after_transaction_end", _ended)
        session.info[_KEY] = None
    waiting: _Waiting | None = session.info[_KEY]
    transaction = session.get_transaction() or session.begin()
    if waiting is None:
        waiting = {"transaction": transaction, "pending": [], "committed": None}
        session.info[_KEY] = waiting
    pending = Pending(session, callback, subject)
    waiting["pending"].append(pending)
    return pending


def pending_subjects(session: Session) -> list[object]:
    """Return the subjects of all callbacks that wait for the transaction of ``session``."""
    waiting: _Waiting | None = session.info.get(_KEY)
    return [pending.subject for pending in waiting["pending"]] if waiting else []


def _committed(session: Session) -> None:
    waiting: _Waiting | None = session.info[_KEY]
    if waiting is not None:
        waiting["committed"] = session.get_nested_transaction() or waiting["transaction"]


def _ended(session: Session, transaction: SessionTransaction) -> None:
    waiting: _Waiting | None = session.info[_KEY]
    if waiting is None:
        return
    is_committed = waiting["committed"] is transaction
    if transaction is waiting["transaction"]:
        session.info[_KEY] = None
        _run(waiting["pending"], is_committed)
    elif transaction.nested:
        kept = []
        for pending in waiting["pending"]:
            if pending.savepoint is not transaction:
                kept.append(pending)
            elif is_committed:
                pending.savepoint = _savepoint_around(transaction)
                kept.append(pending)
            else:
                pending.is_open = False
        waiting["pending"] = kept


def _savepoint_around(transaction: SessionTransaction) -> SessionTransaction | None:
    parent = transaction.parent
    return parent if parent is not None and parent.nested else None


def _run(pendings: list[Pending], is_committed: bool) -> None:
    failure: RecordsError | None = None
    for pending in pendings:
        pending.is_open = False
        if not is_committed:
            continue
        try:
            pending.callback()
        except RecordsError as error:
            failure = error
        except Exception:
            log.exception("Could not finish what follows the commit of a revocation.")
    if failure is not None:
        raise failure
