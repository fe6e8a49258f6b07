"""Ending user sessions, for certain, from anywhere."""

from __future__ import annotations

import contextlib
import functools
import typing as t
import uuid
import weakref
from collections.abc import Callable, Iterator, Sequence

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm
from flask import Flask, current_app, has_app_context
from flask import session as flask_session

from .. import signals
from .._adoption import adoption
from .._app import Registry, find_registry, get_registry, unwrap
from .._compat.flask import within_request
from .._diagnosis import explaining_table, report
from .._log import log
from .._records.base import (
    UNAVAILABLE,
    End,
    Ending,
    Execute,
    PasswordChange,
    StoreEntries,
    SurvivingSession,
)
from .._request import check as session_check
from .._request import remember_cookies, store_keys
from .._request.context import MARKER, Current, RequestState, read_marker
from .._store.purge import Purge
from ..errors import RecordsError, StaleRequestError
from .after_commit import on_commit, waiting_for
from .fingerprint import is_rehash, rehash

PASSWORD_CHANGED = "password_changed"

_LISTENING = "_flask_session_registry_listening"
_REGISTRIES = "_flask_session_registry_installations"
_View = t.TypeVar("_View", bound=Callable[..., t.Any])


class Revocation:
    """One revocation, from the transaction that it is part of to what follows the commit."""

    def __init__(
        self,
        registry: Registry,
        app: Flask,
        user_ids: Sequence[t.Any],
        reason: str,
        *,
        are_deleted: bool = False,
    ) -> None:
        self.registry = registry
        self.app = app
        self.user_ids = user_ids
        self.reason = check_reason(reason)
        self.id = uuid.uuid4()
        #: Whether the users are gone when their sessions have ended.
        self.are_deleted = are_deleted
        #: Whether there is something that must not be stored if it is left uncommitted.
        self.has_written = False
        #: How many sessions have ended by now. Each is counted by one revocation only.
        self.ended = 0
        #: How many store entries were purged after the commit.
        self.purged = 0
        #: How many are still there, because the store could not be asked.
        self.unpurged = 0
        self._change: PasswordChange | None = None
        self.ending: Ending | None = None

    def end(
        self,
        execute: Execute,
        *,
        change: PasswordChange | None = None,
        only: uuid.UUID | None = None,
        where: t.Any = None,
        **how: t.Any,
    ) -> Ending:
        """End what :meth:`Table.end_all` ends, with the same parameters."""
        ending = self.registry.records.revoke(
            execute,
            self.user_ids,
            revocation=self.id,
            reason=self.reason,
            change=change,
            only=only,
            where=where,
            are_deleted=self.are_deleted,
            **how,
        )
        self._change, self.ending = change, ending
        state = self.registry.known_state
        if state is not None and state.current is not None:
            state.current.forget_row()
        self.has_written = ending.count > 0
        if self.registry.settings.adopts and (ending.count or (only is None and where is None)):
            self.registry.table.block_adoption(execute, self.user_ids)
            self.has_written = True
        return ending

    @property
    def count(self) -> int:
        """How many sessions it ends, as far as is known before the commit."""
        return self.ending.count if self.ending else 0

    def run_after_commit_of(self, session: sa_orm.Session) -> None:
        pending = on_commit(session, self._committed, subject=self)
        if self.registry.is_in_request:
            self.registry.state.pending.append(pending)

    def _committed(self) -> None:
        try:
            self._follow_commit()
        except sa.exc.SQLAlchemyError as error:
            report("What had to follow a committed revocation failed.", error)

    def _follow_commit(self) -> None:
        ending = self.ending
        if ending is None or not (ending.count or ending.is_renewed):
            return
        with _app_context(self.app):
            if ending.is_done_by_commit:
                self.ended = ending.count
                sync_current(self.registry, self.user_ids)
                self._execute_after_commit(ending)
                return
            try:
                self._execute_after_commit(ending)
            except RecordsError as error:
                if self._change is None:
                    raise
                log.warning(
                    "What follows the change of a password could not be done (%s). The sessions"
                    " are over all the same, and so may be the one that it was changed in.",
                    type(error.__context__).__name__,
                )
            finally:
                sync_current(self.registry, self.user_ids)

    def _execute_after_commit(self, ending: Ending) -> None:
        purge = Purge(self.registry, self.app)
        for batch in ending.execute_after_commit():
            if not ending.is_done_by_commit:
                self.ended += len(batch)
            ended = [(row.id, row.keys) for row in batch]
            stored = sum(bool(keys) for _, keys in ended)
            is_purged = purge.delete_of(ended)
            if is_purged:
                self.purged += stored
            else:
                self.unpurged += stored
            for user_id, ids in self._by_owner(batch).items():
                signals.send(
                    signals.session_revoked,
                    self.app,
                    ids=tuple(ids),
                    user_id=user_id,
                    reason=self.reason,
                )
            if is_purged and stored:
                self._note(functools.partial(ending.mark_purged, batch))
        self._note(ending.close)

    def _note(self, take_down: Callable[[], None]) -> None:
        """Take down that entries are gone; if that fails, they are deleted once more."""
        try:
            take_down()
        except UNAVAILABLE as error:
            report("It could not be taken down that store entries were deleted.", error)

    def _by_owner(self, batch: Sequence[StoreEntries]) -> dict[t.Any, list[uuid.UUID]]:
        """Whose sessions these were: the row of a deleted user may not know any more."""
        owned: dict[t.Any, list[uuid.UUID]] = {}
        for row in batch:
            owner = self.user_ids[0] if self.are_deleted else row.user_id
            owned.setdefault(owner, []).append(row.id)
        return owned


