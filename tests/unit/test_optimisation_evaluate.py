from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score, f1_score, mean_squared_error, r2_score

from modelyard.errors import Invalid
from modelyard.optimisation.evaluate import (
    agreement,
    drop,
    f1,
    mse,
    paired_difference,
    r2,
    resampled_drop,
    same,
    score,
    spearman,
)


def table(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.repeat([True, True, False, False], [both, first, second, neither]),
        np.repeat([True, False, True, False], [both, first, second, neither]),
    )


def test_the_paired_interval_is_the_published_one() -> None:
    """Complete response before and after consolidation therapy (Cavo et al., 2012), as worked out by Fagerland et al., 2017."""
    found = paired_difference(*table(59, 6, 16, 80))
    assert (found.value, found.low, found.high) == pytest.approx((-0.0621, -0.1186, -0.0046), abs=5e-5)


@given(st.tuples(*[st.integers(0, 60)] * 4).filter(lambda t: sum(t) > 0))
def test_the_paired_interval_holds_the_difference_and_mirrors(counts: tuple[int, int, int, int]) -> None:
    first, second = table(*counts)
    found, mirrored = paired_difference(first, second), paired_difference(second, first)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert (mirrored.value, mirrored.low, mirrored.high) == pytest.approx((-found.value, -found.high, -found.low), abs=1e-12)


def test_the_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    random, covered, rounds = np.random.default_rng(0), 0, 400
    for _ in range(rounds):
        counts = random.multinomial(150, [0.85, 0.06, 0.03, 0.06])
        found = paired_difference(*table(*counts), 0.9)
        covered += found.low <= 0.03 <= found.high
    assert 0.86 <= covered / rounds <= 0.95


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=2, max_size=50))
def test_mse_and_r2_are_scikit_learns(pairs: list[tuple[float, float]]) -> None:
    predicted, wanted = np.array(pairs).T
    assert mse(predicted, wanted) == pytest.approx(mean_squared_error(wanted, predicted))
    if np.ptp(wanted) > 1e-3:
        assert r2(predicted, wanted) == pytest.approx(r2_score(wanted, predicted), rel=1e-6, abs=1e-9)


@given(st.lists(st.tuples(st.integers(-9, 9), st.floats(-1e3, 1e3)), min_size=2, max_size=50))
def test_rho_is_scipys(pairs: list[tuple[float, float]]) -> None:
    one, two = np.array(pairs, np.float64).T
    if np.ptp(one) and np.ptp(two):
        assert spearman(one, two) == pytest.approx(spearmanr(one, two).statistic, abs=1e-9)


def test_rho_where_nothing_differs_or_a_figure_is_none() -> None:
    flat, rising = np.ones(3), np.arange(3.0)
    assert (spearman(flat, flat), spearman(flat, rising), spearman(rising, flat)) == (1.0, 0.0, 0.0)
    assert np.isnan(spearman(np.array([1.0, np.nan, 2.0]), rising))
    assert drop(rising, rising**3, rising, "spearman").value == 0.0


def test_r2_of_constants_is_scikit_learns_too() -> None:
    constant = np.full(3, 2.0)
    for predicted in (constant, constant + 1):
        assert r2(predicted, constant) == r2_score(constant, predicted)


@pytest.mark.parametrize("value", [0.1, -1e6 / 3, 1e-30, 0.0])
def test_what_differs_by_rounding_is_one_number(value: float) -> None:
    flat = np.full(99, value)
    assert same(flat)
    assert same(flat * (1 + 1e-15 * np.arange(99)))
    assert not same(np.append(flat, value * (1 + 1e-6) or 1e-30))
    assert (r2(flat, flat), r2(flat + 0.5, flat), r2(flat * (1 + 1e-9) + 1e-40, flat)) == (1, 0, 0)
    assert (agreement(flat, flat, "r2"), agreement(flat, flat + 0.5, "r2")) == (1, 0)


def test_resamples_in_which_no_number_differs_are_drawn_again() -> None:
    """99 of 100 are one number, and more than a third of resamples miss the other."""
    random, wanted = np.random.default_rng(0), np.array([0.1] * 99 + [5.0])
    good, bad = wanted + 0.01 * random.standard_normal(100), wanted + 0.2 * random.standard_normal(100)
    value, drawn = resampled_drop(good, bad, wanted, "r2")
    lost = 100 * (r2_score(wanted, good) - r2_score(wanted, bad))
    assert value == pytest.approx(lost)
    assert lost / 10 < drawn.min() <= drawn.max() < 10 * lost
    own = score(bad, wanted, "r2")
    assert 0.5 < own.low < own.high < 1


def test_accuracy_is_scored_and_its_drop_counted_in_points() -> None:
    wanted = np.arange(100) % 10
    worse = wanted.copy()
    worse[0] += 1
    assert score(worse, wanted, "accuracy").value == accuracy_score(wanted, worse)
    lost = drop(wanted, worse, wanted, "accuracy")
    assert lost.value == 1.0
    assert lost.low < 1 < lost.high
    assert drop(worse, wanted, wanted, "accuracy").value == -1.0


