"""Migrations lead from an empty database to exactly the tables in the code, at once, and never back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

from modelyard import migrations
from modelyard.db import Database, now
from modelyard.errors import Conflict
from modelyard.serving import service
from modelyard.serving.directory import Directory
from modelyard.tenancy import ledger


@pytest.fixture
def db(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / 'yard.db'}")
    yield database
    database.close()


def set_revision(db: Database, revision: str) -> None:
    with db.begin() as session:
        session.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def test_the_migrated_schema_is_the_one_in_the_code(db: Database):
    migrations.migrate(db)
    with db.read() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, migrations.metadata()) == [], "run `make migration MESSAGE=…`"
        assert {"projects", "keys", "usage", "audit", "jobs", "deployments"} <= set(
            inspect(session.connection()).get_table_names()
        )


def test_a_fresh_database_is_made_fast(db: Database):
    migrations.metadata()
    start = time.perf_counter()
    migrations.migrate(db)
    assert time.perf_counter() - start < 0.5


def test_migrating_again_changes_nothing(db: Database):
    assert migrations.migrate(db) == migrations.migrate(db) == migrations.head()
    migrations.check(db)


def test_a_migrated_ledger_is_append_only(db: Database):
    migrations.migrate(db)
    with db.begin() as session:
        ledger.audit(session, "p", "k", "did", "x")
    for change in ("UPDATE audit SET project = 'q'", "DELETE FROM audit"):
        with pytest.raises(IntegrityError, match="append-only"), db.begin() as session:
            session.execute(text(change))


def test_a_newer_schema_is_refused_by_name(db: Database):
    migrations.migrate(db)
    set_revision(db, "9999")
    for step in (migrations.migrate, migrations.check):
        with pytest.raises(Conflict, match=f"9999.*newer than {migrations.head()}"):
            step(db)


def test_an_empty_database_is_not_ready(db: Database):
    with pytest.raises(Conflict, match=f"revision none.*needs {migrations.head()}.*modelyard migrate"):
        migrations.check(db)


def test_someone_elses_database_is_left_alone(db: Database):
    with db.begin() as session:
        session.execute(text("CREATE TABLE theirs (x INTEGER)"))
    with pytest.raises(Conflict, match="not Modelyard's"):
        migrations.migrate(db)
    with db.read() as session:
        assert inspect(session.connection()).get_table_names() == ["theirs"]


def test_a_migration_that_fails_leaves_nothing_behind(db: Database, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(migrations, "guard", broken)
    with pytest.raises(RuntimeError):
        migrations.migrate(db)
    with db.read() as session:
        assert inspect(session.connection()).get_table_names() == []


def test_every_room_with_tables_is_known():
    source = Path(migrations.__file__).parents[1]
    declared = {
        path.relative_to(source).as_posix() for path in source.rglob("*.py") if "    __tablename__ = " in path.read_text()
    }
    assert declared == {"db.py", *(f"{room}/tables.py" for room in migrations.ROOMS)}


def test_where_nothing_differs_no_step_is_written():
    before = sorted(Path(migrations.__file__).parent.rglob("*.py"))
    assert migrations.generate("nothing") is None
    assert sorted(Path(migrations.__file__).parent.rglob("*.py")) == before


def test_a_deployment_of_before_there_were_releases_serves_on(db: Database):
    with db.begin() as session:
        command.upgrade(migrations._config(session.connection()), "0002")
    columns = "project, name, model, version, artefact, engine, task, replicas, generation, state, failures, signature"
    values = "'p', 'digits', 'cnn', 3, 'hash', 'onnx', 'image-classification', 2, 7, 'ready', 0, '{\"inputs\": []}'"
    with db.begin() as session:
        session.execute(
            text(f"INSERT INTO deployments ({columns}, created, updated) VALUES ({values}, :at, :at)"), {"at": str(now())}
        )
    migrations.migrate(db)
    with db.read() as session:
        [shown] = service.deployments(session, "p")
        [route] = Directory().read(session)
    assert (shown.model, shown.state, shown.engine, shown.task) == ("cnn@3", "ready", "onnx", "image-classification")
    assert (shown.options.min_replicas, shown.options.max_replicas, shown.trial, shown.previous) == (2, 2, None, None)
    assert (route.version, route.metadata) == ("3", {"inputs": []})
