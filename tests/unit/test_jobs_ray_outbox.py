from __future__ import annotations

import json

from modelyard.jobs.ray import outbox
from modelyard.jobs.ray.outbox import Outbox
from modelyard.jobs.types import Event


def said(lines: bytes) -> list[tuple[int, str, str]]:
    return [(line["seq"], line["token"], line["type"]) for line in map(json.loads, lines.splitlines())]


def test_what_was_not_heard_is_said_again_and_what_was_is_forgotten() -> None:
    box = Outbox()
    for number in range(3):
        box.put("a", Event("log", {"text": str(number)}))
    everything = [(1, "a", "log"), (2, "a", "log"), (3, "a", "log")]
    assert said(box.after(0, 0)) == everything
    assert said(box.after(0, 0)) == everything
    assert said(box.after(2, 0)) == everything[2:]
    assert box.after(3, 0) == b""
    assert said(box.after(0, 0)) == []


def test_a_large_answer_comes_in_portions_and_a_full_box_says_so() -> None:
    box, text = Outbox(), "x" * (outbox._PORTION // 2)
    count = 2 * outbox._MOST // outbox._PORTION
    for _ in range(count):
        assert box.wait_for_room(0)
        box.put("a", Event("log", {"text": text}))
    assert not box.wait_for_room(0)
    assert [seq for seq, _, _ in said(box.after(0, 0))] == [1]
    assert [seq for seq, _, _ in said(box.after(1, 0))] == [2]
    assert box.wait_for_room(0)


def test_failures_that_nobody_heard_are_told_by_token() -> None:
    box = Outbox()
    error = {"code": "crashed", "message": "gone"}
    box.put("a", Event("ended", {"ok": False, "error": error}))
    box.put("b", Event("ended", {"ok": True, "error": None}))
    box.put("c", Event("log", {"text": "ended"}))
    assert box.failures() == {"a": error}
    box.after(3, 0)
    assert box.failures() == {}
