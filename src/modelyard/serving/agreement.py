"""How many rows of two answers to the same call disagree. The gateway asks where a shadow release answers beside the stable.

What disagreeing means follows from what the task gives: labels, ids and texts are the same or not; scores of classes are read
by the best class; embeddings by their direction; numbers by how far apart they are. Small differences that come of another
engine or of quantisation are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from modelyard.tensors import Array

Bools = NDArray[np.bool_]

_LEAST_COSINE = 0.98
_RELATIVE = 0.05
# Of the outputs' spread: numbers around zero have no relative precision.
_OF_SPREAD = 0.01


def disagreeing(task: str, ours: Mapping[str, Array], theirs: Mapping[str, Array], *, spread: float = 0.0) -> tuple[int, int]:
    """Rows, and those that disagree, of two answers: output name → array whose dim 0 are the rows (one row where it has none).

    Where outputs are BYTES, integers or booleans these decide, and must be equal. Answers of other names or shapes disagree
    wholly; NaN agrees with NaN in the same place alone. `spread` is how far apart outputs of this model are where the caller
    knows it: what one call holds of a regression is often a single number."""
    pairs = {name: (_rowed(ours[name]), _rowed(theirs[name])) for name in ours.keys() & theirs.keys()}
    every = [len(_rowed(array)) for answer in (ours, theirs) for array in answer.values()]
    rows = max(every, default=0)
    if ours.keys() != theirs.keys() or any(a.shape != b.shape for a, b in pairs.values()):
        return rows, rows
    decide = [pair for pair in pairs.values() if _exact(*pair)]
    scores = [pair for pair in pairs.values() if not _exact(*pair)]
    good = np.ones(rows, np.bool_)
    for a, b in decide:
        good &= _by_row(a == b, rows)
    for a, b in scores:
        good &= _by_row(np.isnan(a) == np.isnan(b), rows)
    if not decide:
        rule = _rule(task, spread)
        for a, b in scores:
            good &= _by_row(rule(a.astype(np.float64), b.astype(np.float64)), rows)
    return rows, rows - int(good.sum())


def _rowed(array: Array) -> Array:
    return np.atleast_1d(array)


def _exact(a: Array, b: Array) -> bool:
    return a.dtype.kind != "f" or b.dtype.kind != "f"


def _by_row(same: Array, rows: int) -> Bools:
    """Which rows agree in every place; all or none where an output has other rows than the answer."""
    flat = same.reshape(len(same), math.prod(same.shape[1:])).astype(np.bool_)
    agree = np.logical_and.reduce(flat, axis=1)
    return agree if len(agree) == rows else np.full(rows, agree.all())


def _rule(task: str, spread: float) -> Callable[[Array, Array], Bools]:
    """What compares two arrays of scores, place by place or row by row."""
    if task.endswith("classification"):
        return lambda a, b: _same_class(a, b) if a.ndim > 1 and a.shape[-1] > 1 else _close(a, b, spread)
    if task.endswith("feature-extraction"):
        return _same_direction
    return lambda a, b: _close(a, b, spread)


def _same_class(a: Array, b: Array) -> Bools:
    first, second = (np.where(np.isnan(scores), -np.inf, scores).argmax(axis=-1) for scores in (a, b))
    return np.asarray(first == second, np.bool_)


def _same_direction(a: Array, b: Array) -> Bools:
    """A row is one vector, whatever its dims. Vectors of no length agree with each other alone."""
    same, a, b = _without_odd(a, b)
    first, second = _unit(a), _unit(b)
    cosine = (first * second).sum(axis=1)
    neither = ~first.any(axis=1) & ~second.any(axis=1)
    alike: Bools = (cosine >= _LEAST_COSINE) | neither
    return _by_row(same, len(a)) & alike


def _unit(vectors: Array) -> Array:
    """Rows of length 1, or 0; through the largest number, since squares may be too large or too small for a float."""
    flat = vectors.reshape(len(vectors), math.prod(vectors.shape[1:]))
    largest = np.abs(flat).max(axis=1, keepdims=True, initial=0.0)
    flat = flat / np.where(largest > 0, largest, 1.0)
    length = np.sqrt((flat * flat).sum(axis=1, keepdims=True))
    return flat / np.where(length > 0, length, 1.0)


def _close(a: Array, b: Array, spread: float) -> Bools:
    same, a, b = _without_odd(a, b)
    if not a.size:
        return same
    # Halved, since a difference of two floats may be too large for one.
    a, b = a / 2, b / 2
    wide = max(spread / 2, min(float(np.ptp(a)), float(np.ptp(b))))
    allowed = _RELATIVE * np.maximum(np.abs(a), np.abs(b)) + _OF_SPREAD * wide
    near: Bools = np.abs(a - b) <= allowed
    return same & near


def _without_odd(a: Array, b: Array) -> tuple[Bools, Array, Array]:
    """Where NaN and infinity are the same in both, and both with 0 in their place."""
    odd = ~np.isfinite(a) | ~np.isfinite(b)
    same = ~odd | (a == b) | (np.isnan(a) & np.isnan(b))
    return same, np.where(odd, 0.0, a), np.where(odd, 0.0, b)
