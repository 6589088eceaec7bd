"""Control's end of a gang, over a socket pair: whatever comes from the other end, the last event is 'ended', once."""

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import Conflict, Unavailable
from modelyard.jobs import gang as module
from modelyard.jobs.gang import LocalGang, died
from modelyard.jobs.lines import LineBuffer
from modelyard.jobs.types import Gang


class Processes:
    """A supervisor that knows one process."""

    def __init__(self) -> None:
        self.exit: int | None = None
        self.stopped: list[float] = []
        self.away = False
        self.reason: str | None = None

    def processes(self) -> dict[str, dict[str, Any]]:
        if self.away:
            raise Unavailable
        return {"token": {"pid": 1, "exit": self.exit, "cpu": 2.5, "label": "gang", "reason": self.reason}}

    def stop(self, token: str, grace: float) -> None:
        self.stopped.append(grace)


class Scene:
    def __init__(self, folder: Path) -> None:
        near, self.far = socket.socketpair()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.processes = Processes()
        (folder / "work").mkdir()
        self.folder = folder
        spec = Gang("token", "job", "m:run", "m:Config", {"a": 1}, {}, 2, folder / "work", heartbeat=5.0)
        self.gang = LocalGang(spec, near, self.processes)

    def say(self, *messages: Any) -> None:
        self.far.sendall(b"".join(json.dumps(m).encode() + b"\n" for m in messages))

    def poll(self) -> list[tuple[str, dict[str, Any]]]:
        return [(event.type, dict(event.body)) for event in self.gang.poll()]

    def heard(self) -> list[dict[str, Any]]:
        return LineBuffer().feed(self.far.recv(1 << 20))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.far.close()
    scene.gang.socket.close()


def test_the_gang_is_told_first_then_what_follows(scene: Scene) -> None:
    scene.gang.cancel()
    scene.gang.answer(3, {"x": 1})
    scene.gang.answer(4, None, Conflict("no"))
    told, *rest = scene.heard()
    assert Gang.from_wire(told).config == {"a": 1}
    assert rest == [
        {"cancel": True},
        {"answer": 3, "value": {"x": 1}},
        {"answer": 4, "error": {"code": "conflict", "message": "no"}},
    ]


def test_pids_are_what_the_kernel_says_not_the_rank(scene: Scene) -> None:
    scene.say({"type": "rank", "rank": 1, "pid": 1})
    assert scene.poll() == []
    scene.say({"type": "rank", "rank": 0, "pid": 1})
    assert scene.poll() == [("started", {"pids": [os.getpid()] * 2})]


def test_lines_are_put_together_and_beats_are_not_told(scene: Scene) -> None:
    scene.far.sendall(b'{"type":"beat"}\n{"type":"lo')
    assert scene.poll() == []
    scene.far.sendall(b'g","rank":0,"text":"x"}\n')
    assert scene.poll() == [("log", {"rank": 0, "text": "x"})]


def test_a_gang_that_was_killed_for_what_it_did_was_wrong_not_lost(scene: Scene) -> None:
    scene.processes.exit, scene.processes.reason = -9, "started more than 512 processes"
    scene.far.close()
    ((_, body),) = scene.poll()
    assert body["error"] == {"code": "invalid_request", "message": "The job was ended: it started more than 512 processes."}


def test_a_beat_tells_of_processor_time(scene: Scene) -> None:
    scene.say({"type": "beat", "cpu_seconds": 1.5})
    assert scene.poll() == [("beat", {"cpu_seconds": 1.5})]


def test_after_its_end_nothing_more_is_heard(scene: Scene) -> None:
    ended = {"ok": True, "error": None, "cancelled": False, "signal": None, "cpu_seconds": 1.0}
    scene.say({"type": "ended", **ended}, {"type": "log", "rank": 0, "text": "late"})
    assert scene.poll() == [("ended", ended)]
    assert scene.poll() == []
    assert scene.processes.stopped == [1.0]


LOST = {"ok": False, "error": None, "cancelled": False, "signal": 9, "cpu_seconds": 1.0, "stays": True}


def staying(scene: Scene) -> Gang:
    """The gang as one whose launcher waits for another attempt where it is lost."""
    scene.gang._gang = replace(scene.gang._gang, stays=True)
    scene.heard()
    scene.say({"type": "ended", **LOST})
    assert scene.poll() == [("ended", LOST)]
    assert (scene.gang.ended, scene.processes.stopped) == (True, [])
    return scene.gang._gang


