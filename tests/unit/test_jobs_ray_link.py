"""Control's way to a node, over answers that are made up here."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from modelyard import __version__
from modelyard.errors import Crashed, Invalid, ModelyardError, Unavailable
from modelyard.jobs.ray import link as module
from modelyard.jobs.ray.cluster import Machine
from modelyard.jobs.ray.link import Link
from modelyard.jobs.types import Amount, Event

NODE = Machine("n", "1", "10.0.0.1", Amount())
TAKEN = {"value": {"version": __version__, "wrong": {}}}


class Answer:
    def __init__(self, what: Any) -> None:
        self.what = what

    def get(self, timeout: float) -> bytes:
        if isinstance(self.what, ModelyardError):
            raise self.what
        return self.what if isinstance(self.what, bytes) else json.dumps(self.what).encode()


class Node:
    """Answers questions from two scripts; the actor is gone when there is nothing more to hear."""

    def __init__(self, answers: Sequence[Any], news: Sequence[Any]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.heard: list[int] = []
        self._answers, self._news = list(answers), list(news)
        self.go = threading.Event()

    def ask(self, message: bytes) -> Answer:
        self.asked.append(json.loads(message))
        what = self._answers.pop(0) if self._answers else {"value": None}
        return what if isinstance(what, Answer) else Answer(what)

    def hear(self, holder: str, heard: int, patience: float) -> Answer:
        assert holder == self.asked[0]["holder"]
        self.heard.append(heard)
        return Answer(self._news.pop(0) if self._news else Crashed("gone"))


class Scene:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, node: Node) -> None:
        monkeypatch.setattr(module, "_PAUSE", 0.0)
        monkeypatch.setattr(module.cluster, "wait", self.wait)
        self.node, self.events, self.over = node, list[tuple[str, Event]](), threading.Event()
        self.there = True  # whether the node answers who waits for one answer
        self.link = Link(NODE, node, lambda *said: self.events.append(said), lambda _: self.over.set())  # type: ignore[arg-type]
        self.link.listen()

    def wait(self, said: Sequence[Answer], timeout: float) -> list[Answer]:
        assert self.node.go.wait(30)
        return list(said) if self.there else []

    def play(self) -> None:
        self.node.go.set()
        assert self.over.wait(30)


def lines(*numbers: int) -> bytes:
    said = [{"seq": n, "token": "t", "type": "log", "body": {"text": str(n)}} for n in numbers]
    return b"\n".join(json.dumps(one).encode() for one in said)


def test_news_are_heard_once_and_in_order_though_the_node_is_out_of_reach_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, Node([TAKEN], [lines(1, 2), b"", Unavailable("busy"), lines(3)]))
    scene.play()
    assert [event.body["text"] for _, event in scene.events] == ["1", "2", "3"]
    assert scene.node.heard == [0, 2, 2, 2, 3]


def test_what_does_not_arrive_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, Node([TAKEN, Unavailable("busy")], [b"", b"", b""]))
    scene.link.tell(do="cancel", token="t")
    scene.play()
    assert [asked["do"] for asked in scene.node.asked] == ["take", "cancel", "cancel"]


def test_a_node_in_other_hands_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, Node([TAKEN], [b"gone", lines(1)]))
    scene.play()
    assert scene.events == []


def test_questions_have_answers_or_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"value": {"version": __version__, "wrong": {"old": {"code": "crashed", "message": "killed"}}}}
    error = {"error": {"code": "invalid_request", "message": "no"}}
    scene = Scene(monkeypatch, Node([wrong, {"value": 3}, error, Crashed("gone")], []))
    assert isinstance(scene.link.wrong["old"], Crashed)
    assert scene.link.ask(do="replicas") == 3
    with pytest.raises(Invalid, match="no"):
        scene.link.ask(do="start_replica")
    with pytest.raises(Unavailable, match="n is lost"):
        scene.link.ask(do="replicas")
    scene.play()


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable, match=r"has Modelyard 0\.0"):
        Scene(monkeypatch, Node([{"value": {"version": "0.0", "wrong": {}}}], []))


def listed(*tokens: str) -> dict[str, Any]:
    return {"value": [[token, 1, None, "", "g"] for token in tokens]}


def test_replicas_are_those_of_the_latest_answer_though_that_may_be_late(monkeypatch: pytest.MonkeyPatch) -> None:
    late = Answer(listed("a", "b"))
    answers = [TAKEN, listed("a"), late, Unavailable("busy"), listed("c")]
    scene = Scene(monkeypatch, Node(answers, []))
    scene.node.go.set()
    assert list(scene.link.replicas()) == ["a"]
    scene.there = False
    assert (list(scene.link.replicas()), scene.link.silent) == (["a"], True)
    scene.there = True
    assert (list(scene.link.replicas()), scene.link.silent) == (["a", "b"], False)
    assert (list(scene.link.replicas()), scene.link.silent) == (["a", "b"], True)
    assert (list(scene.link.replicas()), scene.link.silent) == (["c"], False)
    scene.play()


def test_a_node_that_never_told_of_its_replicas_is_not_taken_to_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, Node([TAKEN, Unavailable("busy")], []))
    scene.node.go.set()
    with pytest.raises(Unavailable, match="n does not tell"):
        scene.link.replicas()
    scene.play()


def test_a_replica_that_was_just_started_is_there_whatever_was_asked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    started = {"value": ["new", 2, None, "tls://n", "g"]}
    scene = Scene(monkeypatch, Node([TAKEN, listed("a"), listed("a"), started], []))
    scene.node.go.set()
    scene.link.replicas()
    scene.there = False  # a question that is answered late, without the new one
    scene.link.start_replica({"token": "new"}, "")
    assert list(scene.link.replicas()) == ["a", "new"]
    assert scene.link.replicas()["new"].address == "tls://n"
    scene.there = True
    scene.play()
