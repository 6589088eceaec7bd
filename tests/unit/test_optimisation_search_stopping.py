"""A trial is hopeless where it loses far too much, late, and has gained too little to make up for it."""

from hypothesis import given
from hypothesis import strategies as st

from modelyard.optimisation.search.stopping import hopeless

POINTS = st.floats(-5, 100)
CURVE = st.lists(POINTS, max_size=12)
WORST = st.floats(1, 50)


@given(CURVE, st.integers(0, 12), WORST)
def test_what_is_stopped_would_need_to_gain_more_than_it_lately_did(lost: list[float], left: int, worst: float) -> None:
    if hopeless(lost, left, worst):
        assert left >= 1
        assert left <= len(lost) >= 2
        assert lost[-1] > 2 * worst
        assert lost[-1] - left * (lost[-1 - len(lost) // 2] - lost[-1]) / (len(lost) // 2) > worst


@given(CURVE, st.integers(0, 12), WORST, WORST)
def test_who_allows_more_stops_less(lost: list[float], left: int, worst: float, more: float) -> None:
    assert hopeless(lost, left, worst) or not hopeless(lost, left, worst + more)


@given(CURVE, st.integers(1, 12), WORST)
def test_what_is_near_enough_is_never_stopped(lost: list[float], left: int, worst: float) -> None:
    assert not hopeless([*lost, 2 * worst], left, worst)


def test_what_gets_nowhere_is_stopped_half_way_and_what_still_gains_is_not() -> None:
    flat, rising = [62.0, 60.0, 59.0, 59.0, 58.5], [62.0, 40.0, 22.0, 12.0, 4.0]
    assert [hopeless(flat[:at], 5 - at, 5.0) for at in range(1, 6)] == [False, False, True, True, False]
    assert not any(hopeless(rising[:at], 5 - at, 5.0) for at in range(1, 6))
    assert not any(hopeless([90.0], left, 5.0) for left in (0, 1))
