"""Store entries from before session ids were hashed."""

from __future__ import annotations

import typing as t
from collections.abc import Callable

from flask import Flask, Request, Response
from flask.sessions import SessionInterface

from .._compat import flask_session
from .._request.store_keys import ISSUED, sent_session_id


def migrate_unhashed_entries(
    interface: SessionInterface, *, on_moved: Callable[[str], None]
) -> None:
    """Also find entries from before session ids were hashed, and move them to their hashed key.

    :param on_moved: called with the previous key of an entry that has been saved under its new one.
    """
    if not flask_session.owns(interface):
        return
    untyped: t.Any = interface
    opened, saved = untyped.open_session, untyped.save_session
    prefix = flask_session.key_prefix(interface)

    def open_session(app: Flask, request: Request) -> t.Any:
        found: t.Any = opened(app, request)
        sent = sent_session_id(app, request)
        # Never by a value that looks like a hash: it may come from a dump of the store.
        if sent is None or sent == found.sid or not ISSUED.fullmatch(sent):
            return found
        unhashed = flask_session.load_session(interface, prefix + sent, sent)
        if unhashed is None:
            return found
        unhashed.modified = True
        unhashed.moved_from = prefix + sent
        return unhashed

    def save_session(app: Flask, session: t.Any, response: Response) -> None:
        saved(app, session, response)
        before = getattr(session, "moved_from", None)
        if before is not None and session.modified:
            on_moved(before)

    untyped.open_session = open_session
    untyped.save_session = save_session
