"""The replicas of a node without their processes: where they listen, where their logs are, what is told of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import Invalid, Unavailable
from modelyard.jobs.ray import replicas as module
from modelyard.jobs.ray.replicas import Replicas
from modelyard.jobs.types import ProcessStatus, ReplicaSpec


class Processes:
    def __init__(self) -> None:
        self.specs: dict[str, ReplicaSpec] = {}
        self.exits: dict[str, int] = {}
        self.fails: OSError | None = None

    def start_replica(self, spec: ReplicaSpec) -> None:
        if self.fails:
            raise self.fails
        self.specs[spec.token] = spec
        spec.socket.parent.mkdir(parents=True, exist_ok=True)
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        spec.log.touch()

    def stop_replica(self, token: str, grace: float) -> None:
        self.exits[token] = 0

    def replicas(self) -> Mapping[str, ProcessStatus]:
        exits = {token: self.exits.get(token) for token in self.specs}
        return {t: ProcessStatus(t, 7, code, reason="" if code is None else "left much") for t, code in exits.items()}


class Keeper:
    def __init__(self, host: str, folder: Path, identity: Path) -> None:
        self.host, self.trusted, self.looks = host, "", 0

    def address(self, token: str) -> str:
        return f"tls://{self.host}/{token}"

    def trust(self, certificate: str) -> None:
        self.trusted = certificate

    def look(self) -> None:
        self.looks += 1


@pytest.fixture
def processes() -> Processes:
    return Processes()


@pytest.fixture
def node(processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "Keeper", Keeper)
    (tmp_path / "model").mkdir()
    return Replicas(processes, "n", "10.0.0.2", tmp_path / "run")


def spec(tmp_path: Path, token: str = "r-1") -> dict[str, Any]:
    paths = {
        "folder": tmp_path / "model",
        "socket": tmp_path / "control" / "r.sock",
        "log": tmp_path / "logs" / f"a.b-{token}.log",
    }
    return {"token": token, "engine": "onnx", "group": "a/b", **{name: str(path) for name, path in paths.items()}}


def test_on_controls_machine_a_replica_listens_where_it_was_told_to(node: Any, processes: Processes, tmp_path: Path) -> None:
    placed = node.start(spec(tmp_path), "")
    assert placed == ("r-1", 7, None, "", "a/b", "")
    assert processes.specs["r-1"].socket == tmp_path / "control" / "r.sock"
    assert node._keeper is None


def test_elsewhere_it_listens_on_the_node_and_is_reached_over_its_bridge(
    node: Any, processes: Processes, tmp_path: Path
) -> None:
    assert node.start(spec(tmp_path), "certificate").address == "tls://10.0.0.2/r-1"
    started = processes.specs["r-1"]
    assert (started.socket, started.log) == (
        tmp_path / "run/replicas/r-1/replica.sock",
        tmp_path / "run/logs/a.b-r-1.log",
    )
    (tmp_path / "logs").mkdir()  # which this node sees
    node.start(spec(tmp_path, "r-2"), "certificate")
    assert processes.specs["r-2"].log == tmp_path / "logs/a.b-r-2.log"
    node.trust("newer")
    node.look()
    assert (node._keeper.trusted, node._keeper.looks) == ("newer", 3)


def test_what_ended_is_told_and_its_folder_goes(node: Any, tmp_path: Path) -> None:
    node.start(spec(tmp_path), "certificate")
    node.stop("r-1", 1.0)
    assert [(one.exit, one.group, one.status.reason) for one in node.all()] == [(0, "a/b", "left much")]
    assert not (tmp_path / "run/replicas/r-1").exists()
    assert [one.exit for one in node.all()] == [0]


def test_files_that_a_node_does_not_see_and_a_start_that_fails_are_said(
    node: Any, processes: Processes, tmp_path: Path
) -> None:
    with pytest.raises(Invalid, match=r"n does not see .*gone: on a cluster"):
        node.start(spec(tmp_path) | {"folder": str(tmp_path / "gone")}, "")
    processes.fails = OSError("no room")
    with pytest.raises(Unavailable, match="could not be started on n: no room"):
        node.start(spec(tmp_path), "certificate")


def test_logs_on_a_node_are_few_and_small(node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 2)
    monkeypatch.setattr(module, "_LONGEST", 10)
    node.start(spec(tmp_path, "r-0"), "certificate")
    logs = tmp_path / "run/logs"
    for number in range(1, 5):
        (logs / f"a.b-r-{number}.log").write_bytes(bytes(5 * number))
        os.utime(logs / f"a.b-r-{number}.log", (number, number))
    os.utime(logs / "a.b-r-0.log", (0, 0))
    node.look()
    left = {path.name: path.stat().st_size for path in logs.iterdir()}
    assert left == {"a.b-r-0.log": 0, "a.b-r-3.log": 0, "a.b-r-4.log": 0}
