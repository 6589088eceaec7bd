"""Intervals from counts: against scipy's, against a published example, and the gate's bound against what it promises."""

from __future__ import annotations

from math import lgamma

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from modelyard.errors import Invalid
from modelyard.optimisation.intervals import most, newcombe, wilson

CONFIDENCE = st.sampled_from([0.8, 0.9, 0.95, 0.99])
COUNTS = st.tuples(st.integers(0, 80), st.integers(0, 80), st.integers(0, 2000)).filter(lambda t: sum(t) > 0)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_scipys(counts: tuple[int, int], confidence: float) -> None:
    right, rows = counts
    ours, theirs = wilson(right, rows, confidence), binomtest(right, rows).proportion_ci(confidence, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


def test_no_rows_are_no_proportion() -> None:
    for right, rows in ((0, 0), (2, 1), (-1, 1)):
        with pytest.raises(Invalid):
            wilson(right, rows)


def test_the_paired_interval_is_the_published_one() -> None:
    """Complete response before and after consolidation therapy (Cavo et al., 2012), as worked out by Fagerland et al., 2017."""
    found = newcombe(59, 6, 16, 80)
    assert (found.value, found.low, found.high) == pytest.approx((-0.0621, -0.1186, -0.0046), abs=5e-5)


def chances(rows: int, first: float, second: float) -> list[tuple[int, int, float]]:
    """Every pair of counts that is likely enough to matter, of `rows` of which these shares are right in one alone."""

    def near(share: float) -> range:
        mean, width = rows * share, 8 * (rows * share * (1 - share)) ** 0.5 + 8
        return range(max(0, int(mean - width)), min(rows, int(mean + width)) + 1)

    found = []
    for one in near(first):
        for two in near(second):
            if one + two > rows or (two and not second):
                continue
            ways = lgamma(rows + 1) - lgamma(one + 1) - lgamma(two + 1) - lgamma(rows - one - two + 1)
            likely = ways + one * np.log(first) + (two * np.log(second) if two else 0)
            found.append((one, two, float(np.exp(likely + (rows - one - two) * np.log1p(-first - second)))))
    return found


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(
    ("rows", "truth", "second"),
    [
        (20, 0.2, 0.0),
        (30, 0.03, 0.1),
        (100, 0.02, 0.0),
        (100, 0.05, 0.05),
        (200, 0.01, 0.0),
        (500, 0.03, 0.0),
        (1000, 0.005, 0.01),
    ],
)
def test_the_bound_is_missed_no_more_often_than_it_says(rows: int, truth: float, second: float, confidence: float) -> None:
    """Exactly, over all counts: how often the bound lies at or below the true difference, so that the gate would be wrong."""
    outcomes = chances(rows, second + truth, second)
    assert sum(chance for *_, chance in outcomes) == pytest.approx(1, abs=1e-6)
    known: dict[int, int] = {}  # of each count in the first alone, from which count in the second alone on it is missed
    missed = 0.0
    for one, two, chance in outcomes:
        from_ = known.get(one)
        if from_ is None or two < from_:
            below = most(one, two, rows, confidence) <= truth
            if below:
                known[one] = two
        else:
            below = True
        missed += chance * below
    assert missed <= 1 - confidence + 1e-9


def test_without_a_difference_the_bound_is_near_the_exact_one() -> None:
    """0 of 300 rows lost: the exact upper bound is 1 - 0.05^(1/300), just under a point; ours is a little above."""
    exact = 1 - 0.05 ** (1 / 300)
    assert exact <= most(0, 0, 300, 0.95) <= 1.3 * exact


def test_no_rows_say_nothing() -> None:
    assert most(0, 0, 0, 0.95) == 1.0


@given(COUNTS, CONFIDENCE)
def test_the_bound_lies_above_the_estimate_and_falls_with_better_counts(
    counts: tuple[int, int, int], confidence: float
) -> None:
    first, second, same = counts
    rows = sum(counts)
    bound = most(first, second, rows, confidence)
    assert (first - second) / rows <= bound <= 1
    if first:
        assert most(first - 1, second, rows, confidence) <= bound  # a row that was lost is right in both
        assert most(first - 1, second + 1, rows, confidence) <= bound
    if same:
        assert most(first, second + 1, rows, confidence) <= bound + 1e-9  # a row that was wrong in both is won


@given(COUNTS, st.floats(1, 50), CONFIDENCE)
def test_more_rows_at_the_same_rates_are_surer(counts: tuple[int, int, int], times: float, confidence: float) -> None:
    first, second, _ = counts
    rows = sum(counts)
    few, many = most(first, second, rows, confidence), most(times * first, times * second, times * rows, confidence)
    assert many <= few + 1e-12
