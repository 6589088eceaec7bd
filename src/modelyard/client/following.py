"""Following a job: one stream of what it says, through broken connections, to its end. `Yard.follow` calls it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from modelyard.client.outcome import ENDED
from modelyard.client.wire import Wire, segment
from modelyard.errors import TimedOut, Unavailable

# Seconds between tries to take up a broken stream of events, and in which one of them must succeed.
_AGAIN, _PATIENCE = 1.0, 60.0


def follow(wire: Wire, job: str, after: int) -> Iterator[dict[str, Any]]:
    """The job's events from number `after` on. Raises `Unavailable` once it has not been taken up again for a minute."""
    path, gives_up = f"/api/jobs/{segment(job)}", time.monotonic() + _PATIENCE
    while True:
        try:
            for event in wire.lines(f"{path}/events", after=after, follow="true"):
                after, gives_up = int(event["seq"]), time.monotonic() + _PATIENCE
                yield event
                if event["type"] == "state" and event.get("state") in ENDED:
                    return
            if wire.get(path)["state"] in ENDED:
                return
        except TimedOut:
            continue
        except Unavailable:
            if time.monotonic() > gives_up:
                raise
        time.sleep(_AGAIN)
