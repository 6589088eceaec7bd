"""What is known of replicas from what they say: who hangs, who has grown, how much is asked of a release."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from modelyard.db import now
from modelyard.jobs.types import ProcessStatus
from modelyard.serving.planning import DRAIN
from modelyard.serving.scaling import Load
from modelyard.serving.types import Health, ReplicaState
from modelyard.serving.watch import EVERY, Watch

MIB = 1 << 20


class Scene:
    """A clock moved by hand, and what each replica says next."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.said: dict[str, Health | None] = {}
        self.asked: list[str] = []
        self.watch = Watch(self._probe, lambda: self.clock)

    def _probe(self, address: str) -> Health | None:
        self.asked.append(address)
        return self.said.get(address)

    def look(self, *rows: Any, after: float = EVERY) -> None:
        self.clock += after
        self.watch.look(rows)

    def stuck(self, row: Any) -> float:
        return self.watch.observed(row, ProcessStatus(row.token, 7, None)).stuck.total_seconds()


def replica(token: str = "a", state: ReplicaState = ReplicaState.ready, generation: int = 1) -> Any:
    return SimpleNamespace(
        token=token, address=token, state=state, generation=generation, deployment=1, started=None, changed=None
    )


def health(depth: int = 0, steps: int = 0, memory: int = 100 * MIB, done: int = 0, refused: int = 0, **told: Any) -> Health:
    return Health(ReplicaState.ready, told, None, depth, steps, memory, done, refused)


def test_who_is_ready_is_asked_once_a_second_and_who_comes_or_goes_always():
    scene = Scene()
    starting = replica("s", ReplicaState.starting)
    for _ in range(4):
        scene.look(replica(), starting, replica("d", ReplicaState.draining), after=EVERY / 4)
    assert scene.asked.count("s") == 4
    assert scene.asked.count("a") == 1
    assert "d" not in scene.asked, "it is on another machine"


def test_who_leaves_is_asked_until_it_must_go_and_when_that_was_counts():
    scene, leaving = Scene(), replica("/run/d", ReplicaState.draining)
    gone = replica("/run/g", ReplicaState.draining)
    leaving.changed, gone.changed = now(), now() - DRAIN
    scene.said["/run/d"] = Health(ReplicaState.ready, {}, peers=1)
    scene.look(leaving, gone)
    assert scene.asked == ["/run/d"]
    assert scene.watch.observed(leaving, None).left is None
    scene.said["/run/d"] = Health(ReplicaState.ready, {}, peers=0)
    scene.look(leaving, gone)
    assert scene.watch.observed(leaving, None).left == timedelta()


def test_who_holds_calls_and_computes_none_is_stuck_and_who_is_busy_is_not():
    scene, row = Scene(), replica()
    for step in range(5):
        scene.said["a"] = health(depth=3, steps=step)
        scene.look(row)
    assert scene.stuck(row) == 0
    for _ in range(5):
        scene.look(row)
    assert scene.stuck(row) == 5
    scene.said["a"] = health(depth=0, steps=4)  # all gave up
    scene.look(row)
    assert scene.stuck(row) == 0


def test_who_does_not_answer_is_stuck_too_and_who_was_never_asked_is_not():
    scene, row = Scene(), replica()
    assert scene.stuck(row) == 0
    scene.said["a"] = health()
    scene.look(row)
    scene.said["a"] = None
    for _ in range(3):
        scene.look(row)
    assert scene.stuck(row) == 3


def test_who_grows_far_beyond_its_beginning_is_swollen():
    scene, row = Scene(), replica()
    status = ProcessStatus("a", 7, None)
    for memory, swollen in ((100, False), (600, False), (611, False), (613, True), (100, False)):
        scene.said["a"] = health(memory=memory * MIB)
        scene.look(row)
        assert scene.watch.observed(row, status).swollen is swollen, memory


def test_what_is_asked_of_a_release_is_the_sum_of_its_replicas():
    scene = Scene()
    rows = [replica("a"), replica("b"), replica("old", generation=0)]
    scene.said = {"a": health(4, batch={"rows": 8, "us_a_row": 50.0}), "b": health(6), "old": health(100)}
    scene.look(*rows)
    assert scene.watch.load((1, 1), ["a", "b"]) == Load(10.0, 10.0, 50.0, known=True)
    scene.said = {"a": health(0), "b": health(0)}
    for _ in range(3):
        scene.look(*rows[:2])
    assert scene.watch.load((1, 1), ["a", "b"])[:2] == (0.0, 10.0)
    assert scene.watch.load((1, 0), ["old"]) == Load()


def test_what_replicas_answer_and_refuse_is_counted_from_the_first_look_on():
    scene, rows = Scene(), [replica("a"), replica("b")]
    scene.said = {"a": health(done=10_000, refused=500), "b": health()}
    scene.look(*rows)
    scene.said = {"a": health(done=10_060, refused=503), "b": health(done=30)}
    scene.look(*rows)
    load = scene.watch.load((1, 1), ["a", "b"])
    assert (load.offered, load.lasting, load.refused) == (93 / 2, 93 / 2, True)
    scene.said["a"] = health()  # it began anew
    scene.look(*rows)
    assert scene.watch.load((1, 1), ["a", "b"]).offered == 93 / 2


def test_that_a_release_does_nothing_is_known_only_while_all_its_replicas_answer():
    scene, rows = Scene(), [replica("a"), replica("b")]
    scene.said = {"a": health()}

    def known() -> bool:
        scene.look(*rows)
        return scene.watch.load((1, 1), ["a", "b"]).known

    assert not known()
    scene.said["b"] = health()
    assert [known() for _ in range(3)] == [False, False, True]
    scene.said["b"] = None
    assert not known()
    scene.said["b"] = health()
    assert [known() for _ in range(3)] == [False, False, True]
    scene.clock += 3
    assert not scene.watch.load((1, 1), ["a", "b"]).known


def test_what_is_gone_is_forgotten():
    scene = Scene()
    scene.said["a"] = health(5)
    scene.look(replica())
    scene.look()
    assert scene.watch._known == {}
    assert scene.watch._loads == {}


def test_who_hangs_keeps_nobody_waiting_and_who_raises_counts_as_silent():
    scene, gate = Scene(), threading.Event()
    answered = scene.watch._probe

    def probe(address: str) -> Health | None:
        if address == "hangs":
            gate.wait(20)
        if address == "raises":
            raise ValueError("what no probe should")
        return answered(address)

    scene.watch._probe = probe
    rows = [replica("hangs"), replica("raises"), replica("a")]
    scene.said = {"a": health(2), "hangs": health(1)}
    began = time.monotonic()
    for _ in range(3):
        scene.look(*rows)
    assert time.monotonic() - began < 5
    assert scene.watch.load((1, 1), ["a"])[0] == 2.0
    assert [scene.stuck(row) for row in rows[:2]] == [0.0, 2.0]
    gate.set()
    scene.look(*rows)
    assert scene.watch.load((1, 1), ["a"])[0] > 2.0


def test_that_one_has_answered_is_remembered_when_it_is_silent():
    scene, row = Scene(), replica()
    status = ProcessStatus("a", 7, None)
    for said, served in ((health(), False), (health(done=3), True), (None, True)):
        scene.said["a"] = said
        scene.look(row)
        assert scene.watch.observed(row, status).served is served