def check_reason(reason: str) -> str:
    """The reason, if it fits into the row.

    :raises ValueError: it is not text of 1 to 64 characters.
    """
    if not isinstance(reason, str) or not 1 <= len(reason) <= 64:
        raise ValueError(f"'reason' is {reason!r}. It must be text of 1 to 64 characters.")
    return reason


@explaining_table()
def revoke_users(
    registry: Registry,
    app: Flask,
    user_ids: Sequence[t.Any],
    *,
    reason: str,
    session: sa_orm.Session,
    except_id: uuid.UUID | None = None,
    where: t.Any = None,
) -> Revocation:
    """End the sessions of users, with the transaction of ``session``.

    :param among: which; by default all of them.
    """
    revocation = Revocation(registry, app, user_ids, reason)
    registry.records.lock_users(session.execute, user_ids)
    adoption.settle(registry, session.execute, user_ids)
    already = _endings_of(session)
    revocation.end(session.execute, except_id=except_id, where=where, already=already)
    if revocation.has_written:
        revocation.run_after_commit_of(session)
    return revocation


def _endings_of(session: sa_orm.Session) -> list[Ending]:
    """What the transaction of ``session`` ends already."""
    subjects = waiting_for(session)
    endings = (one.ending for one in subjects if isinstance(one, Revocation))
    return [ending for ending in endings if ending is not None]


@explaining_table()
def revoke_one(
    registry: Registry,
    app: Flask,
    id: uuid.UUID,
    *,
    user_id: t.Any,
    reason: str,
    session: sa_orm.Session,
) -> Revocation | None:
    """End one session, with the transaction of ``session``; with ``user_id``, only that user's.

    ``None`` if there is nothing to end.
    """
    owner = registry.records.owner_of(session.execute, id)
    if not owner or (user_id is not None and owner[0] != user_id):
        return None
    registry.records.lock_users(session.execute, owner)
    adoption.settle(registry, session.execute, owner)
    revocation = Revocation(registry, app, owner, reason)
    if not revocation.end(session.execute, only=id, already=_endings_of(session)).count:
        return None
    revocation.run_after_commit_of(session)
    return revocation


def sync_current(registry: Registry, user_ids: Sequence[t.Any]) -> None:
    """Let the session of this request follow what was committed, in memory.

    Only what this request itself has done: in a generation that another one has made of it, the
    session is that other one's, and this request may come from a copy of its cookie.
    """
    if registry.is_in_request:
        with within_request():
            _sync_current(registry, user_ids)


