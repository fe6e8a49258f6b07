"""Texts of the page, in the language of the request.

They are in English, unless Flask-Babel is set up on the app and there is a catalog for another
language. The setting ``TEXTS`` replaces them.
"""

from __future__ import annotations

import datetime as dt
import functools
import math
import typing as t
from collections.abc import Mapping
from pathlib import Path

from flask import current_app

from .. import _clock as clock
from .._log import log

#: A text, or its singular and its plural.
Text = str | tuple[str, str]

_DOMAIN = "flask_session_registry"
_TRANSLATIONS = Path(__file__).parent / "translations"

#: From this age on, a moment is shown as a date.
_MAX_RELATIVE = dt.timedelta(days=60)


def _(text: str) -> str:
    """Mark a text for translation."""
    return text


def _n(singular: str, plural: str) -> tuple[str, str]:
    """Mark a text for translation that depends on a number, ``num``."""
    return singular, plural


TEXTS: Mapping[str, Text] = {
    "title": _("Where you're signed in"),
    "introduction": _(
        "These devices are signed in to your account. Sign out any that you don't recognize,"
        " and change your password."
    ),
    "this_device": _("This device"),
    "device": _("%(browser)s on %(system)s"),
    "unknown_device": _("Unknown device"),
    "unknown_address": _("Unknown address"),
    "began": _("Signed in"),
    "last_seen": _("Last seen"),
    "remembered_until": _("Remembered until"),
    "end": _("Sign out"),
    "end_device": _("Sign out %(device)s"),
    "end_others": _("Sign out all other devices"),
    "end_all": _("Sign out everywhere, including here"),
    "older": _("More devices"),
    "newest": _("Back to the first page"),
    "cancel": _("Cancel"),
    "confirm_end": _("Sign out %(device)s?"),
    "confirm_others": _("Sign out all other devices?"),
    "confirm_all": _("Sign out everywhere, including this device?"),
    "ended": _("%(device)s is signed out."),
    "ended_others": _n(
        "%(num)d other device is signed out.", "%(num)d other devices are signed out."
    ),
    "ended_all": _("You are signed out everywhere."),
    "not_there": _("That device is not signed in."),
    "form_expired": _("That page was open for too long. Please try again."),
    "recent": _("Recently signed out"),
    "reason_expired": _("Expired"),
    "reason_inactive": _("The account was deactivated"),
    "reason_logged_out": _("Signed out on the device"),
    "reason_max_sessions": _("Too many devices were signed in"),
    "reason_not_saved": _("Sign-in failed"),
    "reason_password_changed": _("The password was changed"),
    "reason_replaced": _("Signed in again on this device"),
    "reason_revoked": _("Signed out from elsewhere"),
    "just_now": _("just now"),
    # Flask-Babel translates these.
    "minutes_ago": ("%(num)d minute ago", "%(num)d minutes ago"),
    "hours_ago": ("%(num)d hour ago", "%(num)d hours ago"),
    "days_ago": ("%(num)d day ago", "%(num)d days ago"),
}

#: Largest first: a unit of time, the name that Babel has for it, and our text.
_UNITS = (
    (dt.timedelta(days=1), "day", "days_ago"),
    (dt.timedelta(hours=1), "hour", "hours_ago"),
    (dt.timedelta(minutes=1), "minute", "minutes_ago"),
)


def fill_in(text: t.Any, values: Mapping[str, t.Any]) -> str:
    """Put values into a text, in the singular or the plural if it has both.

    :raises KeyError, TypeError, ValueError: the text expects other values.
    """
    if isinstance(text, tuple):
        singular, plural = text
        text = singular if values["num"] == 1 else plural
    return str(text) % values if values else str(text)


class Texts:
    """The texts of the page on one app.

    :param own: texts of the app, by the names of the ones they replace.
    """

    def __init__(self, own: Mapping[str, t.Any]) -> None:
        self._own = own

    def __call__(self, name: str, **values: t.Any) -> str:
        """Return a text in the language of this request, with these values in it.

        :param values: ``num`` is the number that chooses between singular and plural.
        """
        own = self._own.get(name)
        if own is not None:
            try:
                return fill_in(own, values)
            except (KeyError, TypeError, ValueError) as error:
                # A lazy translation can't be validated at start-up.
                log.error(
                    "The text '%s' of the page expects other values than it is given (%s). The"
                    " default is used instead. Correct it in 'SESSION_REGISTRY_TEXTS'.",
                    name,
                    type(error).__name__,
                )
        text, babel = TEXTS[name], _babel()
        if babel is None:
            return fill_in(text, values)
        domain = _load_domain(babel)
        if isinstance(text, tuple):
            return t.cast(str, domain.ngettext(*text, **values))
        return t.cast(str, domain.gettext(text, **values))

    def reason(self, reason: str | None) -> str:
        """Return why a session ended. A reason of the app's own is returned as it is."""
        name = f"reason_{reason}"
        return self(name) if name in TEXTS else reason or ""

    def ago(self, moment: dt.datetime) -> str:
        """Return how long ago a moment was; from two months on, its date."""
        age = clock.now() - moment
        if age >= _MAX_RELATIVE:
            return date(moment)
        for unit, babel_name, name in _UNITS:
            if age >= unit:
                babel = None if name in self._own else _babel()
                if babel is None:
                    return self(name, num=age // unit)
                return _format_age(babel, age // unit * unit, babel_name)
        return self("just_now")


def _format_age(babel: t.Any, age: dt.timedelta, unit: str) -> str:
    # The threshold rules out larger units: as precise as our own texts.
    formatted = babel.format_timedelta(
        -age, granularity=unit, threshold=math.inf, add_direction=True
    )
    return t.cast(str, formatted)


def date(moment: dt.datetime) -> str:
    """Return the date; without Flask-Babel, in UTC and in the format of ISO 8601."""
    babel = _babel()
    return f"{moment:%Y-%m-%d}" if babel is None else t.cast(str, babel.format_date(moment))


def exact_time(moment: dt.datetime) -> str:
    """Return date, time and time zone; without Flask-Babel, in UTC."""
    babel = _babel()
    if babel is None:
        return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
    return t.cast(str, babel.format_datetime(moment, "long"))


def language() -> str:
    """Return the tag (BCP 47) of the language of this request."""
    babel = _babel()
    locale = None if babel is None else babel.get_locale()
    return "en" if locale is None else str(locale).replace("_", "-")


def _babel() -> t.Any:
    """Return Flask-Babel if it is set up on the app, or ``None``."""
    if "babel" not in current_app.extensions:
        return None
    import flask_babel

    return flask_babel


@functools.cache
def _load_domain(babel: t.Any) -> t.Any:
    return babel.Domain(str(_TRANSLATIONS), _DOMAIN)
