"""What a launcher takes from a rank: a fixed set, all that a rank of ours says and nothing else."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelyard.errors import Invalid
from modelyard.jobs import launcher as launchers
from modelyard.jobs import rank as ranks
from modelyard.jobs.forked import Forked
from modelyard.jobs.launcher import Launcher
from modelyard.jobs.lines import LineBuffer, encode
from modelyard.jobs.types import Gang


class Scene:
    """A launcher with one rank, both ends of whose sockets are here."""

    def __init__(self, work: Path) -> None:
        gang = Gang(
            token="t", job="j", run="x:y", config_path="x:Z", config={}, inputs={}, work=work, ranks=2,
        )  # fmt: skip
        self.near, self.control = socket.socketpair()
        self.control.setblocking(False)
        self.launcher = Launcher(self.control, gang, LineBuffer())
        self.mine, self.rank_end = socket.socketpair()
        self.rank_end.setblocking(False)
        self.rank = Forked(1, 0, -1, self.rank_end, -1)

    def say(self, **message: object) -> list[dict[str, object]]:
        """What control hears when the rank says this."""
        self.mine.sendall(encode(message))
        self.launcher._hear(self.rank)
        self.launcher._flush()
        self.near.setblocking(False)
        try:
            return list(LineBuffer().feed(self.near.recv(65536)))
        except BlockingIOError:
            return []

    @property
    def wrong(self) -> str:
        return "".join(error.message for _, error, _ in self.launcher._failures if isinstance(error, Invalid))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    for end in (scene.near, scene.control, scene.mine, scene.rank_end):
        end.close()
    scene.launcher._selector.close()


def test_all_that_a_rank_may_say_is_known() -> None:
    said = set(re.findall(r'"type": "(\w+)"', Path(ranks.__file__).read_text()))
    assert said == {*launchers._SAID, *launchers._ASKED, "beat", "done", "cancelled", "failed"}


def test_a_fact_is_passed_on_as_the_rank_it_comes_from(scene: Scene) -> None:
    assert scene.say(type="report", facts={"a": 1}, rank=0, ask=3) == [{"type": "report", "facts": {"a": 1}, "rank": 1}]


def test_a_question_is_numbered_so_that_its_answer_finds_back(scene: Scene) -> None:
    assert scene.say(type="adopt", job="c", ask=3) == [{"type": "adopt", "job": "c", "rank": 1, "ask": 7}]
    assert scene.rank.asking == {3}


@pytest.mark.parametrize("kind", ["ended", "started", "rank", "strange", ["log"], None])
def test_nothing_else_is_passed_on(scene: Scene, kind: object) -> None:
    assert scene.say(type=kind, ok=True) == []
    assert "rank 1 did not keep to the protocol" in scene.wrong


def test_a_question_must_have_a_number(scene: Scene) -> None:
    assert scene.say(type="submit") == []
    assert "did not keep to the protocol" in scene.wrong


def test_a_rank_may_not_ask_without_end(scene: Scene) -> None:
    for ask in range(launchers._MOST_ASKED):
        assert scene.say(type="wait", job="c", ask=ask)
    assert scene.wrong == ""
    assert scene.say(type="wait", job="c", ask=99) == []
    assert "asked too much at once" in scene.wrong


def test_an_error_is_cut(scene: Scene) -> None:
    scene.say(type="failed", at=1.0, error={"code": "invalid_request", "message": "x" * 20_000})
    assert len(scene.wrong) == launchers._LONGEST_ERROR


def test_a_rank_announces_what_takes_longer(scene: Scene) -> None:
    assert scene.say(type="beat", times=4.0) == []
    assert [scene.launcher._pulse.limit(rank) for rank in range(2)] == [120, 480]
    assert scene.say(type="beat", times="long") == []
    assert "did not keep to the protocol" in scene.wrong
