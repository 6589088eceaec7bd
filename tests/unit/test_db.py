"""What is SQLite's alone, its file and its one writer, and the SQL that each database is sent."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
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
    UtcDateTime,
    append_only,
    claim_statement,
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


def test_a_memory_database_serves_tests_of_one_thread():
    database = Database("sqlite://")
    Yard.metadata.create_all(database.engine)
    with database.begin() as session:
        session.add(Task(state="queued"))
    with database.read() as session:
        assert session.query(Task).count() == 1
    database.close()


def test_a_moment_without_its_zone_is_refused():
    with pytest.raises(ValueError, match="zone"):
        UtcDateTime().process_bind_param(datetime(2026, 1, 31), None)


def test_a_replaced_row_of_an_append_only_table_is_a_change(db: Database):
    """SQLite's INSERT OR REPLACE deletes without firing triggers, unless they are recursive."""
    with db.begin() as session:
        session.add(Line(id=1, said="a"))
    with pytest.raises(IntegrityError, match="lines is append-only"), db.begin() as session:
        session.execute(text("INSERT OR REPLACE INTO lines VALUES (1, 'b')"))
