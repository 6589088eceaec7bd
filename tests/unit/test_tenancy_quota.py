"""A quota lets through what it says in any stretch of time, and never refuses who keeps to it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.tenancy.quota import Quota, level, wait

quotas = st.builds(Quota, st.floats(1e-3, 1e5), st.integers(1, 1000))
starts = st.floats(0, 2e9)
gaps = st.lists(st.floats(0, 5) | st.floats(0, 1e-3) | st.just(0.0), max_size=200)


class Bucket:
    """A caller's bucket, as a gateway keeps one."""

    def __init__(self, quota: Quota, at: float) -> None:
        self.quota, self.tokens, self.at = quota, float(quota.burst), at

    def take(self, now: float) -> bool:
        self.tokens, self.at = level(self.quota, self.tokens, self.at, now), now
        if wait(self.quota, self.tokens):
            return False
        self.tokens -= 1.0
        return True


def moments(start: float, gaps: list[float]) -> list[float]:
    found = [start]
    for gap in gaps:
        found.append(found[-1] + gap)
    return found


@given(quotas, starts, gaps)
def test_in_any_stretch_of_time_no_more_than_the_burst_and_the_rate(quota: Quota, start: float, gaps: list[float]) -> None:
    bucket = Bucket(quota, start)
    taken = [at for at in moments(start, gaps) if bucket.take(at)]
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= quota.burst + quota.rate * (taken[last] - taken[first]) + 1e-6


@given(quotas, starts, st.lists(st.floats(1.0, 3.0), max_size=200))
def test_who_keeps_to_the_rate_is_never_refused(quota: Quota, start: float, times: list[float]) -> None:
    bucket, now = Bucket(quota, start), start
    assert bucket.take(now)
    for times_of_a_call in times:
        later = now + times_of_a_call / quota.rate
        while (later - now) * quota.rate < 1.0:  # where a clock's steps are coarser than the pause
            later = math.nextafter(later, math.inf)
        now = later
        assert bucket.take(now)


@given(quotas, starts, gaps)
def test_who_waits_as_long_as_he_is_told_is_let_in(quota: Quota, start: float, gaps: list[float]) -> None:
    bucket = Bucket(quota, start)
    for now in moments(start, gaps):
        if not bucket.take(now):
            seconds = wait(quota, bucket.tokens)
            assert 0 < seconds <= 1 / quota.rate * (1 + 1e-9)
            assert not wait(quota, level(quota, bucket.tokens, now, now + seconds * (1 + 1e-6) + 1e-6))


@given(quotas, starts, st.lists(st.tuples(st.floats(0, 5), st.floats(-1e6, 1e6)), max_size=100))
def test_a_clock_that_jumps_gives_nothing_backwards_and_a_burst_at_most_forwards(
    quota: Quota, start: float, steps: list[tuple[float, float]]
) -> None:
    """`steps`: how long passed, and how far the clock was put after it."""
    bucket, passed, ahead = Bucket(quota, start), 0.0, 0.0
    taken, forwards = 0, 0
    for gap, jump in steps:
        passed, ahead, forwards = passed + gap, ahead + jump, forwards + (jump > 0)
        while bucket.take(start + passed + ahead):
            taken += 1
            if taken > 2000:
                return
        assert taken <= quota.burst * (1 + forwards) + quota.rate * passed + 1e-3 * (1 + quota.rate)


def test_after_a_jump_backwards_calls_go_on_at_the_rate() -> None:
    bucket = Bucket(Quota(10, 1), 1000.0)
    assert [bucket.take(at) for at in (1000.0, 1000.05, 500.0, 500.05, 500.1, 500.15)] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("rate", "burst", "quota"),
    [
        (None, None, None),
        (5.0, None, Quota(5.0, 5)),
        (0.1, None, Quota(0.1, 1)),
        (2.5, None, Quota(2.5, 3)),
        (5.0, 1, Quota(5.0, 1)),
    ],
)
def test_a_burst_that_is_not_said_is_what_comes_in_a_second(rate: float | None, burst: int | None, quota: Quota | None) -> None:
    assert Quota.of(rate, burst) == quota
