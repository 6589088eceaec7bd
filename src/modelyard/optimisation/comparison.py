"""From what two models answered to the same rows to evidence: what the variant loses, over all rows and within slices, how
alike the two answer, and how well each knows when it is right.

Called by the kinds `evaluate` and `optimise`. Pure functions over arrays; they know no model and no platform.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modelyard.data.datasets import Dataset
from modelyard.errors import Invalid
from modelyard.optimisation.counts import heaviest
from modelyard.optimisation.evaluate import agreement, drop, f1, paired, resampled_drop, right, same, worth
from modelyard.optimisation.evidence import COUNTED, SHARES, Drop, Evidence, Metric, Paired, Resampled
from modelyard.optimisation.examples import Answers
from modelyard.tensors import Array

_BINS = 15
_MOST_VALUES = 200  # of a column, that are slices
Masks = Mapping[str, Array]


def compare(
    original: Answers,
    variant: Answers,
    wanted: Array,
    metric: Metric,
    *,
    split: str,
    slices: Masks | None = None,
    columns: tuple[str, ...] = (),
    kept: Array | None = None,
    seed: int = 0,
) -> Evidence:
    """`slices`: name → BOOL [rows]; `kept`: BOOL [rows], those that count (all, where it is None). Raises `Invalid` for rows
    that can tell nothing: none, of one class, of one number; and for answers that are no numbers."""
    kept = np.ones(len(wanted), bool) if kept is None else kept
    slices = {name: mask[kept] for name, mask in (slices or {}).items()}
    original, variant, wanted = original.only(kept), variant.only(kept), wanted[kept]
    _check(original, variant, wanted, metric)
    within = {name: _drop(original, variant, wanted, metric, mask, seed) for name, mask in slices.items()}
    return Evidence(
        metric=metric,
        split=split,
        original=worth(original.predicted, wanted, metric),
        variant=worth(variant.predicted, wanted, metric),
        drop=_drop(original, variant, wanted, metric, np.ones(len(wanted), bool), seed),
        agreement=round(agreement(original.predicted, variant.predicted, metric), 9),
        calibration=_calibration(original, variant, wanted),
        slices=within,
        columns=columns,
        left_out=int((~kept).sum()),
    )


def by_class(
    original: Array, variant: Array, wanted: Array, labels: Sequence[str], confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """F1 for reports, of INT64 [rows]: {original, variant, drop: {value, low, high}} in macro F1, the drop in points with the
    interval of paired resamples, and of each class that some row is of {class, rows, original, variant}."""
    one, two, counts = f1(original, wanted), f1(variant, wanted), np.bincount(wanted)
    rows = zip(np.flatnonzero(counts).tolist(), one.tolist(), two.tolist(), strict=True)
    return {
        "original": float(one.mean()),
        "variant": float(two.mean()),
        "drop": drop(original, variant, wanted, "f1", confidence, seed).to_json(),
        "classes": [{"class": labels[k], "rows": int(counts[k]), "original": a, "variant": b} for k, a, b in rows],
    }


def by_metric(
    original: Array, variant: Array, wanted: Array, metrics: Sequence[str], confidence: float = 0.95, seed: int = 0
) -> list[dict[str, Any]]:
    """Other metrics for reports, of [rows]: [{metric, original, variant, drop: {value, low, high}}], the drop in points."""
    return [
        {
            "metric": metric,
            "original": worth(original, wanted, metric),
            "variant": worth(variant, wanted, metric),
            "drop": drop(original, variant, wanted, metric, confidence, seed).to_json(),
        }
        for metric in metrics
    ]


def by_label(labels: tuple[str, ...] | None, wanted: Array) -> dict[str, Array]:
    """The rows of each class, as 'label=shirt'; also of one that has none, since nothing is known of it then."""
    return {f"label={name}": wanted == position for position, name in enumerate(labels or ())}


def by_column(dataset: Dataset, split: str, column: str) -> dict[str, Array]:
    """The rows with each value of a column, as 'COLUMN=value'. Raises `NotFound` for one that is not there, `Invalid` for one
    without values that repeat."""
    feature = dataset.feature(column)
    if feature.type not in ("label", "text", "int"):
        raise Invalid(f"'{column}' is of type {feature.type}: slices are by a column of labels, short texts or whole numbers.")
    values = dataset.column(split, column)
    names = np.array([feature.names[value] for value in values] if feature.names else [str(value) for value in values], object)
    there = sorted(set(names))
    if len(there) > _MOST_VALUES:
        raise Invalid(f"'{column}' has {len(there):,} values in the split '{split}'; slices take at most {_MOST_VALUES}.")
    return {f"{column}={name}": names == name for name in there}


def calibration_error(confidence: Array, right: Array, bins: int = _BINS) -> float:
    """Expected calibration error of labels, 0 to 1: the mean distance of how sure a model is from how often it is right, over
    bins of equal mass (K. Nguyen and B. O'Connor, 2015, EMNLP)."""
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return float(sum(len(part) * abs(confidence[part].mean() - right[part].mean()) for part in parts) / len(order))


def _check(original: Answers, variant: Answers, wanted: Array, metric: Metric) -> None:
    if not len(wanted):
        raise Invalid("There is no row to evaluate on.")
    for who, answers in (("original", original), ("variant", variant)):
        if answers.predicted.dtype != object and not np.isfinite(answers.predicted).all():
            raise Invalid(f"The {who} answers NaN or infinity in {int((~np.isfinite(answers.predicted)).sum()):,} rows.")
    if same(wanted) if wanted.dtype.kind == "f" else len(np.unique(wanted)) < 2:
        what = "text" if wanted.dtype == object else "class" if metric == "accuracy" else "number"
        raise Invalid(f"All {len(wanted):,} rows to evaluate on are of one {what}: a model that answers nothing else is right.")


def _drop(original: Answers, variant: Answers, wanted: Array, metric: Metric, mask: Array, seed: int) -> Drop:
    one, two, truth = original.predicted[mask], variant.predicted[mask], wanted[mask]
    if metric in SHARES:
        return Paired(*paired(right(one, truth, metric), right(two, truth, metric)))
    # by numbers that are one nothing can be lost, and nothing is proved: as if there were no rows
    if not len(truth) or (metric not in COUNTED and same(truth)):
        return Resampled.of(0, 0.0, [0.0])
    value, drawn = resampled_drop(one, two, truth, metric, seed)
    worst = 100 * heaviest(two, truth, metric) if metric in COUNTED else 0.0
    return Resampled.of(len(truth), value, drawn.tolist(), worst)


def _calibration(original: Answers, variant: Answers, wanted: Array) -> tuple[float, float] | None:
    if original.confidence is None or variant.confidence is None:
        return None
    one, two = (calibration_error(a.confidence, a.predicted == wanted) for a in (original, variant) if a.confidence is not None)
    return round(one, 9), round(two, 9)
