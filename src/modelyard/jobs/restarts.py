"""When a job whose gang was lost is started again, as pure functions: how long to wait, and how to say so.

`endings` calls these where an attempt ends, `types.Job` where it is shown. A job that gets on, from checkpoint to checkpoint,
is started again at once; one that does not, ever later: what kills it is likely still there.
"""

from __future__ import annotations

import math
from datetime import datetime

# Seconds before the first attempt that follows one without a checkpoint, and between attempts at most.
_FIRST, _MOST = 0.5, 60.0


def pause(setbacks: int) -> float:
    """Seconds to wait after `setbacks` lost attempts in a row that came no further: 0, 0.5, 1, 2, 4 … 60."""
    return min(_MOST, _FIRST * 2.0 ** min(setbacks - 1, 30)) if setbacks > 0 else 0.0


def attempts(setbacks: int, restarts: int) -> str:
    """The next attempt among those the job may have to come further: 'attempt 3 of 5'."""
    return f"attempt {setbacks + 1} of {restarts + 1}"


def countdown(until: datetime | None, moment: datetime) -> str:
    """'restarts in 8 s, ' while there is something to wait for."""
    left = (until - moment).total_seconds() if until else 0.0
    return f"restarts in {math.ceil(left)} s, " if left > 0 else ""
