"""The SQL of lists of a user's sessions."""

from __future__ import annotations

import typing as t
import uuid

import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from ...models import UserSessionRecord
from ..base import PageEnd
from ..expiry import Expiry
from ..protocols import ListingRecords
from .table import SessionTable


class SQLListingRecords(SessionTable, ListingRecords):
    """All methods but :meth:`active` and :meth:`list_all` use the app's session."""

    def get(self, id: uuid.UUID) -> UserSessionRecord | None:
        return self.database.session.get(self.model, id)

    def active(
        self, session: sa_orm.Session, user_id: t.Any, *, expiry: Expiry
    ) -> list[UserSessionRecord]:
        model, credentials = self.model, self.credentials
        rows = session.execute(
            sa.select(model, *credentials.columns)
            .join(credentials.user_model, model.user_id == self.user_key)
            .where(
                model.user_id == user_id,
                model.revoked_at.is_(None),
                sa.not_(expiry.condition(self.columns)),
            )
            .order_by(model.last_seen_at.desc(), model.id)
        )
        current = credentials.fingerprint
        return [row for row, *passwords in rows if row.fingerprint == current((*passwords,))]

    def list_all(self, session: sa_orm.Session, user_id: t.Any) -> list[UserSessionRecord]:
        model = self.model
        statement = sa.select(model).where(model.user_id == user_id)
        return list(session.scalars(statement.order_by(model.last_seen_at.desc(), model.id)))

    def list_others(
        self, current: UserSessionRecord, *, expiry: Expiry, after: PageEnd | None, limit: int
    ) -> list[UserSessionRecord]:
        model = self.model
        statement = sa.select(model).where(
            model.user_id == current.user_id,
            model.id != current.id,
            model.revoked_at.is_(None),
            # The check has just accepted it: its fingerprint is the current one.
            model.fingerprint.is_not_distinct_from(current.fingerprint),
            sa.not_(expiry.condition(self.columns)),
        )
        if after is not None:
            seen = model.last_seen_at
            is_next = sa.and_(seen == after.last_seen_at, model.id > after.id)
            statement = statement.where(sa.or_(seen < after.last_seen_at, is_next))
        statement = statement.order_by(model.last_seen_at.desc(), model.id).limit(limit)
        return list(self.database.session.scalars(statement))

    def recently_ended(self, user_id: t.Any, *, limit: int) -> list[UserSessionRecord]:
        model = self.model
        has_ended = model.revoked_at.is_not(None)
        statement = sa.select(model).where(model.user_id == user_id, has_ended)
        statement = statement.order_by(model.revoked_at.desc(), model.id).limit(limit)
        return list(self.database.session.scalars(statement))
