"""User sessions that are kept elsewhere than in the app's own database.

What a transaction ends, ends after its commit: nobody but the database knows before whether there
is one. Until then, and if the process dies in between, the fingerprint keeps out every session that
was opened with an earlier password.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import heapq
import typing as t
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from ... import _clock as clock
from ..._ops.filters import Filter
from ..._revocation.fingerprint import SUPERSEDED, CheckedCredential
from ...errors import RecordsError
from .. import base as records
from .. import linked_keys
from ..base import (
    NOT_IN_THE_FUTURE,
    Execute,
    Limit,
    LimitReachedError,
    LoadedSession,
    PageEnd,
    PasswordChange,
    Replaced,
    RevocationOrder,
    RevocationResult,
    SessionSummary,
    StaleKey,
    StoreEntry,
    SupersededError,
    SurvivingSession,
    new_id,
)
from ..base import ROTATED as STALE_KEY
from ..expiry import Expiry
from ..linked_keys import LinkedKey
from ..users import Users
from .home import Home, UserSession

#: For so long the key of an entry is kept that a session has left behind.
_OVERLAP = dt.timedelta(minutes=1)

#: How often somebody looks whether such an entry may be deleted, to which a browser may come back.
_LOOK = dt.timedelta(hours=1)

#: How often a session is read once more that has been changed meanwhile.
_ATTEMPTS = 20

_STANDS: dict[str, t.Any] = {"revoked_at": None}
_Item = t.TypeVar("_Item")


@contextlib.contextmanager
def _asking() -> Iterator[None]:
    """Within it a home is asked, which may raise whatever it likes.

    :raises RecordsError: it did. What its library says might name a server, or a key, and is not
        shown with it.
    """
    try:
        yield
    except Exception as error:
        raise RecordsError(
            f"The user sessions could not be asked ({type(error).__name__}). What was asked for may"
            " not be done: try again."
        ) from None


def _asked(ask: Callable[..., Iterator[_Item]], *arguments: t.Any, **how: t.Any) -> Iterator[_Item]:
    """What a verb of a home gives, one after the other."""
    with _asking():
        batches = ask(*arguments, **how)
    while True:
        with _asking():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


class Among(t.NamedTuple):
    """Sessions that an operator means, as long as they are as they were."""

    ids: frozenset[uuid.UUID]
    filter: Filter

    def covers(self, session: UserSession) -> bool:
        return session.id in self.ids and self.filter.meets(session)


class RedisRecords:
    """The user sessions of one app, with the verbs of :class:`~flask_session_registry.table.Table`.

    :param expiry: makes the rule by which sessions have expired by now.
    :param retention: how long one that has ended is kept.
    """

    def __init__(
        self,
        users: Users,
        home: Home,
        *,
        expiry: Callable[[], Expiry],
        retention: dt.timedelta,
    ) -> None:
        self.users = users
        self.home = home
        self._expiry = expiry
        # A request under way may still come with it.
        self._retention = max(retention, _OVERLAP)

    # -- for the check on each request -----------------------------------------------------------

    updates_after_commit = True

    def load(
        self, id: uuid.UUID, user: object = None, *, refresh: bool = False
    ) -> LoadedSession | None:
        """The user of a user session, and what the check on each request compares.

        One question to the home and one statement, which spares the user loader its own. ``None``:
        no such session, it has ended, or its user is gone.

        :returns: as of :meth:`Table.load`.
        """
        session = self.get(id)
        if session is None or session.revoked_at is not None:
            return None
        row = self.users.load(session.user_id, refresh=refresh)
        if row is None:
            return None
        user, *passwords = row
        return LoadedSession(
            user,
            session.generation,
            session.fingerprint,
            session.last_seen_at,
            session.store_id,
            session.created_at,
            tuple(passwords),
        )

    def get(self, id: uuid.UUID) -> UserSession | None:
        """One session, ended or not; ``None``: there is none."""
        with _asking():
            return self.home.get([id]).get(id)

    def can_be_restored(self, id: uuid.UUID, now: dt.datetime) -> bool:
        """Whether a "remember me" cookie could still renew this session."""
        session = self.get(id)
        until = session.remember_until if session else None
        return until is not None and until > now

    def find_end(self, id: uuid.UUID) -> records.End | None:
        """Why and when a session ended; ``None`` if it has not, or there is none."""
        session = self.get(id)
        return None if session is None else _end_of(session)

    find_end_after_commit = find_end

    def find_end_by_store_key(self, store_id: str) -> tuple[records.End | None, uuid.UUID | None]:
        """How the session ended that has, or had, this key in the store; which it is.

        ``"rotated"``: it goes on under another one. ``None``: it stands, or there is none.
        """
        with _asking():
            id = self.home.with_key(store_id)
        session = None if id is None else self.get(id)
        if session is None:
            return None, None
        if session.revoked_reason == STALE_KEY and session.revocation is not None:
            # One that its session could have come back to: what became of that?
            return self.find_end(session.revocation) or _end_of(session), id
        end = _end_of(session)
        if end is None and session.store_id != store_id:
            end = records.End(STALE_KEY, session.rotated_at or clock.EPOCH)
        return end, id

    def was_rotated_within(self, id: uuid.UUID, duration: dt.timedelta) -> bool:
        """Whether the id of a session was last changed that recently."""
        session = self.get(id)
        rotated_at = session.rotated_at if session else None
        return rotated_at is not None and clock.is_within(duration, of=rotated_at)

    def current_state(self, id: uuid.UUID) -> tuple[int, str | None] | None:
        """Generation and fingerprint of a session as it stands now; ``None`` if it has ended."""
        session = self.get(id)
        if session is None or session.revoked_at is not None:
            return None
        return session.generation, session.fingerprint

    def current_generation(self, id: uuid.UUID, *, skip_locked: bool = False) -> int | None:
        """Its generation; no connection of the app's database is needed, and nothing is locked."""
        standing = self.current_state(id)
        return None if standing is None else standing[0]

    # -- what a transaction of the app ends -------------------------------------------------------

    def owner_of(self, execute: Execute, id: uuid.UUID) -> list[t.Any]:
        """Whose session this is, in a list; empty if there is none."""
        session = self.get(id)
        return [] if session is None else [session.user_id]

    def lock_users(self, execute: Execute, user_ids: Sequence[t.Any]) -> set[t.Any]:
        """Nothing is to be locked: what is done after the commit is done one by one."""
        return set(user_ids)

    def revoke(
        self,
        execute: Execute,
        order: RevocationOrder,
        *,
        already: Sequence[RevocationOrder] | None = None,
    ) -> RevocationResult:
        """See :meth:`RevocationRecords.revoke`: only counts; :meth:`complete` ends the sessions."""
        has_survivor = order.change is not None and order.change.survivor is not None
        if already is None:
            return RevocationResult(1, has_survivor, ended_by_commit=0)
        count = sum(
            not any(_covers(earlier, one, is_open=True) for earlier in already)
            for batch in self._matching(order, is_open=True)
            for one in batch
        )
        return RevocationResult(count, has_survivor, ended_by_commit=0)

    def complete(self, order: RevocationOrder) -> Iterator[list[StoreEntry]]:
        """See :meth:`RevocationRecords.complete`."""
        if order.change is not None:
            # If this fails, the session lacks the new fingerprint, and ends with the others.
            self.update_credentials(order.change)
        for batch in self._matching(order, is_open=False):
            ended = self._end_by(order, batch)
            if ended:
                yield ended

    def _matching(self, order: RevocationOrder, *, is_open: bool) -> Iterator[list[UserSession]]:
        """Yield the active sessions that an order names, in batches."""
        wanted = [order.only_id] if order.only_id is not None else order.where and order.where.ids
        if wanted is None:
            batches: Iterable[list[UserSession]] = self._of_users(order.user_ids)
        else:
            with _asking():
                batches = [[*self.home.get([*wanted]).values()]]
        for batch in batches:
            yield [
                one
                for one in batch
                if one.revoked_at is None and _covers(order, one, is_open=is_open)
            ]

    def _end_by(self, order: RevocationOrder, batch: list[UserSession]) -> list[StoreEntry]:
        values = {"revocation": order.id, "revoked_reason": order.reason}
        if order.change is None:
            return self._end([one.id for one in batch], values)
        # The password may have been changed once more since: what that has left goes on.
        newest = self._newest_fingerprints(order.user_ids)
        ended: list[StoreEntry] = []
        for old in {one.fingerprint for one in batch}.difference(newest):
            ids = [one.id for one in batch if one.fingerprint == old]
            ended += self._end(ids, values, where={"fingerprint": old})
        return ended

    def _newest_fingerprints(self, user_ids: Sequence[t.Any]) -> list[str | None]:
        try:
            known = self.users.credentials_of(user_ids)
        except sa.exc.SQLAlchemyError:
            return []
        return [stored.fingerprint for stored in known.values()]

    def mark_revocation_purged(self, order: RevocationOrder, ids: Sequence[uuid.UUID]) -> None:
        """See :meth:`RevocationRecords.mark_revocation_purged`."""
        self.mark_purged(ids)

    def sync_fingerprints(
        self, execute: Execute, user_id: t.Any, *, before: str | None, after: str | None
    ) -> Callable[[], None]:
        """Move the fingerprints of a user's sessions along with a new hash of the password.

        :returns: what does it, after the commit.
        """
        # Not a 'partial', which shows what it is called with.
        return lambda: self._sync_fingerprints(user_id, before, after)

    def _sync_fingerprints(self, user_id: t.Any, before: str | None, after: str | None) -> None:
        where = _STANDS | {"fingerprint": before}
        for batch in self._of_users([user_id]):
            self._update([session.id for session in batch], {"fingerprint": after}, where=where)

    def update_credentials(self, change: PasswordChange) -> bool:
        """Give the session that a password was changed in its fingerprint, and a new generation."""
        if change.survivor is None:
            return False
        held = change.survivor.held
        for _ in range(_ATTEMPTS):
            session = self.get(change.survivor.id)
            # In another generation than its request knows it by, somebody else has it.
            if session is None or (session.generation, session.fingerprint) not in held:
                return False
            if self._update_credentials(session, change.survivor, change.fingerprint):
                held.append((session.generation + 1, change.fingerprint))
                return True
        return False

    def _update_credentials(
        self, session: UserSession, current: SurvivingSession, fingerprint: str | None
    ) -> bool:
        """The same, unless it has got another key meanwhile."""
        if current.store_id is not None:
            self._leave_behind(session, session.previous_store_id)
        values = {
            "fingerprint": fingerprint,
            "generation": session.generation + 1,
            "rotated_at": clock.now(),
            # Its entry is dead from here on; the next one is written by the answer.
            "previous_store_id": session.store_id or session.previous_store_id,
            "store_id": None,
        }
        return bool(self._change(session, values, where=_as_it_was(session)))

    # -- where a user is signed in ----------------------------------------------------------------

    def active(self, session: sa_orm.Session, user_id: t.Any, *, expiry: Expiry) -> list[t.Any]:
        """The active sessions of a user, most recently seen first."""
        row = session.execute(self.users.stored.where(self.users.key == user_id)).first()
        if row is None:
            return []
        current = self.users.credentials.read(row[1:]).fingerprint
        found = [
            one
            for batch in self._of_users([user_id])
            for one in batch
            if one.fingerprint == current and not _is_over(one, expiry)
        ]
        return sorted(found, key=_last_seen_first)

    def list_all(self, session: sa_orm.Session, user_id: t.Any) -> list[t.Any]:
        """All sessions of a user, ended ones too, most recently seen first."""
        batches = (*self._of_users([user_id]), *self._of_users([user_id], ended=True))
        return sorted((one for batch in batches for one in batch), key=_last_seen_first)

    def list_others(
        self, current: t.Any, *, expiry: Expiry, after: PageEnd | None, limit: int
    ) -> list[t.Any]:
        """Active sessions of the user of this one, but for it, most recently seen first.

        All sessions of the user are gone through, batch after batch.

        :param current: one that the check has just accepted: its fingerprint is the current one.
        :param after: the last one of the page before.
        """
        start = None if after is None else _last_seen_first(after)
        found = (
            one
            for batch in self._of_users([current.user_id])
            for one in batch
            if one.id != current.id
            and one.fingerprint == current.fingerprint
            and not _is_over(one, expiry)
            and (start is None or _last_seen_first(one) > start)
        )
        return heapq.nsmallest(limit, found, key=_last_seen_first)

    def recently_ended(self, user_id: t.Any, *, limit: int) -> list[t.Any]:
        """The sessions of a user that have ended last, the last one first."""
        batches = self._of_users([user_id], ended=True)
        found = (one for batch in batches for one in batch)
        return heapq.nsmallest(limit, found, key=_last_ended_first)

    def was_seen(self, user_id: t.Any, *, ip_address: str | None, user_agent: str | None) -> bool:
        """Whether a session of this user is kept that was seen at this address, with this agent.

        One that a revocation has ended says nothing: it may have been somebody else's.
        """
        # What isn't known is equal to nothing.
        return None not in (ip_address, user_agent) and any(
            (one.ip_address, one.user_agent, one.revocation) == (ip_address, user_agent, None)
            for one in self.list_all(self.users.database.session, user_id)
        )

    def find_never_resumed(
        self, user_id: t.Any, *, ip_address: str | None, user_agent: str | None, skip: int
    ) -> list[StoreEntry]:
        """The sessions of a user that stand, but were never seen after they began; the last first.

        :param ip_address: only those from there, with this user agent.
        :param skip: how many of the last ones to leave out.
        """
        found = [
            one
            for batch in self._of_users([user_id])
            for one in batch
            if one.last_seen_at == one.created_at
            and (one.ip_address, one.user_agent) == (ip_address, user_agent)
        ]
        found.sort(key=lambda one: one.created_at, reverse=True)
        return [_stored(one) for one in found[skip : skip + records.BATCH]]

    def find_by_store_key(self, store_id: str, user_id: t.Any) -> list[StoreEntry]:
        """The sessions of a user that stand, and have or had this key in the store."""
        with _asking():
            id = self.home.with_key(store_id)
        session = None if id is None else self.get(id)
        if session is not None and session.user_id is None and session.revocation is not None:
            # One of nobody names the session that left the key behind.
            session = self.get(session.revocation)
        stands = session is not None and (session.user_id, session.revoked_at) == (user_id, None)
        return [_stored(session)] if session is not None and stands else []

    # -- what a request does to its own session ---------------------------------------------------

    def assign_id(self, id: uuid.UUID, user_id: t.Any) -> uuid.UUID:
        """The id of a new session of this user, made of a random one."""
        with _asking():
            return self.home.assign_id(id, user_id)

    def add(
        self,
        values: dict[str, t.Any],
        *,
        evidence: CheckedCredential,
        replaces: Sequence[Replaced],
        limit: Limit | None,
        expiry: Expiry,
    ) -> list[StoreEntry] | None:
        """Add a session and end those it replaces; ``None`` if there is no such user.

        :param evidence: of the credential that was checked. If that is not the current one, the
            session is dead on arrival.
        :returns: the sessions that had to end because of the limit.
        :raises LimitReachedError: the new one had to be refused because of it.
        :raises SupersededError: the one that it replaces, and depends on, stands no more.
        """
        user_id = values["user_id"]
        stored = self.users.credentials_of([user_id])
        if not stored:
            return None
        current = stored[user_id]
        is_current = evidence.covers(current) or any(
            self._vouches(one, current.fingerprint) for one in replaces
        )
        fingerprint = current.fingerprint if is_current else SUPERSEDED
        session = UserSession(**values, fingerprint=fingerprint)
        session.due_at = self._due_at(session)
        evicted: list[StoreEntry] = []
        try:
            with _asking():
                self.home.add(session)
            if limit is not None and is_current:
                before = [one.id for one in replaces]
                evicted = self._evict(session, limit, expiry, but=before)
            for one in replaces:
                self._replace(one)
        except (RecordsError, LimitReachedError, SupersededError):
            # Nobody has it: it is none that stands, nor one that has ended.
            with contextlib.suppress(RecordsError):
                self.end(session.id, "not_saved")
                self.forget([session.id])
            raise
        return evicted

    def _vouches(self, before: Replaced, fingerprint: str | None) -> bool:
        """Whether a session whose place a login takes has the user's current credential."""
        standing = self.current_state(before.id) if before.vouches else None
        return standing == (before.generation, fingerprint)

    def _replace(self, before: Replaced) -> None:
        """End the session that a login takes the place of, unless it is somebody else's by now."""
        where = {} if before.generation is None else {"generation": before.generation}
        ended = self._end([before.id], {"revoked_reason": "replaced"}, where=where)
        if before.generation is not None and not ended:
            raise SupersededError

    def _evict(
        self, session: UserSession, limit: Limit, expiry: Expiry, *, but: Sequence[uuid.UUID]
    ) -> list[StoreEntry]:
        """End the oldest sessions of a user, if there is one too many; which they are.

        Of several that were added at once each counts those that were added before it, so that
        never more are let in than there is room for.
        """
        active = [
            one
            for batch in self._of_users([session.user_id])
            for one in batch
            if one.fingerprint == session.fingerprint
            and one.id not in but
            and not _is_over(one, expiry)
        ]
        ids = [one.id for one in active]
        if limit.rejects:
            if session.id in ids[limit.most :]:
                raise LimitReachedError
            return []
        return self._end(ids[: -limit.most], {"revoked_reason": "max_sessions"})

    def rotate(
        self,
        id: uuid.UUID,
        *,
        user_id: t.Any,
        generation: int,
        becomes: int,
        store_id: str | None,
        is_confirmed: bool = False,
    ) -> list[str] | None:
        """Let a session go on under another key or generation; ``None``: it no longer stands.

        :param is_confirmed: whether the user has just given the password once more.
        :returns: keys that the browser can't come back to any more, because there were too many.
        """
        displaced: list[str] = []
        # In the same generation the old key is as good: the browser may come back to it.
        rotates = becomes != generation
        for _ in range(_ATTEMPTS):
            session = self.get(id)
            if session is None or (session.generation, session.revoked_at) != (generation, None):
                return None
            if store_id is not None and rotates:
                self._leave_behind(session, session.previous_store_id)
            elif store_id is not None:
                displaced += self._link(session, store_id)
            if self._renew(session, becomes, store_id, rotates, is_confirmed):
                return displaced
        raise RecordsError("A user session was changed by others all the time: try again.")

    def _renew(
        self,
        session: UserSession,
        becomes: int,
        store_id: str | None,
        rotates: bool,
        is_confirmed: bool,
    ) -> bool:
        """The same, unless it has got another key meanwhile, which would be left behind."""
        moment = clock.now()
        values: dict[str, t.Any] = {"generation": becomes, "rotated_at": moment}
        if is_confirmed:
            values["authenticated_at"] = moment
        if rotates:
            values["previous_store_id"] = session.store_id or session.previous_store_id
        values["store_id"] = store_id
        return bool(self._change(session, values, where=_as_it_was(session)))

    def touch(self, id: uuid.UUID, values: dict[str, t.Any]) -> None:
        """Write when, whence and with what a session was last seen. Revives nothing.

        Times in the future, from a clock that was ahead, become that moment.
        """
        session = self.get(id)
        if session is not None:
            moment = values["last_seen_at"]
            for name in NOT_IN_THE_FUTURE:
                if getattr(session, name) > moment:
                    values = values | {name: moment}
            self._change(session, values, where=_STANDS)

    def end(self, id: uuid.UUID, reason: str) -> bool:
        """End one session; ``False`` if it had ended already."""
        return bool(self._end([id], {"revoked_reason": reason}))

    def mark_purged(self, ids: Sequence[uuid.UUID]) -> int:
        moment = clock.now()
        values = {"purged_at": moment, "due_at": moment + self._retention}
        return len(self._update(ids, values, where={"purged_at": None}))

    # -- housekeeping ------------------------------------------------------------------------------

    def next_scan_window(self, size: int) -> None:
        """What is due is known without looking at anything else."""

    def find_expired(
        self, expiry: Expiry, *, everywhere: bool = True, window: object = None
    ) -> Iterator[list[StoreEntry]]:
        """Sessions that are over and have not ended yet.

        :param everywhere: also those of deleted users, and those that an earlier password keeps
            out, because the process died that was to end them. All sessions are looked at.
        """
        found = _asked(self.home.all) if everywhere else _asked(self.home.due, expiry.now)
        for batch in found:
            standing = [one for one in batch if one.revoked_at is None]
            over = {one.id for one in self._over(standing, expiry)}
            for one in standing:
                if one.id not in over and one.due_at and one.due_at <= expiry.now:
                    # Another timeout is set than when it was last seen.
                    self._change(one, {}, where=_STANDS)
            yield [_stored(one) for one in standing if one.id in over]

    def expire(self, ids: Sequence[uuid.UUID], expiry: Expiry) -> int:
        """End those of these sessions that are over still; how many."""
        with _asking():
            found = self.home.get(ids)
        standing = [one for one in found.values() if one.revoked_at is None]
        return sum(
            len(
                self._end(
                    [one.id],
                    {"revoked_reason": "expired"},
                    where={"last_seen_at": one.last_seen_at, "fingerprint": one.fingerprint},
                )
            )
            for one in self._over(standing, expiry)
        )

    def _over(self, sessions: Sequence[UserSession], expiry: Expiry) -> Iterator[UserSession]:
        known = self.users.credentials_of({one.user_id for one in sessions}) if sessions else {}
        current = {user_id: stored.fingerprint for user_id, stored in known.items()}
        for one in sessions:
            if (
                one.user_id not in current
                or one.fingerprint != current[one.user_id]
                or _is_over(one, expiry)
            ):
                yield one

    def find_unpurged(self, *, window: object = None) -> Iterator[list[StoreEntry]]:
        """Ended sessions whose entries may still be in the session store."""
        for batch in _asked(self.home.due, clock.now()):
            unpurged = [one for one in batch if _is_unpurged(one)]
            # Those that have none are kept for their time, and not looked at before.
            moment = clock.now()
            rest = [one.id for one in batch if self._has_nothing_to_purge(one, moment)]
            self._update(rest, {"due_at": moment + self._retention}, where={"purged_at": None})
            if unpurged:
                yield [_stored(one) for one in unpurged]

    def _has_nothing_to_purge(self, session: UserSession, moment: dt.datetime) -> bool:
        ended_at = session.revoked_at
        return (
            ended_at is not None
            and ended_at + self._retention > moment
            and not _stored(session).keys
        )

    def find_stale_keys(
        self, *, lost_before: dt.datetime, window: object = None
    ) -> Iterator[list[StaleKey]]:
        def key_of(one: UserSession) -> StaleKey | None:
            if one.previous_store_id is not None:
                return StaleKey(one.id, one.previous_store_id)
            if one.revoked_reason != STALE_KEY or one.revoked_at is None or one.store_id is None:
                return None
            goes_on = None if one.revocation is None else self.get(one.revocation)
            # It may come back to it; or it was about to leave it behind, and has it still.
            is_wanted = (
                goes_on is not None
                and goes_on.revoked_at is None
                and (one.revoked_at > lost_before or goes_on.store_id == one.store_id)
            )
            if not is_wanted:
                return StaleKey(one.id, one.store_id)
            self._update([one.id], {"due_at": clock.now() + _LOOK}, where={})
            return None

        for batch in _asked(self.home.due, clock.now()):
            yield [key for key in map(key_of, batch) if key is not None]

    def forget_stale_keys(self, ids: Sequence[uuid.UUID], *, before: dt.datetime) -> None:
        with _asking():
            found = self.home.get(ids)
        for one in found.values():
            if one.revoked_reason == STALE_KEY:
                if one.revoked_at is not None and one.revoked_at <= before:
                    self.forget([one.id])
            elif one.rotated_at is not None and one.rotated_at <= before:
                where = {"rotated_at": one.rotated_at}
                self._change(one, {"previous_store_id": None}, where=where)

    def find_outdated(
        self, *, before: dt.datetime, window: object = None
    ) -> Iterator[list[StoreEntry]]:
        """Sessions that ended before this moment, and have been purged."""
        return self._due(
            lambda one: (
                one.revoked_at is not None
                and one.revoked_at <= before
                and one.revoked_reason != STALE_KEY
                and not _is_unpurged(one)
            )
        )

    def forget(self, ids: Sequence[uuid.UUID]) -> int:
        """Forget ended sessions; how many there were."""
        with _asking():
            return self.home.remove(ids)

    # -- for an operator ---------------------------------------------------------------------------

    def count(self, user_ids: Sequence[t.Any] | None, filter: Filter) -> int:
        """How many sessions have not ended and are meant, of these users or of everybody."""
        return sum(len(batch) for batch in self.matching(user_ids, filter))

    def matching(
        self, user_ids: Sequence[t.Any] | None, filter: Filter
    ) -> Iterator[list[SessionSummary]]:
        """The sessions that :meth:`count` counts, in batches."""
        for batch in _asked(self.home.all) if user_ids is None else self._of_users(user_ids):
            yield [
                SessionSummary._make(getattr(one, name) for name in SessionSummary._fields)
                for one in batch
                if one.revoked_at is None and filter.meets(one)
            ]

    def select_for_revocation(
        self, user_ids: Sequence[t.Any] | None, filter: Filter
    ) -> Iterator[tuple[Sequence[t.Any], t.Any]]:
        """The same: their users, and what :meth:`end_all` takes as among."""
        for batch in self.matching(user_ids, filter):
            if batch:
                users = list(dict.fromkeys(one.user_id for one in batch))
                yield users, Among(frozenset(one.id for one in batch), filter)

    def count_unpurged(self, *, ended_by: dt.datetime) -> int:
        """How many sessions ended by this moment, and may still have entries in the store."""
        return self._count_due(
            lambda one: _is_unpurged(one) and t.cast(dt.datetime, one.revoked_at) <= ended_by
        )

    def count_expired(self, expiry: Expiry) -> int:
        """How many sessions have expired, and are not ended yet."""
        return self._count_due(lambda one: one.revoked_at is None and _is_over(one, expiry))

    def _count_due(self, condition: Callable[[UserSession], bool]) -> int:
        return sum(len(batch) for batch in self._due(condition))

    # -- pieces ------------------------------------------------------------------------------------

    def _of_users(
        self, user_ids: Collection[t.Any], *, ended: bool = False
    ) -> Iterator[list[UserSession]]:
        return _asked(self.home.of_users, user_ids, ended=ended)

    def _due(self, condition: Callable[[UserSession], bool]) -> Iterator[list[StoreEntry]]:
        for batch in _asked(self.home.due, clock.now()):
            found = [_stored(one) for one in batch if condition(one)]
            if found:
                yield found

    def _update(
        self,
        ids: Sequence[uuid.UUID],
        values: dict[str, t.Any],
        *,
        where: dict[str, t.Any],
    ) -> list[StoreEntry]:
        with _asking():
            return [
                one for part in _parts(ids) for one in self.home.update(part, values, where=where)
            ]

    def _change(
        self, session: UserSession, values: dict[str, t.Any], *, where: dict[str, t.Any]
    ) -> list[StoreEntry]:
        """Give a session new values; and look at it again when they say so."""
        due_at = self._due_at(dataclasses.replace(session, **values))
        return self._update([session.id], values | {"due_at": due_at}, where=where)

    def _end(
        self,
        ids: Sequence[uuid.UUID],
        values: dict[str, t.Any],
        *,
        where: t.Mapping[str, t.Any] = _STANDS,
    ) -> list[StoreEntry]:
        moment = clock.now()
        values = values | {"revoked_at": moment, "due_at": moment}
        return self._update(ids, values, where=_STANDS | {**where})

    def _due_at(self, session: UserSession) -> dt.datetime:
        """When housekeeping has something to do about a session that stands."""
        if session.previous_store_id is not None and session.rotated_at is not None:
            return session.rotated_at
        return self._expiry().expires_at(
            session.last_seen_at, session.created_at, session.remember_until
        )

    def _leave_behind(self, session: UserSession, key: str | None) -> None:
        """Keep a key of a session, before another takes its place, in a session of nobody."""
        if key is not None and session.store_id is not None and session.revoked_at is None:
            self._keep_left(self.assign_id(new_id(), session.user_id), key)

    def _link(self, session: UserSession, used: str) -> list[str]:
        """The same of the key that a session has, to which the browser may come back.

        :param used: the key that takes its place.
        :returns: the key that loses its record for it, in a list; empty: none does.
        """
        left = session.store_id
        if left is None:
            return []
        ids = [self.assign_id(id, session.user_id) for id in linked_keys.ids_for(session.id)]
        with _asking():
            found = self.home.get(ids)
        kept = [
            LinkedKey(one.id, one.store_id, t.cast(dt.datetime, one.revoked_at))
            for one in found.values()
        ]
        link, displaced = linked_keys.choose(ids, kept, left=left, used=used)
        if link in found:
            self.forget([link])
        self._keep_left(link, left, link=session.id)
        return [] if displaced is None else [displaced]

    def _keep_left(self, id: uuid.UUID, key: str, *, link: uuid.UUID | None = None) -> None:
        moment = clock.now()
        left = UserSession(
            id=id,
            user_id=None,
            created_at=moment,
            last_seen_at=moment,
            authenticated_at=moment,
            rotated_at=moment,
            store_id=key,
            revoked_at=moment,
            revoked_reason=STALE_KEY,
            revocation=link,
            due_at=moment + _OVERLAP,
        )
        with _asking():
            self.home.add(left)