def _sync_current(registry: Registry, user_ids: Sequence[t.Any]) -> None:
    browser, app, state = unwrap(flask_session), unwrap(current_app), registry.state
    carried = browser.get(MARKER)
    current = state.current
    if current is None:
        # Nobody has asked who this is. If it has ended, it must not be written back.
        marker = None if state.is_known(carried) else read_marker(carried)
        if marker is not None and _standing(registry, marker[0]) is None:
            _sign_out(app, state, marker[0], _end_of(registry, marker[0]))
        return
    if current.user_id not in user_ids:
        return
    standing = _standing(registry, current.id)
    is_carried = carried == current.marker
    if standing is None:
        state.current = None
        end = _end_of(registry, current.id)
        if state.login is not None and end is not None and end.revocation in _own(state):
            # A login of this request does not depend on what the request itself has ended.
            state.login.replaces = None
        if is_carried:
            _sign_out(app, state, current.id, end)
    elif standing[0] == current.generation:
        # A session may be bound to a connection whose transaction goes on.
        current.awaits_commit = current.held[-1][0] != current.generation
    elif standing in current.held and session_check.is_answered():
        state.current = None
        _end_unreachable(registry, app, current)
    elif standing in current.held:
        current.settle(*standing)
        current.credentials_updated = True
        if is_carried:
            store_keys.change(app.session_interface, browser)
            browser[MARKER] = current.marker
    else:
        state.current = None
        if is_carried:
            # Its browser is, or will be, signed in by the answer to another request.
            state.rejected, state.rejected_id, state.is_superseded = "rotated", current.id, True
            session_check.make_anonymous(app, state)


def _end_unreachable(registry: Registry, app: Flask, current: Current) -> None:
    """End a session whose browser can't be told its new id, because it has its answer already.

    A teardown function has committed the change of a password, or the session store has, which
    saves the session by the same commit.
    """
    # If this fails, the row expires. What the browser has is of an earlier generation.
    with contextlib.suppress(*UNAVAILABLE):
        if registry.records.end(current.id, PASSWORD_CHANGED):
            Purge(registry, app).purge([(current.id, current.keys)])
            signals.send(
                signals.session_revoked,
                app,
                ids=(current.id,),
                user_id=current.user_id,
                reason=PASSWORD_CHANGED,
            )


def _standing(registry: Registry, id: uuid.UUID) -> tuple[int, str | None] | None:
    """Generation and fingerprint of a session that stands; ``None``: none, as far as is known."""
    try:
        return registry.records.current_state(id)
    except RecordsError:
        return None


def _end_of(registry: Registry, id: uuid.UUID) -> End | None:
    """How a session has ended; ``None``: it is gone, or nobody can tell."""
    try:
        return registry.records.end_now(id)
    except UNAVAILABLE:
        return None


def _own(state: RequestState) -> set[uuid.UUID]:
    """The ids of the revocations of this request, committed or not."""
    subjects = [pending.subject for pending in state.pending]
    return {one.id for one in subjects if isinstance(one, Revocation)}


def _sign_out(app: Flask, state: RequestState, id: uuid.UUID, end: End | None) -> None:
    """Turn the rest of this request into an anonymous one: its session has ended."""
    if end is not None and session_check.is_superseded(end):
        # The browser may be signed in again by now.
        state.rejected, state.rejected_id, state.is_superseded = end.reason, id, True
    else:
        state.clears_remember_cookie = remember_cookies.is_ours(app)
    session_check.make_anonymous(app, state)


@contextlib.contextmanager
def _app_context(app: Flask) -> Iterator[None]:
    """The app's context, where a transaction is committed outside of one."""
    if has_app_context() and current_app == app:
        yield
    else:
        with app.app_context():
            yield


# -- the password ------------------------------------------------------------------------------


