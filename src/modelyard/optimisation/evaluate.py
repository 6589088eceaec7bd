"""How good a model is, and how sure that is: scores with confidence intervals, and what a variant loses against the original on
the same rows. Pure functions over predictions; they know no model and no dataset.

Classification is scored by accuracy, and told of in macro F1, too; regression by R², similarities of texts by Spearman's ρ,
texts that are answered and texts that are found by what `counts` counts; the drop of each counts in points.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from modelyard.errors import Invalid
from modelyard.optimisation import counts
from modelyard.optimisation.evidence import COUNTED, ERRORS, SHARES
from modelyard.optimisation.intervals import Interval, newcombe, wilson
from modelyard.tensors import Array

_RESAMPLES = 1000
_ROUNDING = 1e-20  # of squares: what differs by less than in the tenth digit is the same number


def right(predicted: Array, wanted: Array, metric: str) -> Array:
    """BOOL [rows]: which are right, by a metric that is the share of those."""
    found: Array = predicted == wanted if metric == "accuracy" else counts.counts(predicted, wanted, metric)[:, 0] > 0
    return found


def paired_difference(first: Array, second: Array, confidence: float = 0.95) -> Interval:
    """Share right in `first` minus share right in `second`, both bool [rows] over the same rows, by Newcombe's interval."""
    both, one, two, neither = paired(first, second)
    return newcombe(both, one, two, neither, confidence)


def paired(first: Array, second: Array) -> tuple[int, int, int, int]:
    """How many rows are right in both, in the first alone, in the second alone, in neither."""
    return (
        int((first & second).sum()),
        int((first & ~second).sum()),
        int((~first & second).sum()),
        int((~first & ~second).sum()),
    )


def mse(predicted: Array, wanted: Array) -> float:
    """Mean squared error."""
    return float(np.mean((predicted.astype(np.float64) - wanted) ** 2))


def r2(predicted: Array, wanted: Array) -> float:
    """Coefficient of determination: 1 is perfect, 0 is as good as the mean. Where `wanted` is one number but for rounding: 1 if
    perfect, else 0."""
    return float(_r2s((predicted.astype(np.float64) - wanted)[None] ** 2, wanted.astype(np.float64), np.ones(len(wanted)))[0])


def spearman(predicted: Array, wanted: Array) -> float:
    """Spearman's rank correlation ρ (1904), ties by their mean rank: 1 where the order is the same. Where either is constant: 1
    if both are, else 0. NaN where a figure is."""
    return float(_ranked([predicted], wanted)(np.arange(len(wanted)))[0])


def same(numbers: Array) -> bool:
    """Whether all of [rows], at least one, are one number but for rounding; also where one is NaN."""
    return not _spread(numbers, np.ones(len(numbers)))


def f1(predicted: Array, wanted: Array, times: Array | None = None) -> Array:
    """FP64 [classes]: of each class that some row is of, in their order, the harmonic mean of precision and recall (C. J. van
    Rijsbergen, 1979), 0 where it is never right. `predicted`, `wanted`: whole numbers [rows], below 0 where none is answered;
    rows count `times`."""
    times, answered = np.ones(len(wanted)) if times is None else times, predicted >= 0
    classes = np.flatnonzero(np.bincount(wanted))
    most = 1 + max(int(wanted.max()), int(predicted.max()))
    right = np.bincount(wanted, times * (predicted == wanted), most)
    both = np.bincount(wanted, times, most) + np.bincount(predicted[answered], times[answered], most)
    found: Array = np.divide(2 * right, both, out=np.zeros(most), where=both > 0)[classes]
    return found


def score(predicted: Array, wanted: Array, metric: str, confidence: float = 0.95, seed: int = 0) -> Interval:
    """A share of rows (Wilson) or another metric (percentile bootstrap over rows: B. Efron and R. Tibshirani, 1993) of
    predictions [rows]."""
    _check(predicted, wanted)
    if metric in SHARES:
        return wilson(int(right(predicted, wanted, metric).sum()), len(wanted), confidence)
    return _bootstrap([predicted], wanted, metric, lambda values: values[:, 0], confidence, seed)


def drop(original: Array, variant: Array, wanted: Array, metric: str, confidence: float = 0.95, seed: int = 0) -> Interval:
    """What `variant` loses against `original` on the same rows, in points (100 × the metric, of errors what is added); negative
    is a gain. Newcombe's paired interval for shares of rows, a paired percentile bootstrap for the others."""
    _check(original, wanted)
    _check(variant, wanted)
    if metric in SHARES:
        found = paired_difference(right(original, wanted, metric), right(variant, wanted, metric), confidence)
    else:
        found = _bootstrap([original, variant], wanted, metric, _lost(metric), confidence, seed)
    # Rounded so that 1 of 100 rows is 1.0 points, not 1.0000000000000009 and past a budget of 1.
    return Interval(*(round(100 * value, 9) for value in (found.value, found.low, found.high)))


def agreement(original: Array, variant: Array, metric: str) -> float:
    """How alike two models predict, up to 1: the share of equal answers; of numbers the metric of one against the other."""
    return float(np.mean(original == variant)) if metric in COUNTED | SHARES else worth(variant, original, metric)


def worth(predicted: Array, wanted: Array, metric: str) -> float:
    """The metric of predictions [rows], without its interval."""
    if metric in SHARES:
        return float(np.mean(right(predicted, wanted, metric)))
    return float(_scorer([predicted], wanted, metric)(np.arange(len(wanted)))[0])


