"""Desired state over a database: what a request writes, what it leaves alone, and what a gateway is told meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import event, select

from modelyard.catalogue.types import Version
from modelyard.db import Base, Database, now, revision
from modelyard.engines.base import ModelCard
from modelyard.errors import Invalid, NotFound
from modelyard.serving import service
from modelyard.serving.directory import Directory
from modelyard.serving.tables import DeploymentRow, ReleaseRow, ReplicaRow
from modelyard.serving.types import DeploymentRequest, DeploymentState, ReplicaState
from modelyard.tenancy import ledger
from modelyard.tenancy import service as tenancy
from modelyard.tenancy.types import Principal, Scope

CALLER = Principal("team", "key1", Scope.write)
TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
CARD = msgspec.convert(
    {
        "task": "tabular-regression",
        "engines": ["onnx", "torch"],
        "files": {"onnx": "m.onnx"},
        "inputs": [TENSOR],
        "outputs": [TENSOR],
    },
    type=ModelCard,
)


def version(number: int, kind: str = "model") -> Version:
    return Version(number, "team", kind, "m", number, f"hash{number}", None, {}, None, now())  # type: ignore[arg-type]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'yard.db'}")
    Base.metadata.create_all(database.engine)
    with database.begin() as session:
        for project in ("team", "other"):
            tenancy.create_project(session, project)
    yield database
    database.close()


def deploy(db: Database, number: int = 1, name: str = "d", **asked: object) -> service.Deployment:
    with db.begin() as session:
        request = DeploymentRequest.model_validate({"name": name, "model": f"m@{number}", **asked})
        return service.deploy(session, CALLER, request, version(number), CARD)


def generation(db: Database) -> int:
    with db.read() as session:
        return int(session.query(DeploymentRow.generation).scalar())


def settle(db: Database, generation: int) -> None:
    """All its replicas are ready, as the controller would write."""
    with db.begin() as session:
        ready = {"settled": True, "state": DeploymentState.ready, "signature": {"inputs": [generation]}}
        session.query(ReleaseRow).filter_by(generation=generation).update(ready)


def replica(db: Database, token: str, generation: int, state: ReplicaState = ReplicaState.ready, deployment: int = 1) -> None:
    with db.begin() as session:
        session.add(
            ReplicaRow(
                token=token,
                project="team",
                deployment=deployment,
                generation=generation,
                model="m",
                version=generation,
                state=state,
                address=f"/run/{token}",
                started=now(),
                changed=now(),
                signature={"inputs": [token]},
            )
        )


def test_the_same_request_twice_changes_nothing(db: Database) -> None:
    shown = deploy(db, replicas=2)
    assert (shown.state, shown.model, shown.engine, shown.replicas) == ("pending", "m@1", "onnx", [])
    with db.read() as session:
        before = revision(session)
    assert deploy(db, replicas=2) == shown
    with db.read() as session:
        assert revision(session) == before
        assert [row["action"] for row in ledger.audit_log(session, "team") if row["subject"] == "d"] == ["deployment.deploy"]
    assert generation(db) == 1


@pytest.mark.parametrize("asked", [{"number": 2}, {"latency_target": 0.01}, {"engine": "torch"}])
def test_what_is_other_is_a_new_generation(db: Database, asked: dict[str, int]) -> None:
    deploy(db)
    assert deploy(db, **asked).state == "pending"  # type: ignore[arg-type]
    assert generation(db) == 2


def test_more_of_the_same_restarts_nothing(db: Database) -> None:
    deploy(db)
    shown = deploy(db, replicas=3)
    assert (shown.options.min_replicas, shown.options.max_replicas) == (3, 3)
    assert generation(db) == 1
    with db.read() as session:
        assert session.query(ReleaseRow.replicas).scalar() == 3
    assert deploy(db, min_replicas=0, max_replicas=2, idle=5, cache=True).options.idle == 5
    assert generation(db) == 1


def test_what_failed_is_tried_again_by_the_same_request(db: Database) -> None:
    deploy(db)
    with db.begin() as session:
        session.query(ReleaseRow).update({"state": "failed", "error": "no such layer", "failures": 5, "retry_at": now()})
    shown = deploy(db)
    assert (shown.state, shown.error) == ("pending", None)
    assert generation(db) == 2


def test_what_is_in_trouble_is_tried_again_as_the_release_that_it_is(db: Database) -> None:
    deploy(db, replicas=3)
    trouble = {"error": "No room", "failures": 2, "retry_at": now()}
    for asked, wanted in ((3, 3), (2, 2)):
        with db.begin() as session:
            session.query(ReleaseRow).update(trouble)
        assert deploy(db, replicas=asked).error is None
        with db.read() as session:
            row = session.query(ReleaseRow).one()
        assert (row.generation, row.replicas, row.failures, row.retry_at) == (1, wanted, 0, None)


def test_an_engine_that_cannot_run_it_is_refused() -> None:
    assert service.choose_engine(CARD, "torch") == "torch"
    with pytest.raises(Invalid, match="runs on onnx, torch"):
        service.choose_engine(CARD, "vllm")


def test_until_the_new_version_is_ready_the_old_one_answers(db: Database) -> None:
    deploy(db)
    replica(db, "old", 1)
    settle(db, 1)
    deploy(db, 2)
    replica(db, "new", 2, ReplicaState.starting)
    with db.read() as session:
        [route] = Directory().read(session)
    assert (route.version, route.state, [e.token for e in route.endpoints]) == ("1", DeploymentState.ready, ["old"])
    assert route.metadata == {"inputs": ["old"]}
    with db.begin() as session:
        session.query(ReplicaRow).filter_by(token="new").update({"state": "ready"})
        session.query(ReleaseRow).filter_by(generation=2).update({"settled": True})
        [route] = Directory().read(session)
    assert (route.version, [e.token for e in route.endpoints]) == ("2", ["new"])


def test_without_a_replica_a_route_says_what_is_wanted(db: Database) -> None:
    deploy(db)
    replica(db, "gone", 1, ReplicaState.draining)
    with db.read() as session:
        [route] = Directory().read(session)
    assert (route.version, route.state, route.endpoints) == ("1", DeploymentState.pending, ())


def test_replicas_that_are_leaving_are_not_those_of_the_next_deployment(db: Database) -> None:
    """SQLite gives the number of the last row again once that is gone."""
    deploy(db, name="one")
    replica(db, "leaving", 1)
    with db.begin() as session:
        service.undeploy(session, CALLER, "one")
    assert deploy(db, name="two").replicas == []
    deploy(db, name="three")
    with db.read() as session:
        assert sorted(session.scalars(select(DeploymentRow.id))) == [2, 3]


def test_undeploy_takes_the_replicas_out_of_the_routes_at_once(db: Database) -> None:
    deploy(db)
    replica(db, "r", 1)
    with db.begin() as session:
        service.undeploy(session, CALLER, "d")
        session.flush()
        assert Directory().read(session) == []
        assert session.query(ReplicaRow.state).scalar() == "draining"
        with pytest.raises(NotFound, match="no deployment yet"):
            service.undeploy(session, CALLER, "d")


def test_another_projects_deployments_do_not_exist(db: Database) -> None:
    deploy(db)
    with db.read() as session:
        assert service.deployments(session, "other") == []
        with pytest.raises(NotFound):
            service.get(session, "other", "d")


def test_a_version_that_is_served_is_in_use(db: Database) -> None:
    deploy(db)
    with db.read() as session:
        assert service.in_use(session, version(1)) == "deployment 'd'"
        assert service.in_use(session, version(2)) is None
        assert service.in_use(session, version(1, "dataset")) is None


def test_a_list_asks_the_database_as_often_for_many_as_for_one(db: Database) -> None:
    asked: list[str] = []
    event.listen(db.engine, "before_cursor_execute", lambda *said: asked.append(said[2]))
    counts = []
    for number in range(3):
        deploy(db, name=f"d{number}")
        replica(db, f"r{number}", 1, deployment=number + 1)
        asked.clear()
        with db.read() as session:
            found = service.deployments(session, "team")
        counts.append(len(asked))
    assert [[r.token for r in one.replicas] for one in found] == [["r0"], ["r1"], ["r2"]]
    assert len(set(counts)) == 1
