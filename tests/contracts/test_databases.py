"""What every database keeps: transactions, claims, guards and the revision, over the URL alone.

PostgreSQL takes part where `MODELYARD_TEST_POSTGRESQL` is the URL of a database (postgresql+psycopg://user@host/name) in which
the tests may make schemas; each test has one of its own.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapped, mapped_column

from modelyard.db import (
    Base,
    Database,
    Revision,
    Session,
    append_only,
    bump,
    claim,
    guard,
    insert_new,
    joined,
    now,
    revision,
)
from modelyard.errors import Invalid

SERVER = "MODELYARD_TEST_POSTGRESQL"


class Yard(Base):
    """Tables of these tests live beside the real ones, which other modules of this process may have declared."""

    __abstract__ = True
    metadata = type(Base.metadata)(naming_convention=Base.metadata.naming_convention)


class Task(Yard):
    __tablename__ = "tasks"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str]
    rank: Mapped[int] = mapped_column(default=0)
    holder: Mapped[str | None]
    at: Mapped[datetime | None]


class Line(Yard):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    said: Mapped[str] = mapped_column(unique=True)


append_only(Line.__table__)
GUARDS = {"sqlite": [("lines_no_delete", ""), ("lines_no_update", "")], "postgresql": [("lines_append_only", " ON lines")]}


@contextmanager
def sqlite(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder / 'new' / 'yard.db'}"


@contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    url = os.environ.get(SERVER)
    if not url:
        pytest.skip(f"{SERVER} names no PostgreSQL database to test on")
    if find_spec("psycopg") is None:
        pytest.skip("the library psycopg is not installed")
    schema, server = f"test_{secrets.token_hex(6)}", Database(url)
    with server.begin() as session:
        session.execute(text(f"CREATE SCHEMA {schema}"))
    try:
        own = make_url(url).update_query_dict({"options": f"-csearch_path={schema} -ctimezone=Asia/Kolkata"})
        yield own.render_as_string(hide_password=False)
    finally:
        with server.begin() as session:
            session.execute(text(f"DROP SCHEMA {schema} CASCADE"))
        server.close()


@pytest.fixture(params=[sqlite, postgresql])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with request.param(tmp_path) as url:
        database = Database(url)
        Yard.metadata.create_all(database.engine)
        Base.metadata.create_all(database.engine, tables=[Revision.__table__])
        yield database
        database.close()


def broken(db: Database, change: Callable[[Session], object]) -> None:
    with db.begin() as session:
        change(session)
        session.flush()
        raise RuntimeError("in the middle")


def test_a_transaction_commits_whole_or_not_at_all(db: Database):
    with db.begin() as session:
        session.add(Task(state="queued"))
    with pytest.raises(RuntimeError):
        broken(db, lambda session: session.add(Task(state="queued")))
    with db.read() as session:
        assert session.query(Task).count() == 1


def test_what_is_changed_in_a_read_is_thrown_away(db: Database):
    with db.read() as session:
        session.add(Task(state="queued"))
        session.flush()
    with db.read() as session:
        assert session.query(Task).count() == 0


def test_a_read_is_one_consistent_picture(db: Database):
    with db.read() as reader:
        assert reader.query(Task).count() == 0
        with db.begin() as session:
            session.add(Task(state="queued"))
        assert reader.query(Task).count() == 0


def test_readers_do_not_wait_for_a_writer(db: Database):
    with db.begin() as session:
        session.add(Task(state="queued"))
        session.flush()
        with db.read() as reader:
            assert reader.query(Task).count() == 0


def test_moments_come_back_aware_and_in_utc(db: Database):
    moment = datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=5)))
    with db.begin() as session:
        session.add(Task(id=1, state="x", at=moment))
    with db.read() as session:
        kept = session.get_one(Task, 1).at
    assert kept == moment
    assert kept.tzinfo == UTC
    assert kept.hour == 7
    assert now().tzinfo == UTC


def test_claim_takes_the_first_that_fits_and_sets_values(db: Database):
    with db.begin() as session:
        session.add_all([Task(id=1, state="done"), Task(id=2, state="queued", rank=5), Task(id=3, state="queued", rank=1)])
    with db.begin() as session:
        stale = session.get_one(Task, 3)
        taken = claim(session, Task, Task.state == "queued", order_by=[Task.rank], values={"state": "taken", "holder": "me"})
        assert taken is stale
        assert (taken.id, taken.state, taken.holder) == (3, "taken", "me")
    with db.begin() as session:
        assert claim(session, Task, Task.state == "queued", values={"state": "taken"}).id == 2
        assert claim(session, Task, Task.state == "queued", values={"state": "taken"}) is None


def test_claims_are_exactly_once_between_threads(db: Database):
    with db.begin() as session:
        session.add_all([Task(state="queued") for _ in range(100)])
    taken: Counter[int] = Counter()
    lock = threading.Lock()

    def work(name: str) -> None:
        while True:
            with db.begin() as session:
                task = claim(
                    session, Task, Task.state == "queued", order_by=[Task.id], values={"state": "taken", "holder": name}
                )
                if task is None:
                    return
                with lock:
                    taken[task.id] += 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, "abcd"))
    assert len(taken) == 100
    assert set(taken.values()) == {1}


def test_insert_new_leaves_out_what_is_there(db: Database):
    with db.begin() as session:
        assert insert_new(session, Line, [{"said": "a"}, {"said": "b"}, {"said": "a"}]) == 2
        assert insert_new(session, Line, [{"said": "b"}, {"said": "c"}]) == 1
        assert [line.said for line in session.query(Line).order_by(Line.id)] == ["a", "b", "c"]


def test_the_revision_grows_with_every_bump_and_rolls_back_with_its_transaction(db: Database):
    with db.read() as session:
        assert revision(session) == 0
    for expected in (1, 2):
        with db.begin() as session:
            bump(session)
            assert revision(session) == expected
    with pytest.raises(RuntimeError):
        broken(db, bump)
    with db.read() as session:
        assert revision(session) == 2


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE lines SET said = 'b'",
        "DELETE FROM lines",
        "DELETE FROM lines WHERE said = 'a'",
        "INSERT INTO lines VALUES (1, 'b') ON CONFLICT (id) DO UPDATE SET said = 'b'",
    ],
)
def test_an_append_only_table_refuses_changes(db: Database, change: str):
    with db.begin() as session:
        session.add(Line(id=1, said="a"))
    with pytest.raises(DBAPIError, match="lines is append-only"), db.begin() as session:
        session.execute(text(change))
    with db.read() as session:
        assert [line.said for line in session.query(Line)] == ["a"]


def test_guards_are_put_back(db: Database):
    with db.begin() as session:
        session.add(Line(id=1, said="a"))
        for name, on in GUARDS[session.get_bind().dialect.name]:
            session.execute(text(f"DROP TRIGGER {name}{on}"))
        guard(session.connection(), Yard.metadata)
        guard(session.connection(), Yard.metadata)
    with pytest.raises(DBAPIError, match="append-only"), db.begin() as session:
        session.execute(text("DELETE FROM lines"))


def test_what_is_joined_commits_and_rolls_back_with_each_write(db: Database):
    def mark(session) -> None:
        session.add(Task(state="mark"))

    with joined(mark):
        with db.begin() as session:
            session.add(Task(state="work"))
        with pytest.raises(RuntimeError):
            broken(db, lambda session: session.add(Task(state="work")))
        with db.read() as session:
            assert sorted(task.state for task in session.query(Task)) == ["mark", "work"]
    with db.begin() as session:
        session.add(Task(state="work"))
    with db.read() as session:
        assert session.query(Task).filter_by(state="mark").count() == 1


def test_what_is_joined_can_undo_the_write(db: Database):
    def refuse(session) -> None:
        raise Invalid("too late")

    with joined(refuse), pytest.raises(Invalid), db.begin() as session:
        session.add(Task(state="work"))
    with db.read() as session:
        assert session.query(Task).count() == 0