def test_r2_is_scored_and_its_drop_counted_in_points() -> None:
    random = np.random.default_rng(0)
    wanted = random.standard_normal(400)
    good, bad = wanted + 0.1 * random.standard_normal(400), wanted + 0.5 * random.standard_normal(400)
    own = score(bad, wanted, "r2")
    assert own.value == pytest.approx(r2_score(wanted, bad))
    assert own.low < own.value < own.high < own.low + 0.2
    lost = drop(good, bad, wanted, "r2")
    assert lost.value == pytest.approx(100 * (r2_score(wanted, good) - r2_score(wanted, bad)))
    assert 0 < lost.low < lost.value < lost.high
    assert drop(good, good, wanted, "r2").to_json() == {"value": 0, "low": 0, "high": 0}


def test_bootstrap_intervals_repeat_by_seed_and_widen_with_confidence() -> None:
    wanted = np.random.default_rng(1).standard_normal(50)
    predicted = wanted + np.random.default_rng(2).standard_normal(50)
    assert score(predicted, wanted, "r2", seed=3) == score(predicted, wanted, "r2", seed=3)
    narrow, wide = score(predicted, wanted, "r2", 0.6), score(predicted, wanted, "r2", 0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_rows_must_match() -> None:
    for predicted, wanted in ((np.ones(2), np.ones(3)), (np.ones(0), np.ones(0)), (np.ones((2, 1)), np.ones(2))):
        with pytest.raises(Invalid, match="the same rows"):
            score(predicted, wanted, "accuracy")


def test_agreement_is_between_models_not_with_the_truth() -> None:
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 0]), "accuracy") == 0.75
    assert agreement(np.array([1.0, 2.0]), np.array([1.0, 2.0]), "r2") == 1


@pytest.mark.parametrize("metric", ["r2", "spearman"])
def test_the_resampled_drop_is_what_its_interval_is_read_from(metric: str) -> None:
    random = np.random.default_rng(0)
    wanted = random.standard_normal(200)
    good, bad = wanted + 0.1 * random.standard_normal(200), wanted + 0.4 * random.standard_normal(200)
    value, drawn = resampled_drop(good, bad, wanted, metric, seed=3)
    stated = drop(good, bad, wanted, metric, 0.9, seed=3)
    assert drawn.tolist() == sorted(drawn)
    assert (value, *np.quantile(drawn, [0.05, 0.95])) == pytest.approx((stated.value, stated.low, stated.high))


ROW = st.tuples(st.integers(-1, 5), st.integers(0, 3), st.integers(0, 3))
ANSWERED = st.lists(ROW, min_size=1, max_size=40).filter(lambda rows: any(times for _, _, times in rows))


@given(ANSWERED)
def test_f1_is_scikit_learns_also_of_rows_that_count_several_times(rows: list[tuple[int, int, int]]) -> None:
    predicted, wanted, times = np.array(rows).T
    there = np.unique(wanted)
    how = {"labels": there, "average": None, "zero_division": 0}
    assert f1(predicted, wanted) == pytest.approx(f1_score(wanted, predicted, **how))
    assert f1(predicted, wanted, times) == pytest.approx(f1_score(wanted, predicted, sample_weight=times, **how))
    assert score(predicted, wanted, "f1").value == pytest.approx(f1(predicted, wanted).mean())


def test_a_class_that_is_not_drawn_does_not_count_in_macro_f1() -> None:
    """One of 20 rows: a resample without it of a model that is always right is right, too."""
    wanted = np.array([0] * 10 + [1] * 9 + [2])
    assert score(wanted, wanted, "f1").to_json() == {"value": 1, "low": 1, "high": 1}


def test_places_are_shares_with_the_intervals_of_shares() -> None:
    texts, places = np.array([f"text {row}" for row in range(40)], object), 1 / np.array([1] * 30 + [5] * 10)
    worse = 1 / np.array([1] * 27 + [5] * 3 + [20] * 10)
    right = np.arange(40) < 30
    assert score(places, texts, "recall@1") == score(right, np.ones(40, bool), "accuracy")
    lost = drop(right, np.arange(40) < 27, np.ones(40, bool), "accuracy")
    assert drop(places, worse, texts, "recall@1") == lost
    assert drop(places, worse, texts, "recall@10").value == 25


def test_the_drop_of_macro_f1_is_paired_and_counts_rare_classes() -> None:
    """A class of 2 in 100 rows that is never answered costs half of macro F1, and two points of accuracy."""
    wanted = np.array([0] * 980 + [1] * 20)
    lost = drop(wanted, np.zeros(1000, int), wanted, "f1", 0.9)
    assert drop(wanted, np.zeros(1000, int), wanted, "accuracy").value == 2.0
    assert lost.low < lost.value == pytest.approx(50.5, abs=0.1)
    assert lost.high < 51.2
    assert drop(wanted, wanted, wanted, "f1").to_json() == {"value": 0, "low": 0, "high": 0}
