"""How many calls a second a key or a project may make: a bucket of calls that fills at a rate, as a function of values.

The database keeps the numbers, a gateway the buckets (`serving.quotas`). Times may come from a clock that jumps: forwards, it
fills a bucket at most; backwards, it gives nothing and takes nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

# Fractions are binary: what is a call but for their rounding is one.
_WHOLE = 1.0 - 1e-9


class Quota(NamedTuple):
    """`rate` calls a second in the long run, `burst` at once: in any t seconds burst + rate * t, never more."""

    rate: float
    burst: int

    @staticmethod
    def of(rate: float | None, burst: int | None = None) -> Quota | None:
        """None where there is no rate. A burst that is not said is what comes in a second, and at least one call."""
        return None if rate is None else Quota(rate, burst or math.ceil(rate))


def level(quota: Quota, tokens: float, at: float, now: float) -> float:
    """The calls that a bucket has room for at `now` if it had room for `tokens` at `at`."""
    return min(quota.burst, tokens + (now - at) * quota.rate) if now > at else min(quota.burst, tokens)


def wait(quota: Quota, tokens: float) -> float:
    """The seconds until a bucket with room for `tokens` calls has room for one; 0 where it has."""
    return 0.0 if tokens >= _WHOLE else (1.0 - tokens) / quota.rate
