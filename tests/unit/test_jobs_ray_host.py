"""The actor on a node, without its processes: who holds it, and what it ends when nobody does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import Crashed, Invalid, ModelyardError
from modelyard.jobs.ray import host as module
from modelyard.jobs.ray.gang import ended
from modelyard.jobs.ray.host import Host
from modelyard.jobs.types import Event, Gang, ProcessStatus

SAID = {"node": "n", "address": "127.0.0.1", "sandbox": "off", "job_memory": 1 << 30, "readonly": []}


class Part:
    """A gang that ends when it is told to, at the next look."""

    def __init__(self) -> None:
        self.kills, self.events = 0, list[Event]()

    def poll(self) -> Sequence[Event]:
        events, self.events = self.events, []
        return events

    def kill(self) -> None:
        self.kills += 1
        self.fail(Crashed("The gang was ended."))

    def fail(self, error: ModelyardError) -> None:
        self.events.append(ended(error))


class Executor:
    def __init__(self, *_: Any, **__: Any) -> None:
        self.parts: dict[str, Part] = {}
        self.ran = dict[str, ProcessStatus]()

    def start_gang(self, gang: Gang) -> Part:
        part = self.parts[gang.token] = Part()
        return part

    def replicas(self) -> Mapping[str, ProcessStatus]:
        return self.ran

    def wake(self) -> None:
        return None


class Scene:
    """A host whose loop runs when the test says so, at the time it says."""

    def __init__(self, folder: Path) -> None:
        self.now, self.work = 100.0, folder
        self.host: Any = Host(json.dumps(SAID).encode())

    def ask(self, holder: str, **message: Any) -> Any:
        return json.loads(self.host.ask(json.dumps({"gateway": "", **message, "holder": holder}).encode()))["value"]

    def start(self, token: str) -> Part:
        gang = Gang(token, "job", "a:b", "a:C", {}, {}, 1, self.work, nodes=(("n", 1),), here="n")
        self.ask("one", do="start", token=token, gang=gang.to_wire())
        part: Part = self.host._executor.parts[token]
        return part


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(module.telemetry, "configure", lambda *_: None)
    monkeypatch.setattr(module, "_folder", lambda: tmp_path)
    monkeypatch.setattr(module, "_be_spared", lambda: None)
    monkeypatch.setattr(module, "_supervise", lambda _: None)
    monkeypatch.setattr(module, "LocalExecutor", Executor)
    monkeypatch.setattr(Host, "_run", lambda _: None)
    scene = Scene(tmp_path)
    monkeypatch.setattr(module.time, "monotonic", lambda: scene.now)
    scene.ask("one", do="take")
    return scene


def test_what_went_wrong_while_nobody_listened_is_told_to_the_next_but_not_what_ended_for_want_of_a_listener(
    scene: Scene,
) -> None:
    wrong, well = scene.start("wrong"), scene.start("well")
    wrong.fail(Invalid("boom"))
    scene.host._pass(True)
    scene.now += module._LEASE + 1
    scene.host._pass(True)
    scene.host._pass(True)
    assert (wrong.kills, well.kills) == (0, 1)
    assert [json.loads(line)["token"] for line in scene.host.hear("one", 0, 0.0).splitlines()] == ["wrong", "well"]
    taken = scene.ask("two", do="take")
    assert {token: error["message"] for token, error in taken["wrong"].items()} == {"wrong": "boom"}
    assert scene.host.hear("one", 0, 0.0) == b"gone"


def test_gangs_that_nobody_listens_to_end_though_nothing_more_can_be_said(scene: Scene) -> None:
    part = scene.start("t")
    scene.host._pass(False)
    assert part.kills == 0
    scene.now += module._LEASE + 1
    scene.host._pass(False)
    scene.host._pass(False)
    assert part.kills == 1


def test_a_node_that_nobody_needs_for_long_is_given_up_but_not_while_something_runs_there(scene: Scene) -> None:
    assert not scene.host._given_up()
    scene.start("t")
    scene.now += module._GIVEN_UP + 1
    assert not scene.host._given_up()
    scene.host._pass(True)
    assert scene.host._given_up()
    scene.host._executor.ran["r"] = ProcessStatus("r", 1, None)
    assert not scene.host._given_up()
    scene.host._executor.ran["r"] = ProcessStatus("r", 1, 0)
    assert scene.host._given_up()
    scene.ask("two", do="take")
    assert not scene.host._given_up()
