"""What does the page say, and in which language?

In English, unless Flask-Babel is set up on the app and there is a catalog, or the setting ``TEXTS``
says it in other words.
"""

from __future__ import annotations

import datetime as dt
import functools
import typing as t
from collections.abc import Mapping
from pathlib import Path

from flask import current_app

from .. import _clock as clock
from .._log import log

#: A text, or one for one and one for several.
Text = str | tuple[str, str]

_DOMAIN = "flask_session_registry"
_TRANSLATIONS = Path(__file__).parent / "translations"

_MINUTE = dt.timedelta(minutes=1)
_HOUR = dt.timedelta(hours=1)
_DAY = dt.timedelta(days=1)


def _(text: str) -> str:
    """Mark a text to be translated."""
    return text


def _n(one: str, several: str) -> tuple[str, str]:
    """Mark a text that depends on a number, ``num``."""
    return one, several


TEXTS: Mapping[str, Text] = {
    "title": _("Where you're signed in"),
    "introduction": _(
        "These devices are signed in to your account. Sign out those that you don't know, and"
        " change your password."
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
    "end_all": _("Sign out everywhere, here too"),
    "older": _("More devices"),
    "newest": _("Back to the first devices"),
    "cancel": _("Cancel"),
    "confirm_end": _("Sign out %(device)s?"),
    "confirm_others": _("Sign out all other devices?"),
    "confirm_all": _("Sign out everywhere, on this device too?"),
    "ended": _("%(device)s is signed out."),
    "ended_others": _n(
        "%(num)d other device is signed out.", "%(num)d other devices are signed out."
    ),
    "ended_all": _("You are signed out everywhere."),
    "not_there": _("That device is not signed in."),
    "form_expired": _("That page had been open for too long. Please try again."),
    "recent": _("Recently signed out"),
    "reason_expired": _("It was not used for long"),
    "reason_inactive": _("The account was deactivated"),
    "reason_logged_out": _("Signed out on the device"),
    "reason_max_sessions": _("Too many devices were signed in"),
    "reason_not_saved": _("Signing in did not succeed"),
    "reason_password_changed": _("The password was changed"),
    "reason_replaced": _("Signed in anew on the device"),
    "reason_revoked": _("Signed out from elsewhere"),
    "just_now": _("just now"),
    "minutes_ago": _n("%(num)d minute ago", "%(num)d minutes ago"),
    "hours_ago": _n("%(num)d hour ago", "%(num)d hours ago"),
    "days_ago": _n("%(num)d day ago", "%(num)d days ago"),
}


def fill_in(text: t.Any, values: Mapping[str, t.Any]) -> str:
    """Put values into a text, of which there may be one for one and one for several.

    :raises KeyError, TypeError, ValueError: it has others in it.
    """
    if isinstance(text, tuple):
        one, several = text
        text = one if values["num"] == 1 else several
    return str(text) % values if values else str(text)


class Texts:
    """What the page says on one app.

    :param own: texts of the app, by the names of ours.
    """

    def __init__(self, own: Mapping[str, t.Any]) -> None:
        self._own = own

    def __call__(self, name: str, **values: t.Any) -> str:
        """A text in the language of this request, with these values in it.

        :param values: ``num`` is the number that a text with a plural depends on.
        """
        own = self._own.get(name)
        if own is not None:
            try:
                return fill_in(own, values)
            except (KeyError, TypeError, ValueError) as error:
                # One that is translated when it is needed can't be tried before.
                log.error(
                    "The text '%s' of the page has other values in it than it is given (%s). Ours"
                    " stands in its place.",
                    name,
                    type(error).__name__,
                )
        text, domain = TEXTS[name], _domain()
        if domain is None:
            return fill_in(text, values)
        if isinstance(text, tuple):
            return t.cast(str, domain.ngettext(*text, **values))
        return t.cast(str, domain.gettext(text, **values))

    def reason(self, reason: str | None) -> str:
        """Why a session has ended; a reason that the app has made up as it stands."""
        name = f"reason_{reason}"
        return self(name) if name in TEXTS else reason or ""

    def ago(self, moment: dt.datetime) -> str:
        """How long ago that was, as people say it; from two months on, the day."""
        age = clock.now() - moment
        if age < _MINUTE:
            return self("just_now")
        if age < _HOUR:
            return self("minutes_ago", num=age // _MINUTE)
        if age < _DAY:
            return self("hours_ago", num=age // _HOUR)
        if age < 60 * _DAY:
            return self("days_ago", num=age // _DAY)
        return day(moment)


def day(moment: dt.datetime) -> str:
    """The day; without Flask-Babel as ISO 8601 has it, in UTC."""
    babel = _babel()
    return f"{moment:%Y-%m-%d}" if babel is None else t.cast(str, babel.format_date(moment))


def exactly(moment: dt.datetime) -> str:
    """The moment, with its time zone; without Flask-Babel UTC."""
    babel = _babel()
    if babel is None:
        return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
    return t.cast(str, babel.format_datetime(moment, "long"))


def language() -> str:
    """The tag (BCP 47) of the language that the page is in."""
    babel = _babel()
    locale = None if babel is None else babel.get_locale()
    return "en" if locale is None else str(locale).replace("_", "-")


def _babel() -> t.Any:
    """Flask-Babel, if it is set up on the app; else ``None``."""
    if "babel" not in current_app.extensions:
        return None
    import flask_babel

    return flask_babel


def _domain() -> t.Any:
    babel = _babel()
    return None if babel is None else _our_domain(babel)


@functools.cache
def _our_domain(babel: t.Any) -> t.Any:
    return babel.Domain(str(_TRANSLATIONS), _DOMAIN)
