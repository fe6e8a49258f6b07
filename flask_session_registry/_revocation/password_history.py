"""What this process has seen of each user's password."""

from __future__ import annotations

import typing as t
from collections.abc import Callable, Collection

import sqlalchemy as sa

from .._compat.flask import request_context
from . import lost_updates
from .fingerprint import CheckedCredential, CredentialChange, Values
from .password_columns import PasswordColumns, State, has_expression, identity_of

#: The attribute of a request that keeps what it has seen of each user.
_SEEN = "_session_registry_seen"


class Credentials(PasswordColumns):
    """The credentials of the users of one model.

    A login counts as checked against the hash that was loaded first, or one that this very process
    has stored since. What the instance holds at the time of the login doesn't count: a commit may
    have expired it, so that it was loaded again.
    """

    def __init__(self, user_model: type[t.Any], names: tuple[str, ...]) -> None:
        super().__init__(user_model, names)
        # Keys of 'InstanceState.info'.
        self._history = f"flask_session_registry.history.{','.join(names)}"
        self._base = f"flask_session_registry.base.{','.join(names)}"

    def listen(self) -> None:
        """Follow the password through the life of every instance of the user model."""
        for event in ("load", "refresh", "expire", "after_insert", "before_update"):
            receiver = getattr(self, f"_on_{event}")
            sa.event.listen(self.user_model, event, receiver, raw=True, propagate=True)

    # -- events --------------------------------------------------------------------------------

    def _on_load(self, state: State, _: object) -> None:
        values = self.attributes_of(state)
        # A deferred column is not loaded; nor is a new user whom 'merge' has made.
        if values is not None and state.key is not None:
            state.info[self._history] = self._begin_history(identity_of(state), values)

    def _begin_history(self, key: object, values: Values) -> list[Values]:
        """Return what this request has seen of a user; if nothing, these values.

        The request keeps the list, to which later changes are added. It counts for every instance
        of that user: the one that a password was checked on may be gone by the time of the login.
        """
        context = request_context()
        if context is None:
            return [values]
        seen: dict[object, list[Values]] = vars(context.request).setdefault(_SEEN, {})
        return seen.setdefault((*self.scope, key), [values])

    def _on_refresh(
        self, state: State, context: object, attributes: Collection[str] | None
    ) -> None:
        values, info = self.attributes_of(state), state.info
        if (
            values is None
            or not {*(attributes or self.names)}.intersection(self.names)
            # What the app has set, and not flushed yet, was not loaded.
            or not state.committed_state.keys().isdisjoint(self.names)
        ):
            return
        if self._history not in info:
            info[self._history] = self._begin_history(identity_of(state), values)
            info.pop(self._base, None)
        elif attributes is None or context is None or info.get(self._base, values) is None:
            # The app has asked for it, or written it by a bulk update: a change starts from here.
            info[self._base] = values

    def _on_expire(self, state: State, attributes: Collection[str] | None) -> None:
        # Within a request, what was loaded before any wait still counts.
        if request_context() is None and (
            not attributes or not {*attributes}.isdisjoint(self.names)
        ):
            state.info[self._base] = None

    def _on_after_insert(self, _: object, connection: sa.Connection, state: State) -> None:
        values = self.attributes_of(state)
        # What a type converts on its way into the database is read where it is needed.
        if (
            values is not None
            and self.are_stored_verbatim(connection.dialect)
            and not has_expression(values)
        ):
            state.info[self._history] = [values]

    def _on_before_update(self, _: object, connection: sa.Connection, state: State) -> None:
        if self.tables:
            lost_updates.watch(self, connection, state)

    # -- what they have recorded ---------------------------------------------------------------

    def password_history(self, user_id: object, state: State | None = None) -> list[Values]:
        """Return the passwords that an instance, or else this request, has seen of a user.

        The first is the one that was loaded first; the others were stored by this process since.
        """
        history: list[Values] | None = state.info.get(self._history) if state else None
        if history is None:
            history = _seen_by_request().get((*self.scope, user_id))
        return history or []

    def evidence(
        self, user: object, *, knows: Callable[[str | None], bool] | None = None
    ) -> CheckedCredential:
        """Return what was seen of the credential of a user who signs in.

        :param knows: see :attr:`CheckedCredential.knows`.
        """
        state = sa.inspect(user, raiseerr=True)
        history = self.password_history((state.identity or (None,))[0], state)
        return CheckedCredential(history[0] if history else None, tuple(history[1:]), knows)

    def bases(self, state: State) -> list[Values] | None:
        """Return the passwords that a change of this instance may start from; ``None`` if any."""
        history: list[Values] = state.info.get(self._history) or []
        base: Values | None = state.info.get(self._base, history[-1] if history else None)
        if base is None:
            return None
        return [*history, *([] if base in history else [base])]

    def forget(self, state: State) -> None:
        """Forget what was seen, so that the next change starts from what is loaded then."""
        _seen_by_request().pop((*self.scope, identity_of(state)), None)
        state.info.pop(self._history, None)
        state.info.pop(self._base, None)

    def pop_change(self, connection: sa.Connection, user: object) -> CredentialChange | None:
        """Return what an update has just changed, once; ``None`` if the credential is the same."""
        state = sa.inspect(user, raiseerr=True)
        before = lost_updates.pop_before(self, connection, state)
        if before is None:
            return None
        after = self.predict(self.attributes_of(state), connection.dialect)
        if after is None:
            # The flush may have changed the key by which it has found the row.
            (key,) = state.mapper.primary_key_from_instance(user)
            after = self.current(connection.execute, key)
        assert after is not None  # noqa: S101 -- its row was written a moment ago
        state.info.setdefault(self._history, []).append(after.attributes)
        state.info.pop(self._base, None)
        if before.fingerprint == after.fingerprint:
            return None
        is_same_password = before.attributes == after.attributes
        return CredentialChange(before.fingerprint, after.fingerprint, is_same_password)


def _seen_by_request() -> dict[object, list[Values]]:
    """Return what this request has seen of each user; empty if nothing, or outside a request."""
    context = request_context()
    return {} if context is None else vars(context.request).get(_SEEN, {})
