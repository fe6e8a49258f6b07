"""A home for user sessions on a page: in the memory of one process, for tests."""

from __future__ import annotations

import dataclasses
import datetime as dt
import threading
import typing as t
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence

from flask_session_registry import UserSession
from flask_session_registry._records.base import StoreEntry

_SIZE = 1000


class MemoryHome:
    def __init__(self) -> None:
        self._kept: dict[uuid.UUID, UserSession] = {}
        self._keys: dict[str, uuid.UUID] = {}
        self._lock = threading.Lock()

    def assign_id(self, id: uuid.UUID, user_id: t.Any) -> uuid.UUID:
        return id

    def add(self, session: UserSession) -> None:
        with self._lock:
            self._keep(session)

    def get(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, UserSession]:
        kept = {id: self._kept.get(id) for id in ids}
        return {id: dataclasses.replace(one) for id, one in kept.items() if one is not None}

    def update(
        self, ids: Sequence[uuid.UUID], values: Mapping[str, t.Any], *, where: Mapping[str, t.Any]
    ) -> list[StoreEntry]:
        with self._lock:
            found = [
                one
                for one in self.get(ids).values()
                if all(getattr(one, name) == value for name, value in where.items())
            ]
            return [self._keep(dataclasses.replace(one, **values)) for one in found]

    def of_users(
        self, user_ids: Collection[t.Any], *, ended: bool = False
    ) -> Iterator[list[UserSession]]:
        return self._batches(
            lambda one: one.user_id in user_ids and (one.revoked_at is not None) is ended
        )

    def all(self) -> Iterator[list[UserSession]]:
        return self._batches(lambda _: True)

    def due(self, by: dt.datetime) -> Iterator[list[UserSession]]:
        return self._batches(lambda one: one.due_at is not None and one.due_at <= by)

    def with_key(self, store_id: str) -> uuid.UUID | None:
        return self._keys.get(store_id)

    def remove(self, ids: Sequence[uuid.UUID]) -> int:
        with self._lock:
            over = [id for id, one in self.get(ids).items() if one.revoked_at is not None]
            for id in over:
                del self._kept[id]
            return len(over)

    def _keep(self, session: UserSession) -> StoreEntry:
        self._kept[session.id] = dataclasses.replace(session)
        if session.store_id is not None:
            self._keys[session.store_id] = session.id
        return StoreEntry(*(getattr(session, name) for name in StoreEntry._fields))

    def _batches(self, condition: t.Callable[[UserSession], bool]) -> Iterator[list[UserSession]]:
        found = [dataclasses.replace(one) for one in list(self._kept.values()) if condition(one)]
        return (found[n : n + _SIZE] for n in range(0, len(found), _SIZE))
