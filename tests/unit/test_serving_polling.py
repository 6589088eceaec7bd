"""Who waits awake, for how long, and when it is given up."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.serving import polling
from modelyard.serving.polling import SOON, Polling


class Loop:
    """A clock, and turns that take five microseconds each."""

    def __init__(self) -> None:
        self.now, self.soon = 100.0, []

    def call_soon(self, call: Any, *arguments: Any) -> None:
        self.soon.append((call, arguments))

    def run(self, most: int = 10_000) -> int:
        turns = 0
        while self.soon and turns < most:
            call, arguments = self.soon.pop(0)
            call(*arguments)
            self.now += 5e-6
            turns += 1
        return turns


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    made = Loop()
    monkeypatch.setattr(polling.time, "perf_counter", lambda: made.now)
    return made


def alone(loop: Loop) -> Polling:
    made = Polling(loop)  # type: ignore[arg-type]
    made.alone = True
    return made


def wait(loop: Loop, awaited: Polling, seconds: float) -> int:
    """It comes after so many seconds; the turns that were gone round until then."""
    awaited.begin()
    until = loop.now + seconds
    turns = loop.run(max(1, round(seconds / 5e-6)))
    loop.now = max(loop.now, until)
    awaited.came()
    loop.run(1)
    return turns


def test_nothing_is_waited_for_awake_before_it_was_known_to_come_soon(loop: Loop) -> None:
    awaited = alone(loop)
    assert wait(loop, awaited, 100e-6) == 0


def test_what_comes_soon_again_and_again_is_waited_for_awake(loop: Loop) -> None:
    awaited = alone(loop)
    turns = [wait(loop, awaited, 100e-6) for _ in range(30)]
    assert turns[0] == 0
    assert turns[-1] == 20
    assert not loop.soon


def test_what_does_not_come_is_given_up_after_twice_its_time(loop: Loop) -> None:
    awaited = alone(loop)
    for _ in range(60):
        wait(loop, awaited, 100e-6)
    awaited.begin()
    assert loop.run() * 5e-6 == pytest.approx(200e-6, rel=0.2)


def test_what_comes_seldom_is_slept_through_and_soon_learned_again(loop: Loop) -> None:
    awaited = alone(loop)
    for _ in range(60):
        wait(loop, awaited, 100e-6)
    turns = [wait(loop, awaited, 5e-3) for _ in range(20)]
    assert turns[0] > 0
    assert turns[-10:] == [0] * 10
    assert sum(turns) * 5e-6 < 10 * 2 * SOON
    assert [wait(loop, awaited, 100e-6) for _ in range(30)][-1] == 20


def test_what_had_not_begun_is_not_counted(loop: Loop) -> None:
    awaited = alone(loop)
    for _ in range(60):
        awaited.came()
    awaited.begin()
    assert loop.run() == 0


def test_one_of_several_on_a_machine_never_waits_awake_and_goes_on_to_learn(loop: Loop) -> None:
    awaited = Polling(loop)  # type: ignore[arg-type]
    assert [wait(loop, awaited, 100e-6) for _ in range(60)] == [0] * 60
    awaited.alone = True
    assert wait(loop, awaited, 100e-6) == 20
    awaited.alone = False
    assert wait(loop, awaited, 100e-6) == 0
