"""Intervals of shares, and of the difference between two models' shares on the same rows, from counts alone.

Pure Python: `evaluate` states them in reports and the gate decides by them, in control, which loads nothing heavy.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

from modelyard.errors import Invalid

_HALVINGS = 60  # of an interval at most 1 wide: past a float's precision


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the bounds of its confidence interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def wilson(right: float, rows: float, confidence: float = 0.95) -> Interval:
    """A proportion with Wilson's score interval (E. B. Wilson, 1927, J. Am. Stat. Assoc. 22), right also near 0 and 1."""
    if not 0 <= right <= rows or rows < 1:
        raise Invalid(f"{right} of {rows} is no proportion.")
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    share = right / rows
    centre = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = math.sqrt(z2 * (share * (1 - share) / rows + z2 / (4 * rows**2))) / (1 + z2 / rows)
    # At 0 and 1 the bound is the estimate itself; rounding must not put it on the wrong side.
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def newcombe(both: int, first: int, second: int, neither: int, confidence: float = 0.95) -> Interval:
    """Share right in the first minus share right in the second, where rows are right in `both`, in one alone or in `neither`:
    R. G. Newcombe, 1998, Statistics in Medicine 17, 2635–2650, method 10 (square-and-add of Wilson's, correlated)."""
    rows = both + first + second + neither
    one, two = wilson(both + first, rows, confidence), wilson(both + second, rows, confidence)
    phi = _phi(both, first, second, neither)
    difference = one.value - two.value

    def half(towards: float, away: float) -> float:
        return math.sqrt(max(0.0, towards**2 - 2 * phi * towards * away + away**2))

    low = difference - half(one.value - one.low, two.high - two.value)
    high = difference + half(one.high - one.value, two.value - two.low)
    return Interval(difference, max(-1.0, low), min(1.0, high))


def most(first: float, second: float, rows: float, confidence: float) -> float:
    """The one-sided upper bound, at `confidence`, of the share right in the first minus that in the second, of which `first`
    rows are right in the first alone and `second` in the second alone; counts may be fractions, where one only plans.

    The score interval (T. Tango, 1998, Statistics in Medicine 17, 891–908: the variance at the bound, not at the estimate),
    with half a row counted against the second (continuity), so that the bound is passed no more often than it says with few
    rows and differences, too. 1 where there are no rows.
    """
    low, high = (first - second) / rows if rows > 0 else 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if refuted(middle, first, second, rows, confidence) else (middle, high)
    return high


def refuted(difference: float, first: float, second: float, rows: float, confidence: float) -> bool:
    """Whether the counts say, at `confidence`, that the difference is not as large as this: it is then above `most`. Never
    without rows."""
    if rows <= 0:
        return False
    z = _deviations(confidence)
    linear = (2 * rows - first + second) * difference - first - second
    inside = linear**2 + 8 * rows * second * difference * (1 - difference)
    rarer = max(0.0, (math.sqrt(max(0.0, inside)) - linear) / (4 * rows))  # the most likely share of `second` then
    deviation = math.sqrt(max(0.0, rows * (2 * rarer + difference * (1 - difference))))
    return first - second + 0.5 - rows * difference <= -z * deviation


@lru_cache(64)
def _deviations(confidence: float) -> float:
    return NormalDist().inv_cdf(confidence)


def _phi(a: int, b: int, c: int, d: int) -> float:
    """Correlation of a 2×2 table, corrected for continuity where positive."""
    product = (a + b) * (c + d) * (a + c) * (b + d)
    excess: float = a * d - b * c
    if excess > 0:
        excess = max(0.0, excess - (a + b + c + d) / 2)
    return excess / math.sqrt(product) if product else 0.0
