"""One deployment's trouble stays its own: what it tells, and how long its artefact takes to come, stops no other."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from test_serving_service import deploy

from modelyard.db import Base, Database, now
from modelyard.errors import Damaged
from modelyard.metrics import UNEXPECTED
from modelyard.serving.controller import Controller
from modelyard.serving.tables import DeploymentRow, MeasureRow, ReleaseRow, ReplicaRow
from modelyard.serving.types import DeploymentState, Health, ReplicaState
from modelyard.settings import Settings
from modelyard.storage import Artefacts
from modelyard.tenancy import service as tenancy
from modelyard.testing import InlineExecutor, MemoryStore


class Slow(Artefacts):
    """`hash2` comes when the test says so, `hash3` never."""

    def __init__(self, folder: Path) -> None:
        super().__init__(MemoryStore(), folder)
        self.go = threading.Event()

    def local(self, project: str, digest: str) -> Path:
        if digest == "hash2":
            self.go.wait(20)
        if digest == "hash3":
            raise Damaged("one byte was flipped")
        return Path("/artefact")


class Scene:
    """Deployments 'a', 'b' and 'c' of the versions 1 to 3, and a controller that is told to tick."""

    def __init__(self, folder: Path) -> None:
        settings = Settings(data=folder)
        self.db = Database(f"sqlite:///{folder / 'yard.db'}")
        Base.metadata.create_all(self.db.engine)
        with self.db.begin() as session:
            tenancy.create_project(session, "team")
            for number in (1, 2, 3):
                session.add(MeasureRow(artefact=f"hash{number}", engine="onnx", node="local", memory=1 << 20, rows=0))
        self.artefacts, self.executor = Slow(folder / "cache"), InlineExecutor()
        self.said: dict[str, Health] = {}
        self.controller = Controller(self.db, self.artefacts, self.executor, settings, self._probe)

    def _probe(self, address: str) -> Health | None:
        return self.said.get(Path(address).parent.name)

    def deploy(self, *numbers: int) -> None:
        for number in numbers:
            deploy(self.db, number, name="abc"[number - 1])

    def tick(self, until: Any) -> None:
        deadline = time.monotonic() + 20
        while not until():
            assert time.monotonic() < deadline
            self.controller.tick()
            time.sleep(0.01)

    def replicas(self) -> dict[str, ReplicaRow]:
        """By deployment."""
        with self.db.read() as session:
            names = {row.id: row.name for row in session.query(DeploymentRow)}
            return {names[row.deployment]: row for row in session.query(ReplicaRow)}

    def release(self, name: str) -> ReleaseRow:
        with self.db.read() as session:
            row = session.query(DeploymentRow).filter_by(name=name).one()
            return session.get_one(ReleaseRow, (row.id, row.stable))

    def runs(self, name: str) -> bool:
        return name in self.replicas() and self.replicas()[name].token in self.executor.replicas()


@pytest.fixture
def scene(tmp_path: Path) -> Any:
    made = Scene(tmp_path)
    yield made
    made.artefacts.go.set()
    made.db.close()


def test_what_cannot_be_written_down_of_one_deployment_stops_no_other(scene: Scene) -> None:
    scene.deploy(1)
    scene.tick(lambda: scene.runs("a"))
    with scene.db.begin() as session:
        session.add(MeasureRow(artefact="hash4", engine="onnx", node="local", memory=1 << 20, rows=0))
    deploy(scene.db, 4, name="d")
    scene.tick(lambda: scene.runs("d"))
    token, other = scene.replicas()["a"].token, scene.replicas()["d"].token
    before = UNEXPECTED.labels("controller")._value.get()
    scene.said[token] = Health(ReplicaState.ready, {"inputs": b"no JSON"})  # as `probe` would never tell it
    scene.said[other] = Health(ReplicaState.ready, {})
    scene.tick(lambda: scene.replicas()["d"].state == ReplicaState.ready)
    scene.tick(lambda: scene.release("a").error is not None)
    assert "goes on with the others" in str(scene.release("a").error)
    assert UNEXPECTED.labels("controller")._value.get() > before
    scene.said[token] = Health(ReplicaState.ready, {})
    scene.tick(lambda: scene.replicas()["a"].state == ReplicaState.ready)
    scene.tick(lambda: scene.release("a").error is None)


def test_an_artefact_on_its_way_keeps_no_tick_waiting(scene: Scene) -> None:
    scene.deploy(2, 1)
    began = time.monotonic()
    scene.tick(lambda: scene.runs("a"))
    assert time.monotonic() - began < 10
    waiting = scene.replicas()["b"]
    with scene.db.begin() as session:
        session.get_one(ReplicaRow, waiting.token).started = now() - timedelta(hours=1)
    for _ in range(3):
        scene.controller.tick()
    assert scene.replicas()["b"].token == waiting.token  # it is neither lost, nor late, nor started twice
    assert not scene.runs("b")
    scene.artefacts.go.set()
    scene.tick(lambda: waiting.token in scene.executor.replicas())


def test_who_is_undeployed_meanwhile_is_not_started(scene: Scene) -> None:
    scene.deploy(2)
    scene.tick(lambda: "b" in scene.replicas())
    token = scene.replicas()["b"].token
    with scene.db.begin() as session:
        session.get_one(ReplicaRow, token).state = ReplicaState.draining
    scene.controller.tick()
    scene.artefacts.go.set()
    scene.tick(lambda: token not in scene.controller._starts)
    assert token not in scene.executor.replicas()


def test_an_artefact_that_is_not_to_be_had_fails_its_release(scene: Scene) -> None:
    scene.deploy(3)
    scene.tick(lambda: scene.release("c").state == DeploymentState.failed)
    assert scene.release("c").error == "one byte was flipped"
    assert not scene.executor.replicas()
