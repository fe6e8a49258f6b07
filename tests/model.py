"""A model of the whole system: who is signed in after any sequence of events, on every store.

``python -m tests.model --steps 100000`` takes that many random steps on each store and prints the
step count and the seeds. ``test_model.py`` takes a few. A failure is reported as the shortest story
that reproduces it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import itertools
import logging
import sys
import tempfile
import time
import types
import typing as t
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import flask_session._utils
import sqlalchemy as sa
from flask import got_request_exception, session
from flask_login import current_user, login_required, login_user, logout_user
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

sys.path.insert(0, str(Path(__file__).parent))

from site_under_test import HAS_FALLBACKS, RECORDS, Browser, Site
from stores import KINDS, STORES

from flask_session_registry import session_registered
from flask_session_registry._request import persistence

USERS = ("ann", "bob")
#: Limits for one story, because every jar is checked after each step.
BROWSERS, JARS, EARLIER = 4, 7, 4
#: What happens to the transaction that contains the step.
OUTCOMES = (
    "committed",
    "rolled back",
    "savepoint released, then committed",
    "savepoint released, then rolled back",
    "savepoint rolled back, then committed",
    "abandoned, then something else committed",
    "left open",
    "raised",
)
COMMITTED = ("committed", "savepoint released, then committed")


# -- the model ---------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Login:
    """One user session: a browser in which a user signed in."""

    id: uuid.UUID
    user: str
    #: The password that it was opened with.
    password: str
    #: Its current session id, and the number of its rotations.
    key: str
    number: int = 0
    is_over: bool = False
    is_purged: bool = False


class Ticket(t.NamedTuple):
    """What a cookie says, and the key that signed it."""

    login: Login
    number: int
    key: str
    secret: str


@dataclasses.dataclass(eq=False)
class Jar:
    """The cookies of a browser or of a thief."""

    browser: Browser
    session: Ticket | None = None
    #: The "remember me" cookie, if its binding cookie is with it.
    remember: Ticket | None = None


class Model:
    """Decide who is signed in: the site must agree for every cookie jar."""

    def __init__(self, passwords: dict[str, str], secret: str, *, has_store: bool) -> None:
        self.passwords = passwords
        self.secrets = [secret]
        self.logins: list[Login] = []
        #: The session ids that have an entry in the store.
        self.entries: set[str] = set()
        self.has_store = has_store
        self.store_is_up = True

    def stands(self, login: Login) -> bool:
        return not login.is_over and login.password == self.passwords[login.user]

    def opens(self, ticket: Ticket) -> bool:
        """Return whether the site can read this session cookie at all."""
        return ticket.key in self.entries if self.has_store else ticket.secret in self.secrets

    def ticket_of(self, jar: Jar) -> Ticket | None:
        """Return the cookie that counts: a readable session, or else a "remember me" cookie."""
        if jar.session and self.opens(jar.session):
            return jar.session
        # Flask-Login signs and reads its cookie with the newest key only.
        is_readable = jar.remember and jar.remember.secret == self.secrets[0]
        return jar.remember if is_readable else None

    def login_of(self, jar: Jar) -> Login | None:
        """Return the login that these cookies are signed in with."""
        ticket = self.ticket_of(jar)
        if ticket and self.stands(ticket.login) and ticket.number == ticket.login.number:
            return ticket.login
        return None

    def returns(self, jar: Jar) -> bool:
        has_session = jar.session is not None and self.opens(jar.session)
        return not has_session and self.login_of(jar) is not None

    # What happens to cookie jars. 'key' is the session id in the response.

    def visit(self, jar: Jar, key: str) -> Login | None:
        login = self.login_of(jar)
        if login is None:
            jar.remember = None
        elif self.returns(jar):
            self.move(jar, login, key)
        elif self.has_store and jar.session:
            # Every jar restored from a "remember me" cookie has its own id; the row names one.
            self.keep(login, jar.session.key)
        return login

    def move(self, jar: Jar, login: Login, key: str) -> None:
        """Continue a session under a new id and drop its old store entry."""
        if jar.session:
            self.entries.discard(jar.session.key)
        self.keep(login, key)
        self.entries.add(key)
        jar.session = Ticket(login, login.number, key, self.secrets[0])

    def keep(self, login: Login, key: str) -> None:
        """Continue a session under this id and drop the entry that its row named before."""
        if key != login.key:
            self.entries.discard(login.key)
            login.key = key

    def rotate(self, jar: Jar, login: Login, key: str) -> None:
        """Continue a session under a new id, and invalidate earlier copies of its cookies."""
        login.number += 1
        self.move(jar, login, key)
        if jar.remember and jar.remember.secret in self.secrets:
            jar.remember = jar.session

    def sign_in(self, jar: Jar, login: Login, *, remember: bool) -> None:
        if (before := self.login_of(jar)) is not None:
            self.leave(before)
        self.logins.append(login)
        self.move(jar, login, login.key)
        jar.remember = jar.session if remember else None

    def sign_out(self, jar: Jar, login: Login) -> None:
        self.leave(login)
        if jar.session:
            self.entries.discard(jar.session.key)
        jar.session = jar.remember = None

    # What happens to sessions.

    def end(self, login: Login) -> None:
        login.is_over = True
        if self.store_is_up:
            self.purge(login)

    def leave(self, login: Login) -> None:
        """End a request's own session.

        If it was rotated, the request doesn't know the entry from before.
        """
        self.end(login)
        if login.number:
            login.is_purged = False

    def purge(self, login: Login) -> None:
        self.entries.discard(login.key)
        login.is_purged = True

    def revoke(self, user: str, *, but: Login | None = None) -> None:
        for login in self.logins:
            if login.user == user and login is not but and not login.is_over:
                self.end(login)

    def change_password(self, user: str, password: str, by: Login | None) -> bool:
        """Return whether the session that made the change continues under a new id."""
        if password == self.passwords[user]:
            return False
        self.passwords[user] = password
        self.revoke(user, but=by)
        if by is None or by.user != user:
            return False
        by.password = password
        return True

    def rehash(self, user: str, password: str) -> None:
        """Store the same password under another hash."""
        for login in self.logins:
            if login.user == user and self.stands(login):
                login.password = password
        self.passwords[user] = password


# -- the site ----------------------------------------------------------------------------------


class RaisedError(Exception):
    """Raised halfway through by a view or a script."""


class Down:
    """The client of an unreachable store."""

    def __getattr__(self, name: str) -> t.Any:
        raise ConnectionError("The session store is down.")


class Stage(Site):
    """A site whose views run what the story tells them to."""

    def __init__(self, folder: Path, store: str, records: str) -> None:
        super().__init__(folder, store=store, records=records, users=USERS)
        self.interface: t.Any = self.app.session_interface
        self.has_store = store != "cookie"
        self.told: Callable[[], t.Any] = lambda: None
        self.told_meanwhile: Callable[[], object] = self.told
        self.told_late = self.told
        self.error: BaseException | None = None
        self.registered: list[uuid.UUID] = []
        #: All session ids that the story has seen.
        self.keys: set[str] = set()
        #: The keys of all entries that the story wrote, seen or not.
        self.written: set[str] = set()
        self.pool = ThreadPoolExecutor(1)
        self.steps = 0
        self.app.logger.disabled = True
        self._prepare_sqlite()
        if self.has_store:
            self._note_what_is_written()
        # Blinker holds receivers weakly.
        self._receivers = (self._note_registered, self._note_error)
        session_registered.connect(self._receivers[0], self.app)
        got_request_exception.connect(self._receivers[1], self.app)

    def _note_registered(self, _: object, user_session_id: uuid.UUID, **__: object) -> None:
        self.registered.append(user_session_id)

    def _note_error(self, _: object, exception: BaseException, **__: object) -> None:
        self.error = exception

    def _prepare_sqlite(self) -> None:
        with self.context():
            engine = self.db.engine

        @sa.event.listens_for(engine, "connect")
        def connect(connection: t.Any, _: t.Any) -> None:
            # SQLAlchemy's recipe: otherwise the driver commits when a savepoint is released.
            connection.isolation_level = None
            connection.execute("PRAGMA synchronous=OFF")

        @sa.event.listens_for(engine, "begin")
        def begin(connection: t.Any) -> None:
            connection.exec_driver_sql("BEGIN")

        engine.dispose()

    def _note_what_is_written(self) -> None:
        upsert = self.interface._upsert_session

        def noted(lifetime: t.Any, data: t.Any, store_id: str) -> None:
            self.written.add(store_id)
            upsert(lifetime, data, store_id)

        self.interface._upsert_session = noted

    def _add_views(self) -> None:
        super()._add_views()
        app = self.app

        @app.get("/who")
        def who() -> str:
            return str(current_user.name) if current_user.is_authenticated else "nobody"

        @app.post("/do")
        @login_required
        def do() -> str:
            self.told()
            return "done"

        @app.post("/slow")
        @login_required
        def slow() -> str:
            current_user.get_id()
            self.db.session.rollback()
            self.pool.submit(self.told_meanwhile).result(60)
            session.modified = True
            return "done"

        @app.post("/held")
        @login_required
        def held() -> str:
            # The hash as the session check loaded it, before anything else happens.
            assert current_user.password_hash
            self.db.session.rollback()
            self.pool.submit(self.told_meanwhile).result(60)
            self.told_late()
            return "done"

        @app.post("/slow-login/<name>")
        def slow_login(name: str) -> str:
            user = self.user(name)
            assert user.password_hash
            self.db.session.rollback()
            self.pool.submit(self.told_meanwhile).result(60)
            login_user(user)
            return "done"

    def close(self) -> None:
        self.pool.shutdown()
        super().close()

    def reset(self) -> dict[str, str]:
        """Restore the initial state and return the passwords."""
        with self.context():
            # Include entries that a failing step didn't report: the next story would count them.
            for store_id in self.written:
                self.interface._delete_session(store_id)
            self.forget_all()
            for name in USERS:
                self.user(name).password_hash = f"first of {name}"
            self.db.session.commit()
        self.keys.clear()
        self.written.clear()
        self.app.config.update(SECRET_KEY="first secret", SECRET_KEY_FALLBACKS=None)
        return {name: f"first of {name}" for name in USERS}

    # -- the store: through Flask-Session, whichever one it is ---------------------------------

    def read(self, key: str) -> dict[str, t.Any] | None:
        with self.context():
            store_id = self.interface._get_store_id(key)
            return t.cast(
                "dict[str, t.Any] | None", self.interface._retrieve_session_data(store_id)
            )

    def write(self, key: str, data: dict[str, t.Any]) -> None:
        with self.context():
            lifetime = self.app.permanent_session_lifetime
            self.interface._upsert_session(lifetime, data, self.interface._get_store_id(key))

    def delete(self, key: str) -> None:
        if self.has_store:
            with self.context():
                self.interface._delete_session(self.interface._get_store_id(key))

    @contextlib.contextmanager
    def store_down(self) -> Iterator[None]:
        parts = ("client", "cache", "store", "sql_session_model")
        kept = {name: part for name, part in vars(self.interface).items() if name in parts}
        vars(self.interface).update(dict.fromkeys(kept, Down()))
        try:
            yield
        finally:
            vars(self.interface).update(kept)


# -- what may happen ---------------------------------------------------------------------------

users = st.sampled_from(USERS)
outcomes = st.sampled_from([*OUTCOMES, *COMMITTED])
#: Whether a signed-out actor signs in first: no, with "remember me", or without it.
signing_in = st.sampled_from([None, True, False])
rarely = st.sampled_from([False, False, False, True])
#: What a request does after it was held, and which of these change the password.
HELD = ("change", "rehash", "revoke the others", "rotate", "sign in", "sign out")
CHANGES = ("change", "rehash")
#: What happens in the meantime.
meanwhile = st.lists(
    st.sampled_from(
        [
            *("change", "change in SQL", "rehash", "rotate"),
            *("revoke", "revoke all", "sign out", "sign in"),
        ]
    ),
    max_size=2,
)
mostly = st.sampled_from([True, True, True, False])


def is_lively(story: Story) -> bool:
    """Return whether at least two jars are signed in, so that a story keeps sessions to end."""
    return sum(story.model.login_of(jar) is not None for jar in story.all) >= 2


class Story(RuleBasedStateMachine):
    """Several browsers, several users, and thieves.

    An actor is a cookie jar, or ``None`` for a shell.
    """

    jars = Bundle("jars")
    actors = st.one_of(jars, jars, jars, st.none())

    def __init__(self, site: Stage) -> None:
        super().__init__()
        self.site = site
        self.model = Model(site.reset(), "first secret", has_store=site.has_store)
        self.all: list[Jar] = []
        #: The cookies that browsers had earlier: a thief may have copied them.
        self.earlier: collections.deque[Jar] = collections.deque(maxlen=EARLIER)
        self.copied: dict[Jar, Jar] = {}
        #: Copies of store entries, by session id.
        self.copies: dict[str, dict[str, t.Any]] = {}
        self.status = 0
        self.counter = itertools.count(1)

    # -- pieces ------------------------------------------------------------------------------

    def fresh(self, what: str) -> str:
        return f"{what} {next(self.counter)}"

    def add(self, cookies: dict[str, str]) -> Jar:
        jar = Jar(self.site.browser("Firefox", **cookies))
        self.all.append(jar)
        return jar

    def key_of(self, jar: Jar) -> str:
        key = jar.browser.cookies.get("session", "")
        self.site.keys.add(key)
        return key

    def ask(
        self, jar: Jar, method: str, path: str, *, status: int | None = 200, **form: str
    ) -> None:
        """Send a request.

        :param status: expected in the response; ``None`` if the caller checks it.
        """
        self.site.error = None
        response = jar.browser.open(method, path, data=form)
        self.status = response.status_code
        if status is not None and response.status_code != status:
            answer = f"{response.status_code} instead of {status}: {response.text}"
            raise AssertionError(answer) from self.site.error

    def look(self, jar: Jar) -> None:
        """Check that the site and the model agree about these cookies."""
        login = self.model.login_of(jar)
        returns, before = self.model.returns(jar), self.key_of(jar)
        assert jar.browser.get("/who").text == (login.user if login else "nobody"), jar
        assert returns or not self.site.has_store or self.key_of(jar) == before
        self.model.visit(jar, self.key_of(jar))

    def new_login(self, jar: Jar, user: str, password: str) -> Login:
        lost = jar.session.login if jar.session and not self.model.opens(jar.session) else None
        may_end = lost and lost.user == user and not lost.is_over and self.model.has_store
        # A login may replace a session whose store entry was lost.
        if lost and may_end and any(row.revoked_at for row in self.site.rows(id=lost.id)):
            self.model.leave(lost)
        return Login(self.site.registered[-1], user, password, self.key_of(jar))

    def sign_in_first(self, actor: Jar | None, user: str, remember: bool | None) -> None:
        if actor and remember is not None and self.model.login_of(actor) is None:
            self.sign_in(actor, user, remember)

    def perform(
        self,
        actor: Jar | None,
        what: Callable[[], t.Any],
        outcome: str,
        follow: Callable[[Login | None], t.Any],
    ) -> t.Any:
        """Do something in a transaction and return its result.

        :param follow: does the same in the model, after a commit. It receives the login that acted.
        """
        site, results = self.site, []

        def told() -> None:
            db = site.db.session
            if outcome.startswith("savepoint released"):
                with db.begin_nested():
                    results.append(what())
                if outcome in COMMITTED:
                    db.commit()
                else:
                    db.rollback()
            elif outcome == "savepoint rolled back, then committed":
                site.user("ann").note = self.fresh("note")
                savepoint = db.begin_nested()
                results.append(what())
                db.flush()
                savepoint.rollback()
                db.commit()
            else:
                results.append(what())
                db.flush()
                if outcome in COMMITTED:
                    db.commit()
                elif outcome == "rolled back":
                    db.rollback()
                elif outcome == "abandoned, then something else committed":
                    db.remove()
                    site.user("ann").note = self.fresh("note")
                    db.commit()
                elif outcome == "raised":
                    raise RaisedError

        site.told = told
        if actor is None:
            with contextlib.suppress(RaisedError), site.context():
                told()
            if outcome in COMMITTED:
                follow(None)
            return results[0]
        by = self.model.login_of(actor)
        status = 401 if by is None else 500 if outcome == "raised" else 200
        self.ask(actor, "POST", "/do", status=status)
        if by is not None and outcome in COMMITTED:
            follow(by)
        # At the end of the request, the row names this id if the session is still active.
        self.model.visit(actor, self.key_of(actor))
        return results[0] if by else None

    @contextlib.contextmanager
    def store(self, *, is_down: bool) -> Iterator[None]:
        """Make the session store unreachable within the block."""
        if is_down and self.site.has_store:
            self.model.store_is_up = False
            with self.site.store_down():
                yield
            self.model.store_is_up = True
        else:
            yield

    def numbers(self, user: str, *, but: Login | None = None) -> range:
        """Return how many sessions a revocation may report as ended.

        It may count sessions that only their fingerprint invalidates, or leave them out.
        """
        left = [x for x in self.model.logins if x.user == user and not x.is_over and x is not but]
        return range(sum(map(self.model.stands, left)), len(left) + 1)

    # -- browsers ----------------------------------------------------------------------------

    @initialize(target=jars, who=st.tuples(*[st.tuples(users, st.booleans())] * BROWSERS))
    def open_browsers(self, who: tuple[tuple[str, bool], ...]) -> t.Any:
        opened = [self.add({}) for _ in who]
        for jar, (user, remember) in zip(opened, who, strict=True):
            self.sign_in(jar, user, remember)
        return multiple(*opened)

    @rule(jar=jars, user=users, remember=st.booleans())
    def sign_in(self, jar: Jar, user: str, remember: bool) -> None:
        before = self.key_of(jar)
        password = self.model.passwords[user]
        form = {"remember": "1"} if remember else {}
        self.ask(jar, "POST", "/login", name=user, password=password, **form)
        assert self.key_of(jar) != before
        self.model.sign_in(jar, self.new_login(jar, user, password), remember=remember)

    @precondition(is_lively)
    @rule(jar=jars)
    def sign_out(self, jar: Jar) -> None:
        self.ask(jar, "POST", "/logout")
        login = self.model.visit(jar, self.key_of(jar))
        if login is not None:
            self.model.sign_out(jar, login)

    @rule(jar=jars)
    def visit(self, jar: Jar) -> None:
        self.look(jar)

    @rule(jar=jars, user=users, first=signing_in)
    def rotate(self, jar: Jar, user: str, first: bool | None) -> None:
        self.sign_in_first(jar, user, first)
        before = self.key_of(jar)

        def follow(by: Login | None) -> None:
            assert by
            assert self.key_of(jar) != before
            self.model.rotate(jar, by, self.key_of(jar))

        self.perform(jar, self.site.sessions.rotate, "committed", follow)

    @rule(jar=jars)
    def lose_session_cookie(self, jar: Jar) -> None:
        jar.browser.lose("session")
        jar.session = None

    @precondition(lambda self: len(self.all) < JARS)
    @rule(
        target=jars,
        jar=jars,
        what=st.sampled_from(
            ["everything", "everything", "the session", "what remembers", "without companion"]
        ),
    )
    def steal(self, jar: Jar, what: str) -> Jar:
        """Copy cookies, to be replayed later."""
        cookies = jar.browser.cookies
        if what == "the session":
            cookies.pop("remember_token", None)
        if what in ("the session", "without companion"):
            cookies.pop("remember_token_session", None)
        if what in ("what remembers", "without companion"):
            cookies.pop("session", None)
        thief = self.add(cookies)
        if what in ("everything", "the session"):
            thief.session = jar.session
        if what in ("everything", "what remembers"):
            thief.remember = jar.remember
        return thief

    # -- sessions that end -------------------------------------------------------------------

    @precondition(is_lively)
    @rule(actor=actors, user=users, outcome=outcomes, is_new=mostly, first=signing_in)
    def change_password(
        self, actor: Jar | None, user: str, outcome: str, is_new: bool, first: bool | None = None
    ) -> None:
        self.sign_in_first(actor, user, first)
        password = self.fresh("password") if is_new else self.model.passwords[user]

        def change() -> None:
            self.site.user(user).password_hash = password

        before = self.key_of(actor) if actor else ""

        def follow(by: Login | None) -> None:
            if self.model.change_password(user, password, by) and actor and by:
                assert self.key_of(actor) != before
                self.model.rotate(actor, by, self.key_of(actor))

        self.perform(actor, change, outcome, follow)

    @precondition(is_lively)
    @rule(user=users)
    def change_password_in_sql(self, user: str) -> None:
        password = self.fresh("password")
        with self.site.context(), self.site.db.engine.begin() as connection:
            table = self.site.User.__table__
            where = table.c.name == user
            connection.execute(table.update().where(where).values(password_hash=password))
        self.model.passwords[user] = password

    @rule(actor=actors, user=users, outcome=outcomes, first=signing_in)
    def rehash_password(
        self, actor: Jar | None, user: str, outcome: str, first: bool | None = None
    ) -> None:
        self.sign_in_first(actor, user, first)
        password = self.fresh("hash")

        def rehash() -> None:
            someone = self.site.user(user)
            with self.site.sessions.same_credentials(someone):
                someone.password_hash = password

        self.perform(actor, rehash, outcome, lambda _: self.model.rehash(user, password))

    @precondition(is_lively)
    @rule(
        actor=actors, user=users, outcome=outcomes, except_current=st.booleans(), first=signing_in
    )
    def revoke_all(
        self,
        actor: Jar | None,
        user: str,
        outcome: str,
        except_current: bool,
        first: bool | None = None,
    ) -> None:
        self.sign_in_first(actor, user, first)
        by = self.model.login_of(actor) if actor else None
        spared = by if except_current else None
        numbers = self.numbers(user, but=spared)

        def revoke_all() -> int:
            someone = self.site.user(user)
            return self.site.sessions.revoke_all(someone, except_current=except_current)

        count = self.perform(
            actor, revoke_all, outcome, lambda _: self.model.revoke(user, but=spared)
        )
        assert count is None or count in numbers

    @precondition(is_lively)
    @rule(
        actor=actors,
        user=st.none() | users,
        outcome=outcomes,
        which=st.integers(0, 20),
        first=signing_in,
    )
    def revoke(
        self,
        actor: Jar | None,
        user: str | None,
        outcome: str,
        which: int,
        first: bool | None = None,
    ) -> None:
        """Revoke one session; with a user, another user's session is treated as unknown."""
        self.sign_in_first(actor, user or USERS[0], first)
        login = self.model.logins[-1 - which % len(self.model.logins)]
        is_own = user in (None, login.user)
        stands, was_over = self.model.stands(login), login.is_over

        def revoke() -> bool:
            owner = self.site.user(user) if user else None
            return self.site.sessions.revoke(login.id, user=owner)

        def follow(_: Login | None) -> None:
            if is_own and not was_over:
                self.model.end(login)

        ended = self.perform(actor, revoke, outcome, follow)
        # Whether it reports a session that only its fingerprint invalidated is not promised.
        if ended is not None and (stands or was_over or not is_own):
            assert ended is (is_own and stands)

    # -- two things at once ------------------------------------------------------------------

    @precondition(is_lively)
    @rule(jar=jars, actor=actors, user=users, is_sign_out=rarely)
    def answer_late(self, jar: Jar, actor: Jar | None, user: str, is_sign_out: bool) -> None:
        """A request passes the check and responds after something else has happened."""
        model, login, ticket = self.model, self.model.login_of(jar), self.model.ticket_of(jar)
        if login is None or ticket is None or actor is jar:
            return
        named, renews = login.key, model.returns(jar) or ticket.key != login.key

        def meanwhile() -> None:
            if is_sign_out and actor:
                self.sign_out(actor)
            else:
                self.change_password(actor, user, "committed", True)

        self.site.told_meanwhile = meanwhile
        self.ask(jar, "POST", "/slow")
        key = self.key_of(jar)
        if model.has_store and renews:
            # Its row would have to name another id: refused if the session has ended. The entry
            # that the row names by now, because a copy was restored in the meantime, stays.
            if not model.stands(login) or ticket.number != login.number:
                return
            model.entries.discard(named)
            login.key = key
        # It has written its session back.
        model.entries.add(key)
        jar.session = ticket._replace(key=key, secret=model.secrets[0])

    @precondition(is_lively)
    @rule(jar=jars, actor=actors, verb=st.sampled_from(HELD), steps=meanwhile)
    def go_on_late(self, jar: Jar, actor: Jar | None, verb: str, steps: list[str]) -> None:
        """A request passes the check and continues after something else has happened."""
        model, login, ticket = self.model, self.model.login_of(jar), self.model.ticket_of(jar)
        if login is None or ticket is None or actor is jar or model.returns(jar):
            return
        if model.has_store and ticket.key != login.key:
            return
        password, new, before = login.password, self.fresh(verb), self.key_of(jar)
        refused = verb in CHANGES

        def go_on() -> None:
            nonlocal refused
            refused = verb in CHANGES and model.passwords[login.user] != password
            if verb == "change" and self.site.records == "sql":
                refused |= login.is_over or login.number != ticket.number
            self.do_late(verb, login.user, new)

        self.site.told_meanwhile = lambda: [self.happen(step, actor, login) for step in steps]
        self.site.told_late = go_on
        self.ask(jar, "POST", "/held", status=None)
        assert self.status == (409 if refused else 200), self.site.error
        key = self.key_of(jar)
        is_its_own = not login.is_over and login.number == ticket.number
        if refused:
            assert key == before
        elif verb in CHANGES:
            if verb == "change" and model.change_password(
                login.user, new, login if is_its_own else None
            ):
                model.rotate(jar, login, key)
            elif verb == "rehash":
                model.rehash(login.user, new)
        elif verb == "revoke the others":
            model.revoke(login.user, but=login)
            assert key == before
        elif verb == "sign out":
            model.sign_out(jar, login)
        elif is_its_own and verb == "rotate":
            model.rotate(jar, login, key)
        elif is_its_own and verb == "sign in":
            # The session that it replaces has followed a new hash of the same password.
            again = Login(self.site.registered[-1], login.user, login.password, key)
            model.leave(login)
            model.logins.append(again)
            model.move(jar, again, key)
        else:
            # Its session has ended or moved on elsewhere: it receives no cookie and clears none.
            assert key == before

    def do_late(self, verb: str, user: str, new: str) -> None:
        site = self.site
        if verb == "change":
            current_user.password_hash = new
            site.db.session.commit()
        elif verb == "rehash":
            with site.sessions.same_credentials(current_user):
                current_user.password_hash = new
                site.db.session.commit()
        elif verb == "revoke the others":
            site.sessions.revoke_all(current_user, except_current=True)
            site.db.session.commit()
        elif verb == "rotate":
            site.sessions.rotate()
        elif verb == "sign in":
            login_user(current_user._get_current_object())
        else:
            logout_user()

    def happen(self, step: str, actor: Jar | None, login: Login) -> None:
        """Do one thing while a request of this login is held."""
        if step == "change":
            self.change_password(actor, login.user, "committed", True)
        elif step == "change in SQL":
            self.change_password_in_sql(login.user)
        elif step == "rehash":
            self.rehash_password(actor, login.user, "committed")
        elif step == "rotate" and actor:
            self.rotate(actor, login.user, None)
        elif step == "revoke":
            which = len(self.model.logins) - 1 - self.model.logins.index(login)
            self.revoke(actor, login.user, "committed", which)
        elif step == "revoke all":
            self.revoke_all(actor, login.user, "committed", True)
        elif step == "sign out" and actor:
            self.sign_out(actor)
        elif step == "sign in" and actor:
            self.sign_in(actor, login.user, False)

    @precondition(is_lively)
    @rule(jar=jars, user=users)
    def sign_in_with_old_password(self, jar: Jar, user: str) -> None:
        """Log in with a password that changes between its check and the login."""
        password = self.model.passwords[user]
        self.site.told_meanwhile = lambda: self.change_password(None, user, "committed", True)
        self.ask(jar, "POST", f"/slow-login/{user}")
        self.model.sign_in(jar, self.new_login(jar, user, password), remember=False)

    # -- the store ---------------------------------------------------------------------------

    @precondition(lambda self: self.copies)
    @rule(which=st.integers(0, 9))
    def write_entry_back(self, which: int) -> None:
        """Write an entry back, as a request in flight or a restored backup does."""
        key = list(self.copies)[-1 - which % len(self.copies)]
        self.site.write(key, self.copies[key])
        self.model.entries.add(key)

    @precondition(lambda self: self.site.has_store)
    @rule(jar=jars)
    def lose_entry(self, jar: Jar) -> None:
        if jar.session is not None:
            self.site.delete(jar.session.key)
            self.model.entries.discard(jar.session.key)

    @precondition(lambda self: self.site.has_store)
    @precondition(is_lively)
    @rule(jar=jars, user=users, what=st.sampled_from(["password", "all", "one"]))
    def store_is_down(self, jar: Jar, user: str, what: str) -> None:
        """Requests fail while the store is down, but revocations in a shell still take effect."""
        with self.store(is_down=True):
            if what == "password":
                self.change_password(None, user, "committed", True)
            elif what == "all":
                self.revoke_all(None, user, "committed", False)
            elif self.model.logins:
                self.revoke(None, None, "committed", 0)
            if jar.session is not None:
                self.ask(jar, "GET", "/me", status=500)

    @rule()
    def prune(self) -> None:
        """After a prune, ended sessions have no entries except those written back after a purge."""
        with self.site.context():
            self.site.sessions.prune()
            assert not any(self.site.sessions.prune())
        for login in self.model.logins:
            if self.site.records != "sql" and not login.is_over and not self.model.stands(login):
                # With Redis records, a prune also ends sessions opened with an earlier password.
                login.is_over = True
            if login.is_over and not login.is_purged:
                self.model.purge(login)
        self.look_into_the_store()

    def look_into_the_store(self) -> None:
        if self.site.has_store:
            current = {login.key for login in self.model.logins}
            for key in self.site.keys:
                is_there = bool(self.site.read(key))
                if key in current:
                    assert is_there == (key in self.model.entries)
                elif not is_there:
                    # A stale entry may be deleted at any time.
                    self.model.entries.discard(key)
            assert len(self.site.signed_in_entries()) <= len(self.model.entries)

    # -- the key -----------------------------------------------------------------------------

    @precondition(is_lively)
    @rule(is_rescued=mostly)
    def change_secret_key(self, is_rescued: bool) -> None:
        model = self.model
        kept = model.secrets[:2] if is_rescued and HAS_FALLBACKS else ()
        model.secrets = [self.fresh("secret"), *kept]
        self.site.app.config["SECRET_KEY"] = model.secrets[0]
        self.site.app.config["SECRET_KEY_FALLBACKS"] = model.secrets[1:]

    # -- invariants --------------------------------------------------------------------------

    @invariant()
    def every_jar_is_signed_in_exactly_when_the_model_says_so(self) -> None:
        for jar in [*self.all, *self.earlier]:
            # A return by "remember me" gets a new id, so it is a visit of its own.
            if (jar.session or jar.remember) and not self.model.returns(jar):
                browser = self.site.browser("Firefox", **jar.browser.cookies)
                self.look(dataclasses.replace(jar, browser=browser))

    @invariant()
    def copy_what_is_new(self) -> None:
        for jar in self.all:
            before = self.copied.get(jar)
            if before and (before.session, before.remember) == (jar.session, jar.remember):
                continue
            if before:
                self.earlier.append(before)
            cookies = jar.browser.cookies
            browser = self.site.browser("Firefox", **cookies)
            self.copied[jar] = Jar(browser, jar.session, jar.remember)
            if "remember_token" in cookies:
                # Without its binding cookie it is worthless.
                alone = self.site.browser("Firefox", remember_token=cookies["remember_token"])
                self.look(Jar(alone))
            if self.site.has_store and jar.session and self.model.opens(jar.session):
                self.copies[jar.session.key] = self.site.read(jar.session.key) or {}

    @invariant()
    def active_sessions_are_those_of_the_model(self) -> None:
        self.site.steps += 1
        with self.site.context():
            for user in self.site.db.session.scalars(sa.select(self.site.User)):
                shown = {row.id for row in self.site.sessions.active(user)}
                standing = filter(self.model.stands, self.model.logins)
                assert shown == {login.id for login in standing if login.user == user.name}
        if self.site.has_store:
            # pymemcache doesn't wait for a reply to a write. Once it has read, it has written.
            self.site.read("nothing")

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:
            for jar in self.all:
                self.visit(jar)


