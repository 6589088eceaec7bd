"""What a search may still begin within its time budget. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Took:
    """A trial of so many `epochs`; `seconds` it took, None where that is not known: it has not `ended`, or was reused."""

    epochs: int
    seconds: float | None
    ended: bool


def epochs_left(budget: float, spent: float, trials: Sequence[Took]) -> float:
    """Of how many epochs a trial may be that likely ends within `budget` seconds, of which so many are `spent`: by what the
    slowest so far took beside its epochs, and by the epoch. Below 0: none. Infinite while nothing is known, but then one with
    epochs is tried at a time; the first trial is always begun."""
    if not trials:
        return math.inf
    known = [(one.seconds, one.epochs) for one in trials if one.seconds is not None]
    base = max((seconds for seconds, epochs in known if not epochs), default=0.0)
    left = budget - spent - base
    if left < 0:
        return -1.0
    by_epoch = max((max(seconds - base, 0.0) / epochs for seconds, epochs in known if epochs), default=None)
    if by_epoch is None:
        return 0.0 if any(one.epochs and not one.ended for one in trials) else math.inf
    return left / by_epoch if by_epoch else math.inf