def listen(registry: Registry) -> None:
    """Follow the password of every instance of the user model, once for every process."""
    credentials = registry.credentials
    model = credentials.user_model
    listening: set[tuple[str, ...]] | None = vars(model).get(_LISTENING)
    if listening is None:
        listening = set()
        setattr(model, _LISTENING, listening)
        sa.event.listen(model, "after_update", _on_update, propagate=True)
        sa.event.listen(model, "before_delete", _on_delete, propagate=True)
        # Weakly: an app that is gone takes its registry with it.
        setattr(model, _REGISTRIES, weakref.WeakSet())
    vars(model)[_REGISTRIES].add(registry)
    if credentials.names not in listening:
        listening.add(credentials.names)
        credentials.listen()


@explaining_table()
def _on_update(_: object, connection: sa.Connection, user: t.Any) -> None:
    """Within a flush that has just written a user, whose row is locked thereby."""
    registry = find_registry()
    if registry is None or not isinstance(user, registry.credentials.user_model):
        if not is_rehash(user):
            _block_adoption_without_app(connection, user)
        return
    credentials, records = registry.credentials, registry.records
    change = credentials.change(connection, user)
    if not user.is_active:
        # Activated again, nobody is to be signed in by it.
        _end_all(registry, connection, user, "inactive")
        return
    if change is None:
        if _has_another_id(user):
            # Flask-Login finds nobody for the sessions that carry the old one. This one gets the
            # new one, if this request changes the password as well.
            _end_all(registry, connection, user, "id_changed", except_id=_current_of(user))
        return
    user_id = registry.user_id_of(user)
    state = registry.known_state
    current = _current_of(user)
    if current is not None and not current.knows(change.before):
        # Since the check, whatever the view may have loaded later.
        credentials.forget(sa.inspect(user))
        raise StaleRequestError
    if current is not None:
        current.stored.append(change.after)
    adoption.settle(registry, connection.execute, [user_id])
    session = t.cast(sa_orm.Session, sa_orm.object_session(user))
    if is_rehash(user) or change.is_same_password:
        follow = records.sync_fingerprints(
            connection.execute, user_id, before=change.before, after=change.after
        )
        if state is not None:
            state.rehashes.append((user_id, change.before, change.after))
        if current is not None:
            current.sync_fingerprints(change.before, change.after)
        pending = on_commit(
            session, functools.partial(_sync_fingerprints, unwrap(current_app), follow)
        )
        if state is not None:
            # Left uncommitted, it is no more to be stored than a new password is.
            state.pending.append(pending)
        return
    reason = state.watch_reason if state else None
    if reason is None:
        if not registry.settings.revoke_on_password_change:
            if registry.settings.adopts:
                # It would be adopted with the new fingerprint.
                registry.table.block_adoption(connection.execute, [user_id])
            return
        reason = PASSWORD_CHANGED
    surviving = None
    if current is not None:
        surviving = SurvivingSession(
            current.id, current.held, has_entry=current.store_id is not None
        )
    revocation = Revocation(registry, unwrap(current_app), [user_id], reason)
    password_change = PasswordChange(change.after, surviving)
    ending = revocation.end(connection.execute, change=password_change, already=None)
    if current is not None and not ending.is_renewed:
        # The session that does it has ended, or is somebody else's by now.
        credentials.forget(sa.inspect(user))
        raise StaleRequestError
    # Also if nobody was signed in: left uncommitted, the password is not to be stored either.
    revocation.run_after_commit_of(session)


def _current_of(user: t.Any) -> Current | None:
    """The user session of this request, if it is this user's."""
    registry = get_registry()
    state = registry.known_state
    current = state.current if state else None
    is_theirs = current is not None and current.user_id == registry.user_id_of(user)
    return current if is_theirs else None


def _has_another_id(user: t.Any) -> bool:
    """Whether a flush has changed what ``get_id()`` says of a user, but for the primary key.

    Asked of two instances that hold what is loaded, and what was known of it before: what the
    method reads besides is missing in both.
    """
    state, app = sa.inspect(user), unwrap(current_app)
    keys = {state.mapper.get_property_by_column(column).key for column in state.mapper.primary_key}
    before: dict[str, t.Any] = {}
    after: dict[str, t.Any] = {}
    for name in state.mapper.column_attrs.keys() & state.dict.keys():
        after[name] = state.dict[name]
        history = state.attrs[name].history
        if name in keys and history.has_changes():
            return False
        # Empty, if nobody had loaded it.
        for value in history.deleted:
            before[name] = value
    # A method of the app's own, on instances that were never loaded.
    with contextlib.suppress(Exception):
        return bool(before) and _id_of(app, user, after | before) != _id_of(app, user, after)
    return False


