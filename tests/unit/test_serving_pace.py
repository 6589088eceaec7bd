"""The estimate follows what batches take, and the wait follows from the estimate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.serving.pace import Pace, Queue, affordable, given_up_after, predicted

BATCHES = st.lists(st.tuples(st.integers(1, 512), st.floats(1e-6, 10)), min_size=1, max_size=40)
WORK = st.floats(0, 1e4)


def pace_of(batches):
    pace = Pace()
    for work, seconds in batches:
        pace.learn(work, seconds)
    return pace


def line(fixed, each, sizes=(1, 2, 4, 8, 16, 32)):
    return pace_of([(size, fixed + each * size) for size in sizes])


@given(BATCHES, WORK, WORK)
def test_more_work_never_takes_less_and_never_less_than_nothing(batches, a, b):
    pace = pace_of(batches)
    least, most = sorted((a, b))
    assert 0 <= pace.batch(least) <= pace.batch(most) + 1e-12
    assert np.isfinite(pace.batch(most))


@pytest.mark.parametrize(("fixed", "each"), [(0.004, 0.001), (0.0, 0.005), (0.02, 0.0)])
def test_a_line_is_found(fixed, each):
    pace = line(fixed, each, (1, 32, 4, 16, 2, 8) * 5)
    for size in (1, 10, 64):
        assert pace.batch(size) == pytest.approx(fixed + each * size, rel=0.05, abs=2e-4)


def test_what_is_known_of_the_slope_outlives_batches_that_are_alike():
    pace = line(0.004, 0.001, (1, 32, 4, 16, 2, 8) * 5)
    for _ in range(1000):
        pace.learn(32, 0.036)
    assert pace.batch(1) == pytest.approx(0.005, rel=0.1)


def test_nothing_is_known_at_first():
    assert Pace().batch(5) == 0
    assert predicted(Pace(), Queue(5, 5, 0.0), 1, 8) == 0


@given(st.floats(1e-5, 1), st.floats(1.5, 100), st.integers(1, 64))
def test_a_slow_first_batch_is_soon_forgotten(seconds, times, size):
    pace = pace_of([(size, seconds * times)] + [(size, seconds)] * 30)
    assert pace.batch(size) <= seconds * 1.2


@given(BATCHES, st.floats(0, 500), st.floats(0, 500), st.floats(0, 1), st.integers(1, 64))
def test_who_comes_later_waits_no_less(batches, waiting, more, elapsed, most):
    pace = pace_of(batches)
    first = predicted(pace, Queue(waiting, most, elapsed), 1, most)
    second = predicted(pace, Queue(waiting + most * int(more), most, elapsed), 1, most)
    assert second >= first - 1e-9


def test_the_wait_is_the_rest_of_this_batch_the_full_ones_ahead_and_the_own():
    pace = line(0.004, 0.001, (1, 32, 4, 16, 2, 8) * 20)
    assert predicted(pace, Queue(), 1, 8) == pytest.approx(0.005, rel=0.05)
    assert predicted(pace, Queue(0, 8, 0.004), 1, 8) == pytest.approx(0.008 + 0.005, rel=0.05)
    assert predicted(pace, Queue(19, 8, 0.0), 1, 8) == pytest.approx(0.012 + 2 * 0.012 + 0.008, rel=0.05)
    assert predicted(pace, Queue(0, 0, 0.0), 100, 8) == pytest.approx(0.104, rel=0.05)  # alone, and larger than a batch


def test_an_overdue_batch_is_expected_to_take_as_long_again():
    pace = line(0.004, 0.001, (1, 32, 4, 16, 2, 8) * 20)
    assert predicted(pace, Queue(0, 8, 5.0), 1, 8) == pytest.approx(5.0, rel=0.05)


@given(BATCHES, st.integers(1, 512), st.floats(1e-4, 20))
def test_an_affordable_batch_is_within_the_bounds(batches, most, target):
    pace = pace_of(batches)
    work = affordable(pace, most, target)
    assert min(1, most) <= work <= most
    assert affordable(pace, most, None) == most
    fixed = pace.batch(0.0)
    if 1 < work < most:
        assert pace.batch(work) <= max(target / 2, 1.25 * fixed) * 1.001 + 1e-9


def test_half_the_target_is_spent_on_a_batch():
    pace = line(0.004, 0.001, (1, 32, 4, 16, 2, 8) * 20)
    assert affordable(pace, 128, 0.04) == pytest.approx(16, rel=0.05)
    assert affordable(pace, 8, 0.04) == 8


def test_a_batch_is_given_up_while_who_waits_has_time_left_and_not_sooner_than_is_sure():
    assert given_up_after(None, 60) == 30
    assert given_up_after(0.01, 60) == 20
    assert given_up_after(1.2, 60) == 24
    assert given_up_after(5.0, 60) == 30
    assert given_up_after(25.0, 60) == 50  # it is known to be slow
    assert given_up_after(100.0, 60) == 60
    assert given_up_after(0.01, 5) == 2.5


@given(st.none() | st.floats(0, 1e4), st.floats(0, 1e4))
def test_a_batch_is_given_up_before_its_calls_are(expected, left):
    assert given_up_after(expected, left) <= left
    assert expected is None or given_up_after(expected, left) >= min(left / 2, 2 * expected)
