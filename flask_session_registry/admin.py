"""A Flask-Admin view that lists the user sessions of all users and revokes them."""

from __future__ import annotations

import datetime as dt
import typing as t
from collections.abc import Callable

from flask import abort, current_app, flash, has_app_context
from flask_login import current_user

from . import _clock as clock
from ._app import get_registry
from ._ops.counts import sessions_of
from ._records.base import as_id
from .errors import ConfigurationError
from .extension import SessionRegistry

try:
    from flask_admin.actions import action
    from flask_admin.contrib.sqla import ModelView, filters
    from flask_admin.form import SecureForm
except ImportError as error:
    raise ImportError(
        "'flask_session_registry.admin' needs Flask-Admin, which can't be imported. Install it:"
        " pip install 'Flask-Session-Registry[admin]'"
    ) from error


class _UTCMixin:
    # PostgreSQL would interpret a naive time in the time zone of the connection.
    def clean(self, value: str) -> dt.datetime:
        return clock.as_utc(super().clean(value))  # type: ignore[misc]


class _After(_UTCMixin, filters.DateTimeGreaterFilter):  # type: ignore[misc]
    pass


class _Before(_UTCMixin, filters.DateTimeSmallerFilter):  # type: ignore[misc]
    pass


class _IsUser(filters.FilterEqual):  # type: ignore[misc]
    # Flask-Admin's own filter compares a UUID as text, which SQLAlchemy refuses.
    def clean(self, value: str) -> t.Any:
        return self.column.type.python_type(value)


class _Filters(filters.FilterConverter):  # type: ignore[misc]
    datetime_filters = (_After, _Before, filters.FilterEmpty)


def _format_time(_view: object, moment: dt.datetime, _name: str) -> str:
    return f"{clock.as_utc(moment):%Y-%m-%d %H:%M:%S}"


class UserSessionView(ModelView):  # type: ignore[misc]
    """The user sessions of all users, to view and to revoke, but not to edit::

        with app.app_context():
            admin.add_view(UserSessionView(sessions, db, is_accessible=is_administrator))

    Keys of store entries and fingerprints are never shown, searched or sorted by. An expired
    session is shown as ended once a prune has ended it. The action needs the token of Flask-Admin's
    ``SecureForm``. If Flask-WTF's ``CSRFProtect`` is set up, which requires its own token, set
    ``form_base_class = FlaskForm`` in a subclass.

    :param sessions: the registry of the app.
    :param db: the Flask-SQLAlchemy of the app.
    :param is_accessible: returns whether the current user may view and revoke the sessions of all
        users. It is called on each request, for the action too. Other users get 403; an anonymous
        visitor gets the answer of Flask-Login's ``unauthorized()``.
    :param options: for ``ModelView``: ``name``, ``category``, ``endpoint``, ``url``, …
    :raises ConfigurationError: there is no app context or no user model yet, or the user sessions
        are not in a table.
    :raises NotInstalledError: ``init_app`` was not called.
    """

    can_create = can_edit = can_delete = False
    can_view_details = True
    page_size = 50
    #: It protects the action with a token, and has no field for a column, even with editing on.
    form = form_base_class = SecureForm
    filter_converter = _Filters()

    column_list = (
        *("user_id", "ip_address", "user_agent", "created_at", "last_seen_at"),
        *("remember_until", "revoked_at", "revoked_reason"),
    )
    column_details_list = ("id", *column_list)
    column_sortable_list = ("user_id", "ip_address", "created_at", "last_seen_at", "revoked_at")
    #: By the id too: otherwise pages could overlap if many sessions were last seen at one moment.
    column_default_sort = [("last_seen_at", True), ("id", False)]
    column_searchable_list = ("ip_address", "user_agent")
    column_filters = ("user_id", "created_at", "last_seen_at", "revoked_at")
    column_labels = {
        "user_id": "User",
        "ip_address": "Address",
        "user_agent": "User agent",
        "created_at": "Began (UTC)",
        "last_seen_at": "Last seen (UTC)",
        "remember_until": "Remembered until (UTC)",
        "revoked_at": "Ended (UTC)",
        "revoked_reason": "Reason",
    }
    column_type_formatters = ModelView.column_type_formatters | {dt.datetime: _format_time}
    column_type_formatters_detail = column_type_formatters

    def __init__(
        self,
        sessions: SessionRegistry,
        db: t.Any,
        *,
        is_accessible: Callable[[], bool],
        **options: t.Any,
    ) -> None:
        self._sessions = sessions
        self._is_accessible = is_accessible
        super().__init__(_find_model(), db, **options)

    def is_accessible(self) -> bool:
        return bool(self._is_accessible())

    def inaccessible_callback(self, name: str, **kwargs: t.Any) -> t.Any:  # noqa: ARG002
        if current_user.is_authenticated:
            abort(403)
        return current_app.login_manager.unauthorized()  # type: ignore[attr-defined]

    def get_one(self, id: t.Any) -> t.Any:
        """Return the user session; ``None`` if there is none, or the id is not a UUID."""
        return self.get_query().filter(self.model.id == as_id(id)).one_or_none()

    def scaffold_filters(self, name: t.Any) -> t.Any:
        if name == "user_id":
            return [_IsUser(self.model.user_id, self.get_column_name(name))]
        return super().scaffold_filters(name)

    @action(  # type: ignore[untyped-decorator]
        "revoke",
        "Sign out",
        "End these sessions? Their browsers are signed out at the next request.",
    )
    def action_revoke(self, ids: list[str]) -> None:
        """Revoke sessions in one transaction, and flash how many ended.

        Unknown and ended sessions don't count.
        """
        chosen = self.model.id.in_([as_id(id) for id in ids])
        # Each revocation locks its user's row: without an order, two actions could deadlock.
        query = self.get_query().filter(chosen).order_by(self.model.user_id)
        count = sum(self._sessions.revoke(row) for row in query.all())
        query.session.commit()
        flash(f"{sessions_of(count)} ended.", "success")


def _find_model() -> type[t.Any]:
    if not has_app_context():
        raise ConfigurationError(
            "'UserSessionView' was created without an app context, so its table is unknown. Create"
            " it within 'with app.app_context():'."
        )
    model = get_registry().session_model
    if model is None:
        raise ConfigurationError(
            "'UserSessionView' needs user sessions in SQL, but 'SESSION_REGISTRY_RECORDS' keeps"
            " them elsewhere. Remove one of the two."
        )
    return model