def _covers(order: RevocationOrder, session: UserSession, *, is_open: bool) -> bool:
    """Return whether a revocation ends an active session.

    :param is_open: whether the transaction of the revocation has not committed yet.
    """
    return (
        session.user_id in order.user_ids
        and session.id != order.except_id
        and (order.only_id is None or session.id == order.only_id)
        and (order.where is None or order.where.covers(session))
        and (order.change is None or _is_ended_by(order.change, session, is_open=is_open))
    )


def _is_ended_by(change: PasswordChange, session: UserSession, *, is_open: bool) -> bool:
    survives = change.survivor is not None and session.id == change.survivor.id
    return session.fingerprint != change.fingerprint and not (is_open and survives)


def _end_of(session: UserSession) -> records.End | None:
    if session.revoked_reason is None or session.revoked_at is None:
        return None
    return records.End(session.revoked_reason, session.revoked_at, session.revocation)


def _stored(session: UserSession) -> StoreEntry:
    return StoreEntry(session.id, session.user_id, session.store_id)


def _as_it_was(session: UserSession) -> dict[str, t.Any]:
    """What a session that stands must still have, for what was read of it to be true."""
    return _STANDS | {"generation": session.generation, "store_id": session.store_id}


def _is_over(session: UserSession, expiry: Expiry) -> bool:
    return expiry.has_expired(session.last_seen_at, session.created_at, session.remember_until)


def _is_unpurged(session: UserSession) -> bool:
    return (
        session.revoked_at is not None
        and session.purged_at is None
        and session.revoked_reason != STALE_KEY
        and bool(_stored(session).keys)
    )


def _last_ended_first(session: UserSession) -> tuple[float, str]:
    return -t.cast(dt.datetime, session.revoked_at).timestamp(), session.id.hex


def _last_seen_first(session: UserSession | PageEnd) -> tuple[float, str]:
    return -session.last_seen_at.timestamp(), session.id.hex


def _parts(ids: Sequence[uuid.UUID]) -> Iterator[Sequence[uuid.UUID]]:
    return (ids[n : n + records.BATCH] for n in range(0, len(ids), records.BATCH))