def resampled_drop(original: Array, variant: Array, wanted: Array, metric: str, seed: int = 0) -> tuple[float, Array]:
    """As `drop`, of any metric but shares of rows: what is lost, and the same in 1,000 resamples of the rows, sorted."""
    _check(original, wanted)
    _check(variant, wanted)
    value, drawn = _resampled([original, variant], wanted, metric, _lost(metric), seed)
    return 100 * value, np.sort(100 * drawn)


def _bootstrap(
    models: list[Array], wanted: Array, metric: str, statistic: Callable[[Array], Array], confidence: float, seed: int
) -> Interval:
    value, drawn = _resampled(models, wanted, metric, statistic, seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, min(value, float(low)), max(value, float(high)))


def _resampled(
    models: list[Array], wanted: Array, metric: str, statistic: Callable[[Array], Array], seed: int
) -> tuple[float, Array]:
    """`statistic` maps the metric of each model, [resamples, models], to [resamples]; the same rows are drawn for all. Rows of
    one number have no R²: such a draw is made again, for counted as no loss it would draw the bounds in."""
    scored = _scorer(models, wanted, metric)
    random, rows = np.random.default_rng(seed), len(wanted)
    again = metric == "r2" and not same(wanted)
    drawn: list[Array] = []
    while len(drawn) < _RESAMPLES:
        some = random.integers(0, rows, rows)
        if not (again and same(wanted[some])):
            drawn.append(scored(some))
    return float(statistic(scored(np.arange(rows))[None])[0]), statistic(np.stack(drawn))


def _lost(metric: str) -> Callable[[Array], Array]:
    """[resamples, (original, variant)] → what is lost between them."""
    original, variant = (1, 0) if metric in ERRORS else (0, 1)
    return lambda values: values[:, original] - values[:, variant]


def _scorer(models: list[Array], wanted: Array, metric: str) -> Callable[[Array], Array]:
    """The metric of each model over rows, which may be there several times."""
    if metric in COUNTED:
        return counts.scorer(models, wanted, metric)
    made = {"spearman": _ranked, "f1": _averaged}.get(metric, _squared)
    return made([model.astype(np.float64) for model in models], wanted.astype(np.float64))


def _squared(models: list[Array], wanted: Array) -> Callable[[Array], Array]:
    """R² of each model over rows, which may be there several times."""
    squares, rows = np.stack([(predicted - wanted) ** 2 for predicted in models]), len(wanted)
    return lambda drawn: _r2s(squares, wanted, np.bincount(drawn, minlength=rows).astype(np.float64))


def _averaged(models: list[Array], wanted: Array) -> Callable[[Array], Array]:
    """The same of macro F1: the mean over the classes that were drawn."""
    truth, answers, rows = wanted.astype(np.int64), [model.astype(np.int64) for model in models], len(wanted)
    classes = np.unique(truth)

    def scored(drawn: Array) -> Array:
        times = np.bincount(drawn, minlength=rows).astype(np.float64)
        there = np.bincount(truth, times)[classes] > 0
        return np.array([f1(one, truth, times)[there].mean() for one in answers])

    return scored


def _ranked(models: list[Array], wanted: Array) -> Callable[[Array], Array]:
    """The same of ρ. Values are sorted once: with how often each was drawn their ranks follow by adding up."""
    rows, known = len(wanted), bool(np.isfinite(wanted).all())
    places = [np.unique(array, return_inverse=True)[1] for array in (wanted, *models)]
    finite = [known and bool(np.isfinite(predicted).all()) for predicted in models]

    def scored(drawn: Array) -> Array:
        times = np.bincount(drawn, minlength=rows).astype(np.float64)
        truth, *others = [_weighted_ranks(place, times) for place in places]
        return np.array([_correlation(one, truth, times) if ok else np.nan for one, ok in zip(others, finite, strict=True)])

    return scored


def _weighted_ranks(place: Array, times: Array) -> Array:
    """Ranks of rows that are there so many `times`; `place`: of each row's value among the different ones."""
    counts = np.bincount(place, weights=times)
    ranks: Array = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def _correlation(one: Array, two: Array, times: Array) -> float:
    """Pearson's, of rows that are there so many times; 1 where both are constant, 0 where one is."""
    one, two = one - np.average(one, weights=times), two - np.average(two, weights=times)
    spread = np.average(one**2, weights=times), np.average(two**2, weights=times)
    if min(spread) <= 1e-12:
        return float(max(spread) <= 1e-12)
    return float(np.average(one * two, weights=times) / np.sqrt(spread[0] * spread[1]))


def _r2s(squares: Array, wanted: Array, weights: Array) -> Array:
    """R² of each model from its squared errors [models, rows], rows counted `weights` times."""
    total, errors = _spread(wanted, weights), squares @ weights
    found: Array = 1 - errors / total if total else (errors == 0).astype(np.float64)
    return found


def _spread(wanted: Array, weights: Array) -> float:
    """The sum of squares around the mean, rows counted `weights` times; 0 where it is that of rounding, or no number."""
    total = weights @ (wanted - weights @ wanted / weights.sum()) ** 2
    return float(total) if total > _ROUNDING * (weights @ wanted**2) else 0.0


def _check(predicted: Array, wanted: Array) -> None:
    if predicted.shape != wanted.shape or not len(wanted):
        raise Invalid(
            f"Predictions {list(predicted.shape)} and what was wanted {list(wanted.shape)} need the same rows, at least one."
        )
