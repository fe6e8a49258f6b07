"""Ending user sessions, for certain, from anywhere."""

from __future__ import annotations

import contextlib
import functools
import logging
import typing as t
import uuid
from collections.abc import Callable, Iterator, Sequence

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask import Flask, current_app, has_app_context
from flask import session as flask_session

from . import entries, gate, remember, session_ids, signals
from .credentials import fingerprint, is_rehash, rehash
from .installation import Installation, find_installation, get_installation, unwrap
from .records import Execute
from .state import MARKER, Current, RequestState, read_marker
from .transaction import on_commit

PASSWORD_CHANGED = "password_changed"

_log = logging.getLogger("flask_session_registry")
_LISTENING = "_flask_session_registry_listening"
_View = t.TypeVar("_View", bound=Callable[..., t.Any])


class Revocation:
    """One revocation, from its ``UPDATE`` to what follows the commit.

    Which rows it has ended is asked of the database after the commit, by the id that all of them
    carry: what a savepoint took back, or a transaction that was never committed, is not found.
    """

    def __init__(
        self, installation: Installation, app: Flask, user_ids: Sequence[t.Any], reason: str
    ) -> None:
        self.installation = installation
        self.app = app
        self.user_ids = user_ids
        self.reason = check_reason(reason)
        self.id = uuid.uuid4()
        #: How many store entries were purged after the commit.
        self.purged = 0
        #: How many are still there, because the store could not be asked.
        self.unpurged = 0
        self._has_work = False

    def end(
        self, execute: Execute, *, spare: uuid.UUID | None = None, only: uuid.UUID | None = None
    ) -> int:
        count = self.installation.records.end_all(
            execute,
            self.user_ids,
            revocation=self.id,
            reason=self.reason,
            spare=spare,
            only=only,
        )
        self._has_work = count > 0 or spare is not None
        return count

    def follow_commit_of(self, session: sa_orm.Session) -> None:
        pending = on_commit(session, self._committed)
        if self.installation.is_in_request:
            self.installation.state.pending.append(pending)

    def _committed(self) -> None:
        if not self._has_work:
            return
        with _app_context(self.app):
            _follow_current(self.installation, self.user_ids)
            for batch in self.installation.records.ended_by(self.id, self.user_ids):
                ended = [(row.id, row.store_id) for row in batch]
                stored = sum(row.store_id is not None for row in batch)
                purged = purge(self.installation, self.app, ended)
                self.purged += purged
                self.unpurged += stored - purged
                for user_id in dict.fromkeys(row.user_id for row in batch):
                    signals.send(
                        signals.session_revoked,
                        self.app,
                        ids=tuple(row.id for row in batch if row.user_id == user_id),
                        user_id=user_id,
                        reason=self.reason,
                    )


def check_reason(reason: str) -> str:
    """The reason, if it fits into the row.

    :raises ValueError: it is not text of 1 to 64 characters.
    """
    if not isinstance(reason, str) or not 1 <= len(reason) <= 64:
        raise ValueError(f"'reason' is {reason!r}. It must be text of 1 to 64 characters.")
    return reason


def revoke_users(
    installation: Installation,
    app: Flask,
    user_ids: Sequence[t.Any],
    *,
    reason: str,
    session: sa_orm.Session,
    spare: uuid.UUID | None = None,
) -> tuple[int, Revocation]:
    """End all sessions of users, in the transaction of ``session``; how many there were."""
    revocation = Revocation(installation, app, user_ids, reason)
    installation.records.lock_users(session.execute, user_ids)
    count = revocation.end(session.execute, spare=spare)
    if count:
        revocation.follow_commit_of(session)
    return count, revocation


def revoke_one(
    installation: Installation,
    app: Flask,
    id: uuid.UUID,
    *,
    user_id: t.Any,
    reason: str,
    session: sa_orm.Session,
) -> bool:
    """End one session, in the transaction of ``session``; with ``user_id``, only that user's."""
    owner = installation.records.owner(session.execute, id)
    if not owner or (user_id is not None and owner[0] != user_id):
        return False
    installation.records.lock_users(session.execute, owner)
    revocation = Revocation(installation, app, owner, reason)
    if not revocation.end(session.execute, only=id):
        return False
    revocation.follow_commit_of(session)
    return True


