"""Users that change outside of any app: in a thread or a script with its own database session.

Only adoption must be blocked here. Ending registered sessions needs the app, and can be left out:
the session check compares the password and loads the user, so it refuses them.
"""

from __future__ import annotations

import typing as t
import weakref
from collections.abc import Iterator

import sqlalchemy as sa

from .._app import find_registry
from .._diagnosis import explaining_table
from .._revocation.rehash import is_rehash

if t.TYPE_CHECKING:
    from .adoption import Adoption

#: The attribute of a user model that holds the adoptions of its apps.
_ADOPTIONS = "_flask_session_registry_adoptions"


def listen(adoption: Adoption) -> None:
    """Block the adoption of a user's sessions where the user changes outside of any app."""
    model = adoption.registry.credentials.user_model
    if _ADOPTIONS not in vars(model):
        # Weak references: the adoption of an app that is gone disappears with it.
        setattr(model, _ADOPTIONS, weakref.WeakSet())
        sa.event.listen(model, "after_update", _on_update, propagate=True)
        sa.event.listen(model, "before_delete", _on_delete, propagate=True)
    vars(model)[_ADOPTIONS].add(adoption)


@explaining_table()
def _on_update(_: object, connection: sa.Connection, user: t.Any) -> None:
    """Handle a user that a flush has just written. The flush has locked its row."""
    if _is_watched(user) or is_rehash(user):
        return
    changed: dict[tuple[str, ...], bool] = {}
    for adoption in _adoptions_of(user):
        credentials = adoption.registry.credentials
        if credentials.names not in changed:
            # Called once: it forgets the change.
            change = credentials.pop_change(connection, user)
            changed[credentials.names] = change is not None or not user.is_active
        if changed[credentials.names]:
            _block(adoption, connection, user)


@explaining_table()
def _on_delete(_: object, connection: sa.Connection, user: t.Any) -> None:
    """Handle a user that a flush is about to delete."""
    if _is_watched(user):
        return
    for adoption in _adoptions_of(user):
        registry = adoption.registry
        registry.records.lock_users(connection.execute, [registry.user_id_of(user)])
        _block(adoption, connection, user)


def _is_watched(user: t.Any) -> bool:
    """Return whether the current app watches this user: then it does everything."""
    registry = find_registry()
    return registry is not None and isinstance(user, registry.credentials.user_model)


def _adoptions_of(user: t.Any) -> Iterator[Adoption]:
    for cls in type(user).__mro__:
        yield from [*vars(cls).get(_ADOPTIONS, ())]


def _block(adoption: Adoption, connection: sa.Connection, user: t.Any) -> None:
    user_ids = [adoption.registry.user_id_of(user)]
    dialect = connection.dialect.name
    adoption.records.block_adoption(connection.execute, user_ids, dialect=dialect)
