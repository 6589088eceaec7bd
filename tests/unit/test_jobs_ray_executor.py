"""Gangs on a cluster from their start to their end, over a cluster that is made up here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import Crashed, ModelyardError, Unavailable
from modelyard.jobs.ray import executor as module
from modelyard.jobs.ray.cluster import Machine
from modelyard.jobs.ray.executor import RayExecutor
from modelyard.jobs.ray.gang import RayGang, ended
from modelyard.jobs.ray.placement import Placed
from modelyard.jobs.types import Amount, Event, Gang, ReplicaSpec
from modelyard.settings import Settings

NODES = [Machine(name, f"id-{name}", f"10.0.0.{number}", Amount(4)) for number, name in enumerate("ab", 1)]
GANG = Gang("t", "job", "a:b", "a:C", {}, {}, 2, Path("/work"), nodes=(("a", 1), ("b", 1)))
BEAT = Event("beat", {"cpu_seconds": 1.0})


class Room:
    """What is reserved, and what happens meanwhile."""

    def __init__(self, address: str, namespace: str) -> None:
        self.held = set[str]()
        self.meanwhile: Callable[[], object] = lambda: None

    def machines(self) -> Sequence[Machine]:
        return NODES

    def reserve(self, token: str, parts: Sequence[tuple[Machine, int]], each: Amount, patience: float) -> None:
        self.meanwhile()
        self.held.add(token)

    def release(self, token: str) -> None:
        self.held.discard(token)

    def find(self, machine: Machine) -> None:
        return None

    def start(self, machine: Machine, said: bytes) -> None:
        return None

    def close(self) -> None:
        return None


class Said:
    """A link that keeps what is said; `meanwhile` happens when something is asked."""

    def __init__(
        self, machine: Machine, remote: Any, heard: Callable[[str, Event], None], lost: Callable[[Any], None], gateway: str
    ) -> None:
        self.machine, self.heard, self.lost, self.gateway = machine, heard, lost, gateway
        self.silent = False
        self.placed = dict[str, Placed]()
        self.words = list[str]()
        self.wrong: Mapping[str, ModelyardError] = {}
        self.meanwhile: Callable[[], object] = lambda: None

    def ask(self, **message: Any) -> None:
        self.words.append(message["do"])
        self.meanwhile()

    def tell(self, **message: Any) -> None:
        self.words.append(message["do"])

    def replicas(self) -> Mapping[str, Placed]:
        return self.placed

    def start_replica(self, spec: Mapping[str, Any], gateway: str) -> None:
        self.placed[spec["token"]] = Placed(
            spec["token"], 1, None, f"tls://{self.machine.name}" if gateway else "", spec["group"]
        )

    def listen(self) -> None:
        return None

    def close(self) -> None:
        return None


class Scene:
    def __init__(self, data: Path) -> None:
        data.mkdir()
        self.executor = RayExecutor(Settings(data=data, cluster="10.0.0.1:6379"))
        self.room: Any = self.executor._cluster
        self.links: dict[str, Any] = {machine.name: self.executor._link(machine) for machine in NODES}

    def gang(self) -> RayGang:
        """One that is known and not yet begun."""
        gang = self.executor._gangs["t"] = RayGang(GANG, self.executor._changed, self.executor._idles)
        return gang

    def words(self) -> list[list[str]]:
        return [link.words for link in self.links.values()]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(module, "Cluster", Room)
    monkeypatch.setattr(module, "Link", Said)
    scene = Scene(tmp_path / "yard")
    yield scene
    scene.executor.close()


def test_a_link_is_found_before_it_hears(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[bool]()
    monkeypatch.setattr(Said, "listen", lambda link: seen.append(scene.executor._links[link.machine.id] is link))
    scene.executor._gone(scene.links["a"])
    scene.executor._link(NODES[0])
    assert seen == [True]


def test_a_node_that_was_lost_just_now_is_away(scene: Scene) -> None:
    scene.executor._gone(scene.links["a"])
    assert [(node.name, node.away) for node in scene.executor.nodes()] == [("a", True), ("b", False)]


def test_a_gang_has_its_room_until_it_has_ended(scene: Scene) -> None:
    gang = scene.gang()
    scene.executor._begin(gang)
    assert (scene.words(), scene.room.held) == ([["start"], ["start"]], {"t"})
    for link in scene.links.values():
        link.heard("t", ended(Crashed("boom")))
    assert (gang.ended, scene.room.held, scene.executor._gangs) == (True, set(), {})


def test_a_gang_that_is_lost_while_it_gets_its_room_does_not_start(scene: Scene) -> None:
    gang = scene.gang()
    scene.room.meanwhile = lambda: [scene.executor._gone(link) for link in scene.links.values()]
    scene.executor._begin(gang)
    assert (gang.ended, scene.words(), scene.room.held) == (True, [[], []], set())
    assert [link.words for link in scene.executor._links.values()] == [["kill"], ["kill"]]  # by the way there is now


def test_a_gang_that_is_lost_while_it_starts_is_ended_where_it_started(scene: Scene) -> None:
    gang = scene.gang()
    scene.links["b"].meanwhile = lambda: [scene.executor._gone(link) for link in scene.links.values()]
    scene.executor._begin(gang)
    assert (gang.ended, scene.words(), scene.room.held) == (True, [["start", "kill"], ["start", "kill"]], set())


def test_a_part_whose_gang_has_ended_is_ended_at_every_beat(scene: Scene) -> None:
    def late() -> None:
        raise Unavailable("late")

    gang = scene.gang()
    scene.links["a"].meanwhile = late
    scene.executor._begin(gang)
    assert (gang.ended, scene.words()) == (True, [["start", "kill"], ["kill"]])
    scene.links["a"].heard("t", Event("started", {"pids": [1]}))
    scene.links["a"].heard("t", BEAT)
    scene.links["a"].heard("t", ended(Crashed("The gang was ended.")))
    assert scene.words() == [["start", "kill", "kill", "kill"], ["kill"]]


def test_a_part_that_spoke_nonsense_is_ended(scene: Scene) -> None:
    scene.executor._begin(scene.gang())
    scene.links["a"].heard("t", Event("started", {}))
    scene.links["b"].heard("t", BEAT)
    assert scene.words() == [["start", "kill"], ["start"]]


def test_a_gang_that_ends_while_it_takes_its_room_again_keeps_none(scene: Scene) -> None:
    gang = scene.gang()
    scene.executor._begin(gang)
    scene.links["a"].heard("t", Event("wait", {"ask": 2, "job": "child"}))
    assert scene.room.held == set()
    scene.room.meanwhile = lambda: [scene.executor._gone(link) for link in scene.links.values()]
    gang.answer(2, {})
    assert (gang.ended, scene.room.held) == (True, set())


def test_a_gang_that_goes_on_has_its_room_again(scene: Scene) -> None:
    gang = scene.gang()
    scene.executor._begin(gang)
    scene.links["a"].heard("t", Event("wait", {"ask": 2, "job": "child"}))
    gang.answer(2, {})
    assert scene.room.held == {"t"}


def replica(token: str, group: str) -> ReplicaSpec:
    return ReplicaSpec(token, "onnx", Path("/folder"), Path("/socket"), Path("/log"), group=group)


def test_replicas_of_one_group_go_to_different_machines_and_those_elsewhere_say_where_they_are(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_is_here", lambda address: False)
    for token, group in (("one", "a"), ("two", "b"), ("three", "a"), ("four", "b")):
        scene.executor.start_replica(replica(token, group))
    assert [sorted(link.placed) for link in scene.links.values()] == [["four", "one"], ["three", "two"]]
    listed = scene.executor.replicas()
    assert [listed[token].address for token in ("one", "two", "three", "four")] == ["tls://a", "tls://b", "tls://b", "tls://a"]
    scene.executor.stop_replica("three")
    assert [link.words for link in scene.links.values()] == [[], ["stop_replica"]]


def test_a_node_that_was_lost_or_is_silent_is_the_last_to_get_a_replica(scene: Scene) -> None:
    scene.links["a"].silent = True
    for token in ("one", "two"):
        scene.executor.start_replica(replica(token, "g"))
    assert sorted(scene.links["b"].placed) == ["one", "two"]
    scene.executor._gone(scene.links["b"])
    scene.executor.start_replica(replica("three", "g"))
    assert sorted(scene.executor._links["id-a"].placed) == ["three"]


def test_a_gateway_on_this_machine_needs_no_bridge(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_here", lambda address: True)
    scene.executor.start_replica(replica("one", "g"))
    assert {one.address for one in scene.executor.replicas().values()} == {""}


def test_a_machine_counts_once_however_many_nodes_are_on_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = Machine("c", "id-c", "10.0.9.9", Amount(0))  # it has no processors: nothing goes there
    monkeypatch.setattr(scene.room, "machines", lambda: [*NODES, elsewhere])
    monkeypatch.setattr(module, "_is_here", lambda address: address != "10.0.9.9")
    assert [node.name for node in scene.executor.machines()] == ["b"]
    monkeypatch.setattr(module, "_is_here", lambda address: False)
    assert [node.name for node in scene.executor.machines()] == ["a", "b"]