def purge(
    installation: Installation, app: Flask, ended: Sequence[tuple[uuid.UUID, str | None]]
) -> int:
    """Delete the store entries of ended sessions; how many.

    Decides nothing: the sessions are over. If it fails that is logged and told, and the rows stay
    as they are, to be tried again.
    """
    stored = {row[0]: row[1] for row in ended if row[1] is not None}
    if not stored:
        return 0
    try:
        entries.delete(app.session_interface, t.cast("list[str]", list(stored.values())))
        installation.records.purged(list(stored))
    except Exception as error:
        _log.warning(
            "The store entries of %d ended sessions could not be deleted (%s). The sessions are"
            " over all the same.",
            len(stored),
            type(error).__name__,
        )
        signals.send(signals.purge_failed, app, ids=tuple(stored), error=error)
        return 0
    return len(stored)


def _follow_current(installation: Installation, user_ids: Sequence[t.Any]) -> None:
    """Let the session of this request follow what was committed, in memory."""
    if not installation.is_in_request:
        return
    browser, app, state = unwrap(flask_session), unwrap(current_app), installation.state
    carried = browser.get(MARKER)
    current = state.current
    if current is None:
        # Nobody has asked who this is. If it has ended, it must not be written back.
        marker = None if state.is_known(carried) else read_marker(carried)
        if marker is not None and installation.records.standing(marker[0]) is None:
            _sign_out(app, state)
        return
    if current.user_id not in user_ids:
        return
    generation = installation.records.standing(current.id)
    is_carried = carried == current.marker
    if generation is None:
        state.current = None
        if is_carried:
            _sign_out(app, state)
    elif generation != current.generation:
        current.generation = generation
        current.recredited = 0
        current.is_recredited = True
        if is_carried:
            session_ids.change(app.session_interface, browser)
            browser[MARKER] = current.marker


def _sign_out(app: Flask, state: RequestState) -> None:
    state.forgets_remember = remember.is_offered(app)
    gate.make_anonymous(app, state)


@contextlib.contextmanager
def _app_context(app: Flask) -> Iterator[None]:
    """The app's context, where a transaction is committed outside of one."""
    if has_app_context() and current_app == app:
        yield
    else:
        with app.app_context():
            yield


# -- the password ------------------------------------------------------------------------------


def listen(installation: Installation) -> None:
    """Follow the password of every instance of the user model, once for every process."""
    credentials = installation.credentials
    model = credentials.user_model
    listening: set[tuple[str, ...]] | None = vars(model).get(_LISTENING)
    if listening is None:
        listening = set()
        setattr(model, _LISTENING, listening)
        sa.event.listen(model, "after_update", _on_update, propagate=True)
    if credentials.names not in listening:
        listening.add(credentials.names)
        credentials.listen()


def _on_update(_: object, connection: sa.Connection, user: t.Any) -> None:
    """Within a flush that has just written a user, whose row is locked thereby."""
    installation = find_installation()
    if installation is None or not isinstance(user, installation.credentials.user_model):
        return
    credentials, records = installation.credentials, installation.records
    change = credentials.change(connection, user)
    if change is None:
        return
    before, after = (fingerprint(values) for values in change)
    user_id = installation.user_id_of(user)
    if is_rehash(user):
        records.follow_rehash(connection.execute, user_id, before=before, after=after)
        return
    state = installation.known_state
    reason = state.watch_reason if state else None
    if reason is None:
        if not installation.settings.revoke_on_password_change:
            return
        reason = PASSWORD_CHANGED
    current: Current | None = state.current if state else None
    spare = None
    if current is not None and current.user_id == user_id:
        known = (current.generation, current.generation + current.recredited)
        if records.recredit(connection.execute, current.id, generations=known, fingerprint=after):
            current.recredited += 1
            spare = current.id
    revocation = Revocation(installation, unwrap(current_app), [user_id], reason)
    revocation.end(connection.execute, spare=spare)
    # Also if nobody was signed in: left uncommitted, the password is not to be stored either.
    revocation.follow_commit_of(t.cast(sa_orm.Session, sa_orm.object_session(user)))


def watching(view: _View, reason: str) -> _View:
    """The view, with every change of a password in it treated as the watch treats it."""

    @functools.wraps(view)
    def watched(*args: t.Any, **kwargs: t.Any) -> t.Any:
        installation = get_installation()
        gate.current(installation)
        state = installation.state
        before, state.watch_reason = state.watch_reason, reason
        try:
            return current_app.ensure_sync(view)(*args, **kwargs)
        except BaseException:
            # A session store in SQL would commit what the view left behind.
            installation.records.db.session.rollback()
            raise
        finally:
            state.watch_reason = before

    return t.cast(_View, watched)


@contextlib.contextmanager
def same_credentials(installation: Installation, user: t.Any) -> Iterator[None]:
    """Within it, a new password hash of this user is one of the same password."""
    user = unwrap(user)
    installation.user_id_of(user)
    session = installation.session_of(user)
    # What is pending before the block is none of it.
    session.flush()
    with rehash(user):
        yield
        session.flush()
