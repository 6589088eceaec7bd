"""The best size of a batch, measured: as many rows as make the model fast, and no more, since every further one waits for all.

A replica asks once its model is loaded and before it is ready, where nobody told it the size. Inputs are made up from the
signature. What cannot be measured so, a model of texts say, gets the size of `DEFAULT`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modelyard.serving.batching import SPARE, TYPICAL, Forward
from modelyard.tensors import DATATYPES, Array, Signature

DEFAULT = 128
BUDGET = 0.15  # seconds for all
_LARGEST = 256
_ENOUGH = 0.95  # of the best rate
# Seconds that a batch costs the replica for being one, beyond the model: chosen, handed to a thread and back, answered.
HANDLING = 60e-6
_TIMES = 3  # each size is tried so often, where that is quick
_QUICK = 0.002  # seconds
_DIM = 16  # the size of open dims beyond the batch
# Whole numbers that are 1: any token, and all are there. Others may be positions, of which 0 alone is sure to be known.
_ONES = ("input_ids", "attention_mask")
_MOST_BYTES = 64 << 20
_SLOW = 4  # rows, where a model is too slow to try more than one


@dataclass(frozen=True, slots=True)
class Best:
    """`rows` of the best batch, and the (rows, seconds) it was found by; `one` is a row like those it was found with."""

    rows: int
    times: tuple[tuple[int, float], ...]
    one: Mapping[str, Array]

    def to_json(self) -> dict[str, float]:
        """`us_a_row` at the size that was measured and is nearest to the best."""
        rows, seconds = min(self.times, key=lambda pair: abs(pair[0] - self.rows))
        return {"rows": self.rows, "us_a_row": round(seconds / rows * 1e6, 2)}


def synthetic(signature: Signature, ragged: Mapping[str, int], rows: int) -> dict[str, Array] | None:
    """Ones in the shape of the signature, of so many rows, but zeros for whole numbers other than tokens and their mask; None
    where it does not tell what would fit."""
    arrays: dict[str, Array] = {}
    for spec in signature.inputs:
        if spec.shape is None or not spec.shape or spec.datatype not in DATATYPES or spec.datatype == "BYTES":
            return None
        length = TYPICAL if spec.name in ragged else _DIM
        dims = [rows, *(length if dim < 0 and at == 0 else _DIM if dim < 0 else dim for at, dim in enumerate(spec.shape[1:]))]
        dtype = DATATYPES[spec.datatype]
        arrays[spec.name] = np.full(dims, spec.name in _ONES or dtype.kind not in "iu", dtype)
    return arrays


def measure(
    forward: Forward,
    make: Callable[[int], Mapping[str, Array] | None],
    budget: float = BUDGET,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[int, float]]:
    """Seconds of a forward at 1, 2, 4, … rows, for as long as larger ones are faster a row and fit the budget. Raises what
    `forward` does."""
    began = clock()
    times: list[tuple[int, float]] = []
    rows = 1
    while rows <= _LARGEST and (batch := make(rows)) is not None and sum(a.nbytes for a in batch.values()) <= _MOST_BYTES:
        seconds = _least(forward, batch, clock, warm=not times)
        times.append((rows, seconds))
        best = max(rate(n, s) for n, s in times)
        no_better = all(rate(n, s) < best * _ENOUGH for n, s in times[-2:])
        # The next is twice this one at worst, but for what a first time costs.
        if no_better or clock() - began + 2.5 * seconds > budget:
            break
        rows *= 2
    return times


def _least(forward: Forward, batch: Mapping[str, Array], clock: Callable[[], float], *, warm: bool) -> float:
    """The least seconds of a few tries: what disturbs them only adds. The first forward of all is no measure where it can be
    repeated."""
    found: list[float] = []
    for _ in range(_TIMES + 1):
        began = clock()
        forward(batch)
        found.append(max(clock() - began, 1e-7))
        if found[-1] > _QUICK and not (warm and len(found) == 1 and found[0] < BUDGET / 5):
            break
    return min(found)


def rate(rows: int, seconds: float) -> float:
    """Rows a second in batches of so many, each of which takes the model so long."""
    return rows / (seconds + HANDLING)


def choose(times: Sequence[tuple[int, float]]) -> int:
    """The least rows whose rate is within a twentieth of the best; of a model too slow to try more than one row, a few."""
    if not times:
        return DEFAULT
    if len(times) == 1:
        return _SLOW
    best = max(rate(rows, seconds) for rows, seconds in times)
    return next(rows for rows, seconds in times if rate(rows, seconds) >= _ENOUGH * best)


def extended(times: Sequence[tuple[int, float]]) -> int:
    """The rows of the best batch where calls differ in length: at least those of `choose`, and at most twice as many as were
    tried. What a batch costs for being one is `1 / SPARE` of it then, since so much padding is accepted to save it."""
    least = choose(times)
    if len(times) < 2:
        return least
    (few, first), (most, last) = times[0], times[-1]
    row = (last - first) / (most - few)
    if row <= 0:
        return least
    fixed = first / row - few
    return max(least, min(round(SPARE * fixed), 2 * most))


def find(forward: Forward, signature: Signature, ragged: Mapping[str, int]) -> Best | None:
    """The best batch of a model; None where it cannot be measured. Raises what `forward` does."""
    one = synthetic(signature, ragged, 1)
    if one is None:
        return None
    times = measure(forward, lambda rows: synthetic(signature, ragged, rows))
    return Best((extended if ragged else choose)(times), tuple(times), one) if times else None
