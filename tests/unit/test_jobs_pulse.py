"""Who hangs: each rank by itself, but for what it waits for and what it announced."""

import pytest

from modelyard.jobs.pulse import Pulse


class Gang:
    """Two ranks that are looked at every half second; `speaks` are those that say something in between."""

    def __init__(self) -> None:
        self.pulse = Pulse(range(2), 10.0, 0.0)
        self.now = 0.0

    def lives(self, seconds: float, speaks: tuple[int, ...] = (), asking: tuple[int, ...] = ()) -> list[int]:
        """Who was silent when one first was for too long within so many seconds."""
        until = self.now + seconds
        while self.now < until:
            self.now += 0.5
            for rank in speaks:
                self.pulse.beat(rank)
            if silent := self.pulse.look(self.now, range(2), asking):
                return silent
        return []


@pytest.fixture
def gang() -> Gang:
    return Gang()


def test_a_rank_that_is_silent_hangs_however_much_the_other_says(gang: Gang) -> None:
    assert gang.lives(9.5, speaks=(0,)) == []
    assert gang.lives(0.5, speaks=(0,)) == [1]
    assert gang.pulse.told([1]) == "no sign of life from rank 1 for 10 s"


def test_who_fell_silent_a_moment_later_is_told_too(gang: Gang) -> None:
    assert gang.lives(2, speaks=(0,)) == []
    assert gang.lives(10) == [0, 1]
    assert gang.pulse.told([0, 1]) == "no sign of life from any rank for 10 s"


def test_a_gang_that_speaks_does_not_hang(gang: Gang) -> None:
    assert gang.lives(1000, speaks=(0, 1)) == []


def test_who_waits_for_control_is_not_silent_and_begins_anew_when_it_is_answered(gang: Gang) -> None:
    assert gang.lives(1000, speaks=(1,), asking=(0,)) == []
    assert gang.lives(9.5, speaks=(1,)) == []
    assert gang.lives(1, speaks=(1,)) == [0]


def test_who_may_wait_for_one_that_waits_for_control_is_given_longer_but_not_for_ever(gang: Gang) -> None:
    assert gang.lives(49, asking=(0,)) == []
    assert gang.lives(2, asking=(0,)) == [1]


def test_who_announces_what_takes_longer_is_given_longer_until_it_takes_that_back(gang: Gang) -> None:
    gang.pulse.allow(1, 3.0)
    assert gang.lives(29, speaks=(0,)) == []
    gang.pulse.beat(1)
    gang.pulse.allow(1, 1.0)
    assert gang.lives(9, speaks=(0,)) == []
    assert gang.lives(1, speaks=(0,)) == [1]


@pytest.mark.parametrize(("times", "limit"), [(0.1, 10), (-1, 10), (float("nan"), 10), (1e300, 10_000), (2.5, 25)])
def test_what_is_announced_is_bounded(gang: Gang, times: float, limit: float) -> None:
    gang.pulse.allow(0, times)
    assert gang.pulse.limit(0) == limit


def test_while_nobody_listened_nobody_was_silent(gang: Gang) -> None:
    gang.now = 3600.0
    assert gang.lives(8) == []
