"""Whether a trial that trains is hopeless, so that its last epochs can be spared. Pure.

A sweep compares its trials with each other at the same epoch. Here they are of different sizes, and the smaller one, which has
lost more, may be worth as much: a trial is held against what nobody would want at any size, and against its own progress.
"""

from __future__ import annotations

from collections.abc import Sequence

_SURE = 2.0  # times `worst`: what the last, smallest steps gain is not foreseen


def hopeless(lost: Sequence[float], left: int, worst: float) -> bool:
    """Whether a network that `lost` so many points after each epoch so far would still lose more than `worst` after those that
    are `left`, if it went on gaining as it did in the later half so far; never in the first half of all."""
    done = len(lost)
    if left < 1 or done < max(2, left) or lost[-1] <= _SURE * worst:
        return False
    span = done // 2
    return lost[-1] - left * max(0.0, lost[-1 - span] - lost[-1]) / span > worst
