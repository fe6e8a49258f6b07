"""'on_commit' calls after a durable commit, and only then."""

from __future__ import annotations

import typing as t
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
import sqlalchemy.orm as sa_orm

from flask_session_registry._revocation.commit_hooks import on_commit


@pytest.fixture
def engine(databases: t.Any) -> Iterator[sa.Engine]:
    engine = sa.create_engine(databases("postgresql"), pool_size=1, max_overflow=0, pool_timeout=1)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE thing (n int PRIMARY KEY)"))
    yield engine
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE thing"))
    engine.dispose()


@pytest.fixture
def session(engine: sa.Engine) -> Iterator[sa_orm.Session]:
    with sa_orm.Session(engine) as session:
        yield session


@pytest.fixture
def called() -> list[str]:
    return []


def insert(session: sa_orm.Session, n: int = 1) -> None:
    session.execute(sa.text("INSERT INTO thing VALUES (:n)"), {"n": n})


def test_called_once_after_the_commit(session: sa_orm.Session, called: list[str]) -> None:
    """Callbacks run once and in order, and not again after later commits."""
    insert(session)
    pending = on_commit(session, lambda: called.append("one"))
    on_commit(session, lambda: called.append("two"))
    assert (called, pending.is_open) == ([], True)
    session.commit()
    insert(session, 2)
    session.commit()
    assert (called, pending.is_open) == (["one", "two"], False)


def test_without_a_transaction(session: sa_orm.Session, called: list[str]) -> None:
    """Without an open transaction, they wait for the next one."""
    on_commit(session, lambda: called.append("one"))
    session.commit()
    assert called == ["one"]


def test_connection_is_back_in_the_pool(
    engine: sa.Engine, session: sa_orm.Session, called: list[str]
) -> None:
    """With a pool of one, another connection is available, and sees what was committed."""

    def look() -> None:
        with engine.connect() as connection:
            called.append(str(connection.scalar(sa.text("SELECT count(*) FROM thing"))))

    insert(session)
    on_commit(session, look)
    session.commit()
    assert called == ["1"]


@pytest.mark.parametrize("end", ["rollback", "close", "reset"])
def test_not_called_without_a_commit(session: sa_orm.Session, called: list[str], end: str) -> None:
    """A later, unrelated commit of the same session doesn't call it either."""
    insert(session)
    pending = on_commit(session, lambda: called.append("one"))
    getattr(session, end)()
    assert not pending.is_open
    insert(session)
    session.commit()
    assert called == []


def test_savepoint_is_not_a_commit(session: sa_orm.Session, called: list[str]) -> None:
    """Releasing a savepoint calls nothing, and the outer rollback discards the callback."""
    insert(session)
    with session.begin_nested():
        on_commit(session, lambda: called.append("one"))
    assert called == []
    session.rollback()
    insert(session)
    session.commit()
    assert called == []


def test_failed_commit(session: sa_orm.Session, called: list[str]) -> None:
    """A commit that fails before it is sent calls nothing."""
    insert(session)
    on_commit(session, lambda: called.append("one"))

    def fail(*_: t.Any) -> None:
        raise RuntimeError("before the commit")

    sa.event.listen(session, "before_commit", fail, once=True)
    with pytest.raises(RuntimeError):
        session.commit()
    session.rollback()
    assert called == []


def test_callback_that_fails(
    session: sa_orm.Session, called: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged. The commit succeeds, the next callback runs, and the session is usable."""

    def fail() -> None:
        raise RuntimeError("after the commit")

    insert(session)
    on_commit(session, fail)
    on_commit(session, lambda: called.append("two"))
    session.commit()
    assert called == ["two"]
    assert "after the commit" in caplog.text
    insert(session, 2)
    session.commit()


def test_callback_that_asks_for_another_commit(session: sa_orm.Session, called: list[str]) -> None:
    """A callback registered by a callback waits for the next transaction."""
    insert(session)
    on_commit(session, lambda: on_commit(session, lambda: called.append("next")) and None)
    session.commit()
    assert called == []
    insert(session, 2)
    session.commit()
    assert called == ["next"]


def test_savepoint_that_is_released(session: sa_orm.Session, called: list[str]) -> None:
    """A callback registered within it is called once, after the outermost commit."""
    insert(session)
    with session.begin_nested():
        on_commit(session, lambda: called.append("one"))
    assert called == []
    session.commit()
    assert called == ["one"]
