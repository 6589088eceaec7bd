"""How fast a replica computes, learned batch by batch, and from it how long a call that comes now will take.

`batcher` teaches a `Pace` what each batch took; `predicted` and `affordable` decide, from values. Work is counted in rows, or
in padded elements where the calls of a batch differ in length: the unit is the batcher's business. It knows no clock.
"""

from __future__ import annotations

from dataclasses import dataclass

_WEIGHT = 0.2  # of the newest batch
# How much the slope is drawn to the half of proportional until batches of different sizes were seen.
_PRIOR = 0.01
# A batch is given up that takes so many times what was expected, and at least so many seconds.
_TIMES, _PATIENCE = 20.0, 20.0


class Pace:
    """Seconds of a batch by its work: a line through the latest batches, the newest weighing a fifth. The line neither
    falls nor cuts below zero: what was not seen yet is guessed between "each batch the same" and "each row the same"."""

    __slots__ = ("_covariance", "_variance", "batches", "seconds", "work")

    def __init__(self) -> None:
        self.batches = 0
        self.work = self.seconds = 0.0  # the latest batches' means
        self._variance = self._covariance = 0.0

    def learn(self, work: float, seconds: float) -> None:
        """A batch of so much work took so long."""
        self.batches += 1
        weight = max(_WEIGHT, 1 / self.batches)
        aside, late = work - self.work, seconds - self.seconds
        self.work += weight * aside
        self.seconds += weight * late
        # Batches that are all alike say nothing of the slope: it is forgotten only as far as others say something new.
        news = aside * aside
        kept = 1 - (weight if news >= self._variance else weight * news / self._variance)
        self._variance = kept * self._variance + weight * (1 - weight) * news
        self._covariance = kept * self._covariance + weight * (1 - weight) * aside * late

    @property
    def slope(self) -> float:
        """Seconds a unit of work, beyond what a batch takes for being one."""
        if not self.batches or self.work <= 0:
            return 0.0
        proportional, prior = self.seconds / self.work, _PRIOR * self.work * self.work
        slope = (self._covariance + prior * proportional / 2) / (self._variance + prior)
        return min(max(slope, 0.0), proportional)

    def batch(self, work: float) -> float:
        """Seconds a batch of so much work will take; 0 while nothing is known."""
        return max(0.0, self.seconds + self.slope * (work - self.work))


@dataclass(frozen=True, slots=True)
class Queue:
    """What is to be done before a call that comes now: `waiting` work, and a batch of `running` work (0: none) that began
    `elapsed` seconds ago."""

    waiting: float = 0.0
    running: float = 0.0
    elapsed: float = 0.0


def predicted(pace: Pace, queue: Queue, call: float, most: float) -> float:
    """Seconds until a call of so much work is answered, with batches of at most `most` work. A batch that is overdue is
    expected to take as long again as it is late: where it hangs, nobody is let in to wait for it."""
    rest = abs(pace.batch(queue.running) - queue.elapsed) if queue.running else 0.0
    whole, part = divmod(queue.waiting + call, max(most, call))
    return rest + whole * pace.batch(max(most, call)) + (pace.batch(part) if part else 0.0)


def given_up_after(expected: float | None, left: float) -> float:
    """Seconds after which a batch is held to hang that was `expected` to take so long (None: nothing is known) and began when
    its calls had so many `left`. Half of those at most, so that who waits can go elsewhere; but twice what was expected."""
    if expected is None:
        return left / 2
    return max(min(left / 2, max(_PATIENCE, _TIMES * expected)), min(left, 2 * expected))


def affordable(pace: Pace, most: float, target: float | None) -> float:
    """The work of the largest batch, at most `most`, that takes half the target: a call that just missed one waits for that
    and is computed in the next. At least 1. Where a batch of nothing takes that long already, small ones would only cost."""
    if target is None or not pace.batches or pace.batch(most) <= target / 2:
        return most
    slope, fixed = pace.slope, pace.batch(0.0)
    allowed = max(target / 2, 1.25 * fixed)
    return max(1.0, min(most, (allowed - fixed) / slope)) if slope > 0 else most
