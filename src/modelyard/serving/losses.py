"""What follows from the loss of a replica: another one at once, one after a pause, or none. A decision from values.

A model that does not load, or ends its process before it has answered anything, would have its replicas started for ever: such
losses in a row are answered with pauses, and a release that never served is given up. A replica that did its work and was ended
from outside says nothing of its model. `controller` counts and applies.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from modelyard.serving.types import DeploymentState

ATTEMPTS = 3  # losses in a row after which a release that never served is given up, and none is waited for to be whole
STEADY = timedelta(seconds=30)  # ready for so long a replica was of use, though nobody called it
_LEAST, _MOST = 0.5, 30.0  # seconds of a pause
_OUTAGE = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Loss:
    """A replica that is gone, and its release. `useful`: it had answered a call, or been ready for a while; `outage`: it never
    began, for want of the store or the executor; `hopeless`: what it was given cannot be served, now or later; `others`:
    another replica of the release is ready; `proven`: one ever was."""

    useful: bool = False
    outage: bool = False
    hopeless: bool = False
    others: bool = False
    proven: bool = False


class Next(NamedTuple):
    """What becomes of the release. `failures`: losses in a row that count against it; `pause` before the next start."""

    state: DeploymentState
    failures: int
    pause: timedelta


def after(failures: int, loss: Loss) -> Next:
    """What follows, after so many losses in a row that counted."""
    state = DeploymentState.ready if loss.others else DeploymentState.pending
    if loss.useful:
        return Next(state, 0, timedelta())
    if loss.outage:
        return Next(state, failures, _OUTAGE)
    failures += 1
    if (loss.hopeless or failures >= ATTEMPTS) and not (loss.others or loss.proven):
        return Next(DeploymentState.failed, failures, timedelta())
    return Next(state, failures, pause(failures))


def pause(failures: int) -> timedelta:
    """Before the next start after so many losses in a row: none after the first, then 0.5 s, doubled, at most 30 s."""
    return timedelta(seconds=min(_MOST, _LEAST * 2 ** min(failures - 2, 10)) if failures > 1 else 0.0)