def _id_of(app: Flask, user: t.Any, values: dict[str, t.Any]) -> str:
    instance = sa.inspect(user).manager.new_instance()
    sa.inspect(instance).dict.update(values)
    return remember_cookies.id_of(app, instance)


def _sync_fingerprints(app: Flask, follow: Callable[[], None]) -> None:
    """Let the sessions follow a new hash of the same password that has been committed."""
    with _app_context(app):
        try:
            follow()
        except RecordsError as error:
            log.warning(
                "User sessions could not follow a new hash of their password (%s), and are over.",
                type(error.__context__).__name__,
            )


@explaining_table()
def _on_delete(_: object, connection: sa.Connection, user: t.Any) -> None:
    """Within a flush that is about to delete a user."""
    registry = find_registry()
    if registry is not None and isinstance(user, registry.credentials.user_model):
        user_id = registry.user_id_of(user)
        registry.records.lock_users(connection.execute, [user_id])
        _end_all(registry, connection, user, "deleted", are_deleted=True)
    else:
        _block_adoption_without_app(connection, user, is_deleted=True)


def _block_adoption_without_app(
    connection: sa.Connection, user: t.Any, *, is_deleted: bool = False
) -> None:
    """Let no session of a user be adopted who is changed where no app is the current one.

    By a thread or a script with a database session of its own, say. What else a change does needs
    the app; the session check does without: it compares the password, and asks for the user.
    """
    changed: dict[tuple[str, ...], bool] = {}
    for cls in type(user).__mro__:
        for registry in [*vars(cls).get(_REGISTRIES, ())]:
            if not registry.settings.adopts:
                continue
            credentials, user_ids = registry.credentials, [registry.user_id_of(user)]
            if is_deleted:
                registry.records.lock_users(connection.execute, user_ids)
            elif credentials.names not in changed:
                # Asked once: it forgets what was before.
                change = credentials.change(connection, user)
                changed[credentials.names] = change is not None or not user.is_active
            if is_deleted or changed[credentials.names]:
                dialect = connection.dialect.name
                registry.table.block_adoption(connection.execute, user_ids, dialect=dialect)


def _end_all(
    registry: Registry,
    connection: sa.Connection,
    user: t.Any,
    reason: str,
    *,
    except_id: Current | None = None,
    are_deleted: bool = False,
) -> None:
    """End all sessions of a user whose row is locked, within a flush.

    :param spare: the one that goes on.
    """
    user_id = registry.user_id_of(user)
    app = unwrap(current_app)
    revocation = Revocation(registry, app, [user_id], reason, are_deleted=are_deleted)
    revocation.end(connection.execute, except_id=except_id.id if except_id else None, already=None)
    if revocation.has_written:
        revocation.run_after_commit_of(t.cast(sa_orm.Session, sa_orm.object_session(user)))


def watch_password(view: _View, reason: str) -> _View:
    """The view, with every change of a password in it treated as the watch treats it."""

    @functools.wraps(view)
    def watched(*args: t.Any, **kwargs: t.Any) -> t.Any:
        registry = get_registry()
        session_check.current(registry)
        state = registry.state
        before, state.watch_reason = state.watch_reason, reason
        try:
            return current_app.ensure_sync(view)(*args, **kwargs)
        except BaseException:
            # A session store in SQL would commit what the view left behind.
            registry.users.roll_back()
            raise
        finally:
            state.watch_reason = before

    return t.cast(_View, watched)


@contextlib.contextmanager
def same_credentials(registry: Registry, user: t.Any) -> Iterator[None]:
    """Within it, a new password hash of this user is one of the same password."""
    user = unwrap(user)
    registry.user_id_of(user)
    session = registry.session_of(user)
    # What is pending before the block is none of it.
    session.flush()
    with rehash(user):
        yield
        session.flush()
