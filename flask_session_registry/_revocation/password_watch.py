"""Watches the users that a flush writes, and revokes sessions in the same transaction.

``_records/sql/revocation.py`` lists the statements of a password change in their order.
"""

from __future__ import annotations

import contextlib
import functools
import typing as t
from collections.abc import Callable, Iterator

import sqlalchemy as sa
from flask import Flask, current_app

from .._app import Registry, find_registry, get_registry
from .._compat import flask_login
from .._compat.flask import unwrap
from .._diagnosis import explaining_table
from .._log import log
from .._records.base import PasswordChange, RevocationOrder
from .._request import check as session_check
from .._request.context import ensure_context, find_context
from .._request.current_session import CurrentSession
from ..errors import RecordsError, StaleRequestError
from .after_commit import app_context
from .commit_hooks import on_commit
from .fingerprint import CredentialChange
from .rehash import is_rehash, same_password
from .revoke import Revocation

PASSWORD_CHANGED = "password_changed"

_LISTENING = "_flask_session_registry_listening"
_View = t.TypeVar("_View", bound=Callable[..., t.Any])


def listen(registry: Registry) -> None:
    """Watch every instance of the user model, once per process, however many apps use it."""
    credentials = registry.credentials
    model = credentials.user_model
    listening: set[tuple[str, ...]] | None = vars(model).get(_LISTENING)
    if listening is None:
        listening = set()
        setattr(model, _LISTENING, listening)
        sa.event.listen(model, "after_update", _on_update, propagate=True)
        sa.event.listen(model, "before_delete", _on_delete, propagate=True)
    registry.adoption.listen()
    if credentials.names not in listening:
        listening.add(credentials.names)
        credentials.listen()


@explaining_table()
def _on_update(_: object, connection: sa.Connection, user: t.Any) -> None:
    """Handle a user that a flush has just written. The flush has locked its row."""
    registry = find_registry()
    if registry is not None and isinstance(user, registry.credentials.user_model):
        _WrittenUser(registry, connection, user).handle_update()


@explaining_table()
def _on_delete(_: object, connection: sa.Connection, user: t.Any) -> None:
    """Handle a user that a flush is about to delete."""
    registry = find_registry()
    if registry is not None and isinstance(user, registry.credentials.user_model):
        _WrittenUser(registry, connection, user).handle_deletion()


