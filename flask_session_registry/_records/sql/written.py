"""Whether a transaction has committed what it had written, so that it needn't be read again."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa


class WrittenRows:
    """Follows a connection from the last write to a table until the end of its transaction.

    Not every commit of a session commits: a session that is bound to a connection may leave that to
    the owner of the connection. And a statement of the app's own may roll back to a savepoint, or
    write the table, unknown to the session.
    """

    def __init__(self, connection: sa.Connection, table: sa.Table) -> None:
        self._table = table.name.lower()
        self._is_committed = False
        self._is_changed = False
        #: What is listened to on the connection; empty once the outcome is known.
        self._listening: list[tuple[object, str, t.Any]] = [
            (connection, "before_cursor_execute", self._before_statement),
            (connection, "commit", self._commit),
            (connection, "rollback", self._change),
        ]
        for each in self._listening:
            sa.event.listen(*each)

    def are_committed(self) -> bool:
        """Return whether the rows are, or were at the commit, as they were written."""
        while self._is_committed and self._listening:
            # The app's own connection may live as long as the process.
            sa.event.remove(*self._listening.pop())
        return self._is_committed and not self._is_changed

    def _before_statement(self, _: object, __: object, statement: str, *___: object) -> None:
        text = statement.lstrip().lower()
        writes = self._table in text and not text.startswith("select")
        if writes or "rollback" in text:
            self._change()

    def _commit(self, _: sa.Connection) -> None:
        self._is_committed = True

    def _change(self, _: object = None) -> None:
        self._is_changed = self._is_changed or not self._is_committed


def follow(result: sa.CursorResult[t.Any], table: sa.Table) -> WrittenRows:
    """Follow what a statement has just written."""
    return WrittenRows(result.context.root_connection, table)
