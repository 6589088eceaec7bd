"""Transactions, claims, guards and the revision, on a real SQLite file; PostgreSQL by the SQL it would be sent."""

from __future__ import annotations

import stat
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Mapped, mapped_column

from modelyard.db import (
    Base,
    Database,
    Revision,
    Session,
    UtcDateTime,
    append_only,
    bump,
    claim,
    claim_statement,
    guard,
    insert_new,
    joined,
    now,
    revision,
)
from modelyard.errors import Invalid


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


@pytest.fixture
def db(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'new' / 'yard.db'}")
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


def test_begin_takes_the_write_lock_at_once(db: Database):
    with db.begin():
        other = Database(db.url)
        with other.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout=1")
            connection.exec_driver_sql("ROLLBACK")
            with pytest.raises(OperationalError, match="locked"):
                connection.exec_driver_sql("BEGIN IMMEDIATE")
        other.close()


def test_writers_wait_for_each_other_and_lose_nothing(db: Database):
    with db.begin() as session:
        session.add(Task(id=1, state="counting"))

    def increment(_: int) -> None:
        with db.begin() as session:
            task = session.get_one(Task, 1)
            task.rank += 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(increment, range(200)))
    with db.read() as session:
        assert session.get_one(Task, 1).rank == 200


def test_readers_do_not_wait_for_a_writer(db: Database):
    with db.begin() as session:
        session.add(Task(state="queued"))
        session.flush()
        with db.read() as reader:
            assert reader.query(Task).count() == 0


def test_settings_of_sqlite(db: Database):
    with db.read() as session:
        pragmas = {
            name: session.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "foreign_keys", "recursive_triggers")
        }
    assert pragmas == {"journal_mode": "wal", "foreign_keys": 1, "recursive_triggers": 1}


def test_nobody_else_may_read_the_file(db: Database):
    with db.begin() as session:
        session.add(Task(state="queued"))
        files = list(Path(db.engine.url.database).parent.iterdir())
        assert len(files) == 3
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


@pytest.mark.parametrize("url", ["", "nonsense", "mongodb://h/d", "oracle+nope://h/d"])
def test_a_wrong_url_is_a_clear_error(url: str):
    with pytest.raises(Invalid, match="expected sqlite:///FILE"):
        Database(url)


def test_a_missing_driver_is_named():
    with pytest.raises(Invalid, match="pymysql"):
        Database("mysql+pymysql://user:hunter2@host/db")


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
    with pytest.raises(ValueError, match="zone"):
        UtcDateTime().process_bind_param(datetime(2026, 1, 31), None)


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


def test_the_claim_statement_of_each_database():
    statement = claim_statement(Task, Task.state == "queued", order_by=[Task.rank.desc()], values={"state": "taken"}).returning(
        Task
    )
    shared = str(statement.compile(dialect=postgresql.dialect()))
    assert shared.startswith("UPDATE tasks SET state=")
    assert "WHERE tasks.id = (SELECT tasks.id" in shared
    assert "ORDER BY tasks.rank DESC, tasks.id" in shared
    assert "FOR UPDATE SKIP LOCKED)" in shared
    assert "RETURNING tasks.id" in shared
    embedded = str(statement.compile(dialect=sqlite.dialect()))
    assert "FOR UPDATE" not in embedded
    assert "LIMIT" in embedded


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
        "INSERT OR REPLACE INTO lines VALUES (1, 'b')",
    ],
)
def test_an_append_only_table_refuses_changes(db: Database, change: str):
    with db.begin() as session:
        session.add(Line(id=1, said="a"))
    with pytest.raises(IntegrityError, match="lines is append-only"), db.begin() as session:
        session.execute(text(change))
    with db.read() as session:
        assert [line.said for line in session.query(Line)] == ["a"]


def test_guards_are_put_back(db: Database):
    with db.begin() as session:
        session.add(Line(id=1, said="a"))
        session.execute(text("DROP TRIGGER lines_no_delete"))
        guard(session.connection(), Yard.metadata)
        guard(session.connection(), Yard.metadata)
    with pytest.raises(IntegrityError, match="append-only"), db.begin() as session:
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


def test_a_memory_database_serves_tests_of_one_thread():
    database = Database("sqlite://")
    Yard.metadata.create_all(database.engine)
    with database.begin() as session:
        session.add(Task(state="queued"))
    with database.read() as session:
        assert session.query(Task).count() == 1
    database.close()