class _WrittenUser:
    """A user that a flush writes, in the transaction of ``connection``."""

    def __init__(self, registry: Registry, connection: sa.Connection, user: t.Any) -> None:
        self._registry = registry
        self._connection = connection
        self._user = user
        self._user_id = registry.user_id_of(user)

    def handle_deletion(self) -> None:
        self._registry.records.lock_users(self._connection.execute, [self._user_id])
        self._end_all("deleted", users_are_deleted=True)

    def handle_update(self) -> None:
        change = self._registry.credentials.pop_change(self._connection, self._user)
        if not self._user.is_active:
            # Once active again, the user must not be signed in by it.
            self._end_all("inactive")
        elif change is not None:
            self._handle_change(change)
        elif _has_another_id(self._user):
            # Flask-Login finds no user for sessions that carry the old one. This session gets the
            # new one, if this request changes the password as well.
            current = self._current
            self._end_all("id_changed", except_id=current.id if current else None)

    def _handle_change(self, change: CredentialChange) -> None:
        current = self._current
        if current is not None:
            if not current.knows(change.before):
                # Changed since the check, whatever the view may have loaded later.
                self._refuse()
            current.store_credential(change.after)
        self._registry.adoption.before_change(self._connection.execute, [self._user_id])
        if is_rehash(self._user) or change.is_same_password:
            self._sync_fingerprints(change)
        else:
            self._revoke_others(change)

    def _sync_fingerprints(self, change: CredentialChange) -> None:
        """Keep the user's sessions active: the same password is stored in another way."""
        registry, context = self._registry, find_context(self._registry)
        finish = registry.records.sync_fingerprints(
            self._connection.execute, self._user_id, before=change.before, after=change.after
        )
        current = self._current
        if current is not None:
            current.sync_fingerprints(change.before, change.after)
        pending = on_commit(
            registry.session_of(self._user),
            functools.partial(_finish_sync, unwrap(current_app), finish),
        )
        if context is not None:
            context.record_rehash(self._user_id, change.before, change.after)
            # Left uncommitted, it must not be stored, any more than a new password.
            context.await_commit(pending)

    def _revoke_others(self, change: CredentialChange) -> None:
        """End the user's sessions, except the one in which the password is changed."""
        registry, current = self._registry, self._current
        reason = self._reason
        if reason is None:
            registry.adoption.after_unwatched_change(self._connection.execute, self._user_id)
            return
        survivor = None
        if current is not None:
            survivor = current.survive(unwrap(current_app).session_interface, self._user)
        revocation = self._revoke(reason, change=PasswordChange(change.after, survivor))
        if current is not None and not revocation.result.has_survivor:
            # The session that does it has ended, or belongs to another request by now.
            self._refuse()
        # Even if no user was signed in: left uncommitted, the password must not be stored.
        revocation.run_after_commit_of(registry.session_of(self._user))

    def _end_all(self, reason: str, **options: t.Any) -> None:
        revocation = self._revoke(reason, **options)
        if revocation.has_written:
            revocation.run_after_commit_of(self._registry.session_of(self._user))

    def _revoke(self, reason: str, **options: t.Any) -> Revocation:
        order = RevocationOrder(reason, [self._user_id], **options)
        revocation = Revocation(self._registry, unwrap(current_app), order)
        revocation.execute(self._connection.execute)
        return revocation

    def _refuse(self) -> t.NoReturn:
        # So that the next try starts from what is stored now.
        self._registry.credentials.forget(sa.inspect(self._user))
        raise StaleRequestError

    @property
    def _reason(self) -> str | None:
        """The reason that a password change gives; ``None`` if it is not watched."""
        context = find_context(self._registry)
        if context is not None and context.watch_reason is not None:
            return context.watch_reason
        return PASSWORD_CHANGED if self._registry.settings.revoke_on_password_change else None

    @property
    def _current(self) -> CurrentSession | None:
        """The user session of this request, if it is this user's."""
        context = find_context(self._registry)
        current = context.current if context else None
        is_theirs = current is not None and current.user_id == self._user_id
        return current if is_theirs else None


def _finish_sync(app: Flask, finish: Callable[[], None]) -> None:
    """Let sessions follow a committed new hash of the same password."""
    with app_context(app):
        try:
            finish()
        except RecordsError as error:
            log.warning(
                "User sessions could not follow a new hash of the same password (%s). They have"
                " to sign in again.",
                type(error.__context__).__name__,
            )


def _has_another_id(user: t.Any) -> bool:
    """Return whether a flush has changed what ``get_id()`` returns, but for the primary key.

    Compares two instances that hold what is loaded, and what was known before: whatever else the
    method reads is missing in both.
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
        # Empty, if the old value was never loaded.
        for value in history.deleted:
            before[name] = value
    # A method of the app's own, on instances that were never loaded.
    with contextlib.suppress(Exception):
        return bool(before) and _id_of(app, user, after | before) != _id_of(app, user, after)
    return False


def _id_of(app: Flask, user: t.Any, values: dict[str, t.Any]) -> str:
    instance = sa.inspect(user).manager.new_instance()
    sa.inspect(instance).dict.update(values)
    return flask_login.get_id(app, instance)


def watch_password(view: _View, reason: str) -> _View:
    """Return the view, with every password change in it watched, for this reason."""

    @functools.wraps(view)
    def watched(*args: t.Any, **kwargs: t.Any) -> t.Any:
        registry = get_registry()
        session_check.current(registry)
        with ensure_context(registry).watching_password(reason):
            try:
                return current_app.ensure_sync(view)(*args, **kwargs)
            except BaseException:
                # A session store in SQL would commit what the view has left behind.
                registry.users.roll_back()
                raise

    return t.cast(_View, watched)


@contextlib.contextmanager
def same_credentials(registry: Registry, user: t.Any) -> Iterator[None]:
    """Treat a new password hash of this user, within the block, as one of the same password."""
    user = unwrap(user)
    registry.user_id_of(user)
    session = registry.session_of(user)
    # What is pending before the block doesn't belong to it.
    session.flush()
    with same_password(user):
        yield
        session.flush()