def test_one_that_stays_is_told_the_next_attempt_and_heard_again(scene: Scene) -> None:
    gang = replace(staying(scene), resume=scene.folder / "resume")
    scene.gang.again(gang)
    assert scene.heard() == [{"again": gang.to_wire()}]
    for rank in (0, 1):
        scene.say({"type": "rank", "rank": rank})
    assert scene.poll() == [("started", {"pids": [os.getpid()] * 2})]
    scene.say({"type": "ended", **LOST, "stays": False})
    assert scene.poll() == [("ended", {**LOST, "stays": False})]
    assert scene.processes.stopped == [1.0]


def test_one_that_stays_is_let_go(scene: Scene) -> None:
    staying(scene)
    scene.gang.kill()
    assert scene.processes.stopped == [1.0]
    assert scene.far.recv(1) == b""


def test_one_that_stays_and_dies_says_so_in_its_next_life(scene: Scene) -> None:
    gang = staying(scene)
    scene.far.close()
    scene.gang.again(gang)
    assert scene.poll() == []
    scene.processes.exit = -9
    ((kind, body),) = scene.poll()
    assert (kind, body["error"]["code"], body["cpu_seconds"]) == ("ended", "crashed", 2.5 - LOST["cpu_seconds"])


def test_no_launcher_waits_where_none_was_asked_to(scene: Scene) -> None:
    scene.say({"type": "ended", **LOST})
    assert scene.poll() == [("ended", LOST)]
    assert scene.processes.stopped == [1.0]


def test_a_gang_that_vanished_says_how_its_launcher_ended(scene: Scene) -> None:
    (scene.folder / "launcher.log").write_text("bwrap: no such thing")
    scene.far.close()
    assert scene.poll() == []
    scene.processes.exit = -9
    ((kind, body),) = scene.poll()
    assert (kind, body["ok"], body["signal"], body["cpu_seconds"]) == ("ended", False, 9, 2.5)
    assert body["error"]["code"] == "crashed"
    assert "killed by signal 9 (SIGKILL)" in body["error"]["message"]
    assert "bwrap: no such thing" in body["error"]["message"]


def test_a_gang_whose_supervisor_is_away_ends_too(scene: Scene) -> None:
    scene.processes.away = True
    scene.far.close()
    ((_, body),) = scene.poll()
    assert "is gone" in body["error"]["message"]


def test_one_that_closed_but_does_not_end_is_killed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.far.close()
    assert scene.poll() == []
    monkeypatch.setattr(module, "_CLOSING", 0.0)
    ((_, body),) = scene.poll()
    assert body["error"]["code"] == "crashed"


@pytest.mark.parametrize("wrong", [b"nonsense\n", b"[]\n", b'{"x":1}\n', b'{"type":"rank","rank":"a"}\n', b"x" * (2 << 20)])
def test_what_is_no_message_ends_the_gang_for_good(scene: Scene, wrong: bytes) -> None:
    scene.far.setblocking(False)
    sent = 0
    events: list[tuple[str, dict[str, Any]]] = []
    scene.processes.exit = -9
    for _ in range(100):
        if sent < len(wrong):
            try:
                sent += scene.far.send(wrong[sent:])
            except BlockingIOError:
                pass
            except BrokenPipeError:
                sent = len(wrong)
        events += scene.poll()
        if events:
            break
    ((kind, body),) = events
    assert (kind, body["error"]["code"]) == ("ended", "invalid_request")
    assert 0 in scene.processes.stopped


def test_a_silent_launcher_is_ended(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LAUNCHER_SILENCE", -10.0)
    assert scene.poll() == []
    assert scene.processes.stopped == [0]
    scene.far.close()
    scene.processes.exit = -9
    events = [*scene.poll(), *scene.poll()]
    assert events[-1][1]["error"]["code"] == "crashed"


def test_a_flood_is_taken_in_parts(scene: Scene) -> None:
    scene.far.setblocking(False)
    line = json.dumps({"type": "log", "rank": 0, "text": "x" * 1000}).encode() + b"\n"
    heard = said = 0
    while said < 2000:
        try:
            scene.far.sendall(line)
            said += 1
        except BlockingIOError:
            pytest.fail("a line was cut") if heard == 0 and said == 0 else None
            heard += len(scene.poll())
            break
    assert 0 < len(scene.poll()) + heard <= said


@pytest.mark.parametrize(
    ("facts", "error"),
    [
        ({"exit": 1}, None),
        ({"exit": 0}, None),
        ({"exit": -9, "stopped": True}, None),
        ({"exit": -9}, "killed by signal 9"),
        ({"exit": -9, "reason": "started more than 512 processes"}, "it started more than 512 processes"),
    ],
)
def test_an_end_that_nobody_heard_of_tells_whether_the_gang_died_by_itself(facts: dict[str, Any], error: str | None) -> None:
    """Exit 1 is what a launcher ends with that finds control gone."""
    found = died({"stopped": False, "reason": None, **facts})
    assert (found is None) == (error is None)
    assert found is None or (error or "") in found.message
