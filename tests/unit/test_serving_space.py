"""Room for one more replica, over a database: who is put to sleep for it, and what is said where nobody may be."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from test_serving_service import deploy, replica

from modelyard.db import Base, Database, now
from modelyard.jobs.types import Amount, Node
from modelyard.serving.space import Space, granted
from modelyard.serving.tables import DeploymentRow, MeasureRow, ReleaseRow, ReplicaRow
from modelyard.serving.types import DeploymentState, Health, ReplicaState
from modelyard.settings import Settings
from modelyard.storage import Artefacts
from modelyard.tenancy import service as tenancy
from modelyard.testing import MemoryStore

MIB = 1 << 20
MACHINES = [Node("local", Amount(4, 0, 64 << 30))]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """Deployments 'a', 'b' and 'c', called in this order, each with a ready replica of 100 MiB; 'c' may not sleep."""
    database = Database(f"sqlite:///{tmp_path / 'yard.db'}")
    Base.metadata.create_all(database.engine)
    with database.begin() as session:
        tenancy.create_project(session, "team")
        session.add(MeasureRow(artefact="hash1", engine="onnx", node="local", memory=100 * MIB, rows=0, us_a_row=0.0))
    for number, name in enumerate("abc", 1):
        deploy(database, name=name, min_replicas=0 if name != "c" else 1)
        replica(database, name, 1, deployment=number)
        with database.begin() as session:
            session.query(DeploymentRow).filter_by(name=name).update({"used": now() + timedelta(seconds=number)})
            session.query(ReplicaRow).filter_by(token=name).update({"changed": now() - timedelta(minutes=1)})
    yield database
    database.close()


def space(db: Database, tmp_path: Path, **settings: int) -> Space:
    return Space(db, Artefacts(MemoryStore(), tmp_path / "cache"), Settings(data=tmp_path, **settings), lambda: MACHINES)


def make(db: Database, made: Space, name: str = "d") -> bool:
    deploy(db, name=name)
    with db.read() as session:
        row = session.query(DeploymentRow).filter_by(name=name).one()
        release = session.get_one(ReleaseRow, (row.id, row.stable))
    return made.make(row, release)


def states(db: Database) -> dict[str, tuple[str, int]]:
    with db.read() as session:
        releases = {row.deployment: row for row in session.query(ReleaseRow)}
        return {row.name: (releases[row.id].state, releases[row.id].replicas) for row in session.query(DeploymentRow)}


def test_where_there_is_room_nobody_sleeps(db: Database, tmp_path: Path) -> None:
    assert make(db, space(db, tmp_path, serving_memory=400 * MIB))
    assert states(db)["a"] == ("pending", 1)


@pytest.mark.parametrize(("limits", "room"), [({"serving_memory": 399 * MIB}, True), ({"serving_replicas": 3}, False)])
def test_the_least_recently_called_is_put_to_sleep(db: Database, tmp_path: Path, limits: dict[str, int], room: bool) -> None:
    made = space(db, tmp_path, **limits)
    assert make(db, made) == room
    found = states(db)
    assert found["a"] == (DeploymentState.asleep, 0)
    assert found["b"] == ("pending", 1)
    with db.read() as session:
        assert session.get_one(ReplicaRow, "a").state == ReplicaState.draining
        waiting = session.query(ReleaseRow).filter_by(deployment=4).one()
        assert (waiting.error, waiting.retry_at) == (None, None)


def test_no_more_replicas_run_than_may_those_included_that_are_leaving(db: Database, tmp_path: Path) -> None:
    made = space(db, tmp_path, serving_replicas=3)
    assert not make(db, made)
    with db.read() as session:
        row = session.query(DeploymentRow).filter_by(name="d").one()
        release = session.get_one(ReleaseRow, (row.id, row.stable))
    assert not made.make(row, release)
    assert states(db)["b"] == ("pending", 1), "one that gives way is enough"
    with db.begin() as session:
        session.delete(session.get_one(ReplicaRow, "a"))
    assert made.make(row, release)


@pytest.mark.parametrize(("state", "seconds"), [(ReplicaState.ready, 0.0), (ReplicaState.starting, 60.0)])
def test_who_has_just_been_woken_stays(db: Database, tmp_path: Path, state: ReplicaState, seconds: float) -> None:
    with db.begin() as session:
        since = {"state": state, "changed": now() - timedelta(seconds=seconds)}
        session.query(ReplicaRow).filter_by(token="a").update(since)
    assert not make(db, space(db, tmp_path, serving_replicas=3))
    assert states(db)["a"] == ("pending", 1)
    assert states(db)["b"] == (DeploymentState.asleep, 0)


def test_who_may_not_sleep_stays_and_the_release_says_why(db: Database, tmp_path: Path) -> None:
    assert not make(db, space(db, tmp_path, serving_memory=199 * MIB))
    assert [state for state, _ in states(db).values()] == ["pending"] * 4
    with db.read() as session:
        row = session.query(ReleaseRow).filter_by(deployment=4).one()
        assert row.error is not None
        assert "No room for a replica of about 100 MiB: 300 MiB in 3 replicas" in row.error
        assert row.retry_at is not None


def test_what_was_measured_is_kept_for_the_next(db: Database, tmp_path: Path) -> None:
    made = space(db, tmp_path)
    metadata = {"batch": {"rows": 32, "us_a_row": 5.0}}
    made.measured("a", Health(ReplicaState.ready, metadata, None, 0, 0, 120 * MIB))
    made.measured("a", Health(ReplicaState.ready, {}, None, 0, 0, 110 * MIB))
    made.measured("nobody", Health(ReplicaState.ready, {}, None))
    with db.read() as session:
        kept = session.query(MeasureRow).one()
        release = session.query(ReleaseRow).filter_by(deployment=1).one()
    assert (kept.memory, kept.rows, kept.us_a_row) == (120 * MIB, 32, 5.0)
    release.target_us = 5000
    assert made.settings(release) == {"target_us": 5000, "rows": 32, "ns_a_row": 5000}


def test_nobody_takes_more_than_a_machine_has(db: Database, tmp_path: Path) -> None:
    space(db, tmp_path).measured("a", Health(ReplicaState.ready, {}, None, 0, 0, 1 << 50))
    with db.read() as session:
        assert session.query(MeasureRow).one().memory == 64 << 30


def test_what_a_replica_may_take_follows_from_what_was_measured(db: Database, tmp_path: Path) -> None:
    with db.read() as session:
        release = session.query(ReleaseRow).filter_by(deployment=1).one()
    assert space(db, tmp_path).bound(release) == 200 * MIB + (4 << 30)
    assert space(db, tmp_path, serving_memory=1 << 30).bound(release) == 1 << 30
    release.artefact = "another"
    assert space(db, tmp_path).bound(release) == 48 << 30


@pytest.mark.parametrize(
    ("asked", "taken", "cores", "given"),
    [
        (1, 0, [4], 1),
        (4, 0, [4], 4),
        (8, 0, [4], 4),
        (4, 1, [4], 3),
        (4, 3, [4], 1),
        (4, 4, [4], 1),
        (4, 9, [4], 1),
        (4, 0, [8, 8], 1),  # nobody knows which it comes to
        (4, 0, [], 1),
    ],
)
def test_threads_are_given_while_there_are_cores_and_one_always(asked: int, taken: int, cores: list[int], given: int) -> None:
    assert granted(asked, taken, cores) == given


def test_threads_of_all_replicas_that_stay_count(db: Database, tmp_path: Path) -> None:
    made = space(db, tmp_path)
    with db.read() as session:
        row = session.get_one(DeploymentRow, 1)
        release = session.get_one(ReleaseRow, (1, 1))
    release.threads = 8
    assert made.threads(row, release) == 1  # three replicas of one thread each, of four cores
    with db.begin() as session:
        session.query(ReplicaRow).filter_by(deployment=3).update({"threads": 2, "state": ReplicaState.draining})
    assert made.threads(row, release) == 2
    row.stable = release.generation = 2  # it takes over from the replica of generation 1
    assert made.threads(row, release) == 3
    row.trial = 1
    assert made.threads(row, release) == 2
    row.stable, row.trial = 1, 2  # on trial it stands beside that
    assert made.threads(row, release) == 2