# -- running it --------------------------------------------------------------------------------


@contextlib.contextmanager
def open_stage(store: str, records: str) -> Iterator[Stage]:
    """Yield a site on one kind of store, without anything that varies between runs."""
    slow_after, sleep = persistence.SLOW_AFTER, flask_session._utils.time
    # No request counts as slow, however slow the machine is.
    persistence.SLOW_AFTER = float("inf")
    # Flask-Session waits before it retries a store.
    flask_session._utils.time = types.SimpleNamespace(sleep=lambda _: None)
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder), store, records)
        try:
            yield stage
        finally:
            stage.close()
            logging.disable(logging.NOTSET)
            persistence.SLOW_AFTER, flask_session._utils.time = slow_after, sleep


def tell(stage: Stage, number: int, **options: t.Any) -> None:
    """Run the stories of this number, which are always the same.

    :raises Exception: the failure, with the shortest story that reproduces it.
    """
    options.setdefault("phases", [Phase.generate, Phase.shrink])
    quietly = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

    @seed(number)
    def story() -> Story:
        return Story(stage)

    run_state_machine_as_test(story, settings=settings(**quietly, **options))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000, help="steps on each store")
    parser.add_argument(
        "--store", choices=KINDS, action="append", help="a session store; by default, most of them"
    )
    parser.add_argument(
        "--records", choices=RECORDS, default="sql", help="where user sessions are kept"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()), help="the first seed")
    arguments = parser.parse_args()
    for store in arguments.store or STORES:
        began = time.monotonic()
        with open_stage(store, arguments.records) as stage:
            for number in itertools.count(arguments.seed):
                try:
                    tell(stage, number, max_examples=50, stateful_step_count=50)
                except BaseException:
                    print(f"{store}: failed within {stage.steps} steps, seed {number}", flush=True)
                    raise
                if stage.steps >= arguments.steps:
                    break
            seconds = time.monotonic() - began
            seeds = f"seeds {arguments.seed} to {number}"
            print(f"{store}: {stage.steps} steps, {seeds}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
