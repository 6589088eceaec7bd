"""The parts of a gang, put together again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import Conflict, Crashed, Invalid
from modelyard.jobs.ray import gang as module
from modelyard.jobs.ray.gang import RayGang
from modelyard.jobs.types import Event, Gang

GANG = Gang("t", "job", "a:b", "a:C", {}, {}, 5, Path("/work"), nodes=(("a", 2), ("b", 3)))
OK = {"ok": True, "cancelled": False, "error": None, "signal": None, "cpu_seconds": 1.0, "at": 1.0}


class Said:
    def __init__(self) -> None:
        self.words: list[dict[str, Any]] = []

    def tell(self, **message: Any) -> None:
        self.words.append(message)


class Scene:
    def __init__(self) -> None:
        self.changes, self.idle, self.links = 0, list[bool](), {"a": Said(), "b": Said()}
        self.gang = RayGang(GANG, self.changed, lambda _, yes: self.idle.append(yes))

    def changed(self, _: RayGang) -> None:
        self.changes += 1

    def join(self) -> Scene:
        for name, link in self.links.items():
            self.gang.joined(name, link)
        return self

    def words(self, node: str) -> list[str]:
        return [word["do"] for word in self.links[node].words]


def failed(error: Any, at: float, signal: int | None = None) -> Event:
    said = {"code": error.code, "message": error.message}
    return Event("ended", {**OK, "ok": False, "error": said, "at": at, "signal": signal})


def test_which_ranks_run_on_a_node() -> None:
    assert (GANG.mine, GANG.spans) == (range(5), True)
    assert [replace(GANG, here=name).mine for name in ("a", "b")] == [range(2), range(2, 5)]
    assert replace(GANG, here="b").launcher_log == Path("/launcher-b.log")
    assert Gang.from_wire(replace(GANG, here="b").to_wire()) == replace(GANG, here="b")


def test_it_has_started_when_all_parts_have_and_its_processes_are_in_the_order_of_the_ranks() -> None:
    scene = Scene().join()
    scene.gang.hear("b", Event("started", {"pids": [3, 4, 5]}))
    assert scene.gang.poll() == []
    scene.gang.hear("a", Event("started", {"pids": [1, 2]}))
    assert scene.gang.poll() == [Event("started", {"pids": [1, 2, 3, 4, 5]})]
    assert scene.changes == 2


def test_processor_time_is_that_of_all_parts() -> None:
    scene = Scene().join()
    for node, used in (("a", 1.0), ("b", 2.0), ("a", 4.0)):
        scene.gang.hear(node, Event("beat", {"cpu_seconds": used}))
    assert [event.body["cpu_seconds"] for event in scene.gang.poll()] == [1.0, 3.0, 6.0]


def test_an_answer_goes_to_the_node_of_the_rank_that_asked() -> None:
    scene = Scene().join()
    scene.gang.answer(5 * 7 + 1, "one")
    scene.gang.answer(5 * 7 + 2, None, Conflict("taken"))
    (one,), (two,) = scene.links["a"].words, scene.links["b"].words
    assert (one["ask"], one["value"], one["error"]) == (36, "one", None)
    assert (two["ask"], two["error"]) == (37, {"code": "conflict", "message": "taken"})


def test_it_has_ended_when_all_parts_have() -> None:
    scene = Scene().join()
    scene.gang.hear("a", Event("ended", OK))
    assert (scene.gang.poll(), scene.gang.ended) == ([], False)
    scene.gang.hear("a", Event("log", {"text": "late"}))
    scene.gang.hear("b", Event("ended", OK))
    assert scene.gang.ended
    (end,) = scene.gang.poll()
    assert end.body == {"ok": True, "cancelled": False, "error": None, "signal": None, "cpu_seconds": 2.0}
    scene.gang.hear("b", Event("log", {"text": "later"}))
    assert scene.gang.poll() == []


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (failed(Invalid("its peer is gone"), 2.0), failed(Invalid("boom"), 1.0), "boom"),
        (failed(Invalid("its peer is gone"), 1.0), failed(Crashed("killed"), 2.0, 9), "killed"),
        (failed(Invalid("boom"), 1.0), Event("ended", OK), "boom"),
    ],
)
def test_the_cause_is_the_part_that_was_lost_or_else_failed_first(a: Event, b: Event, message: str) -> None:
    scene = Scene().join()
    scene.gang.hear("a", a)
    scene.gang.hear("b", b)
    body = scene.gang.poll()[-1].body
    assert (body["ok"], body["error"]["message"]) == (False, message)
    assert body["signal"] == (9 if message == "killed" else None)


def test_the_others_may_end_by_themselves_and_then_are_ended_which_is_not_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    scene = Scene().join()
    scene.gang.hear("a", failed(Invalid("boom"), 1.0))
    scene.gang.poll()
    assert scene.words("b") == []
    now += module._SETTLE
    scene.gang.poll()
    assert (scene.words("a"), scene.words("b")) == ([], ["kill"])
    scene.gang.hear("b", failed(Crashed("The gang was ended."), 0.5))
    assert scene.gang.poll()[-1].body["error"]["message"] == "boom"


def test_a_cancelled_gang_is_cancelled_in_all_its_parts() -> None:
    scene = Scene().join()
    scene.gang.cancel()
    scene.gang.cancel()
    assert (scene.words("a"), scene.words("b")) == (["cancel"], ["cancel"])
    for node in ("a", "b"):
        scene.gang.hear(node, Event("ended", {**OK, "ok": False, "cancelled": True}))
    body = scene.gang.poll()[-1].body
    assert (body["ok"], body["cancelled"], body["error"]) == (False, True, None)


@pytest.mark.parametrize(
    ("stopped", "error", "code"),
    [
        (True, Invalid("its peer is gone"), None),
        (True, Crashed("killed"), "crashed"),
        (False, Invalid("boom"), "invalid_request"),
    ],
)
def test_a_part_that_misses_a_peer_which_stopped_as_asked_has_not_failed(stopped: bool, error: Any, code: str | None) -> None:
    scene = Scene().join()
    if stopped:
        scene.gang.cancel()
    scene.gang.hear("a", Event("ended", {**OK, "ok": False, "cancelled": True}))
    scene.gang.hear("b", failed(error, 1.0))
    body = scene.gang.poll()[-1].body
    assert (body["ok"], body["cancelled"], body["error"] and body["error"]["code"]) == (False, code is None, code)


def test_what_is_said_before_it_is_there_reaches_it() -> None:
    scene = Scene()
    scene.gang.kill()
    scene.join()
    assert (scene.words("a"), scene.words("b")) == (["kill"], ["kill"])
    for node in ("a", "b"):
        scene.gang.hear(node, failed(Crashed("The gang was ended."), 1.0))
    assert scene.gang.poll()[-1].body["error"]["code"] == "crashed"


def test_while_it_waits_for_children_its_room_is_theirs() -> None:
    scene = Scene().join()
    scene.gang.hear("a", Event("watch", {"ask": 5, "after": {}}))
    scene.gang.answer(5, {})
    assert scene.idle == [True]
    scene.gang.hear("a", Event("wait", {"ask": 10, "job": "child"}))
    assert scene.idle == [True, True]
    scene.gang.answer(10, {})
    assert scene.idle == [True, True, False]


def test_it_goes_on_when_none_of_its_ranks_waits_any_more() -> None:
    scene = Scene().join()
    scene.gang.hear("a", Event("wait", {"ask": 5, "job": "one"}))
    scene.gang.hear("b", Event("wait", {"ask": 7, "job": "two"}))
    scene.gang.answer(5, {})
    assert scene.idle == [True, True]
    scene.gang.answer(7, {})
    assert scene.idle == [True, True, False]


def test_its_room_is_its_childrens_before_control_hears_that_it_waits() -> None:
    seen = list[Any]()
    gang = RayGang(GANG, lambda _: None, lambda gang, _: seen.append(list(gang.poll())))
    gang.hear("a", Event("wait", {"ask": 5, "job": "child"}))
    assert seen == [[]]
    assert [event.type for event in gang.poll()] == ["wait"]


@pytest.mark.parametrize("body", [{}, {**OK, "error": "none"}, {**OK, "cpu_seconds": "many"}, {**OK, "signal": []}])
def test_a_part_that_says_nonsense_was_wrong(body: dict[str, Any]) -> None:
    scene = Scene().join()
    scene.gang.hear("a", Event("ended", body))
    scene.gang.hear("b", Event("ended", OK))
    end = scene.gang.poll()[-1].body
    assert (end["ok"], end["error"]["code"]) == (False, "invalid_request")
