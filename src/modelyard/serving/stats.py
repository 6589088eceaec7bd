"""What a replica counts of itself, told in its HEALTH answers; counters only grow. The gateway sums them over the replicas of
a deployment and shows them as metrics; `SIZES` is the one list of buckets that both use.
"""

from __future__ import annotations

import gc
import resource
from bisect import bisect_left
from pathlib import Path
from typing import Any

# Rows of a batch.
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Stats:
    """`batches` and their `rows`; `sizes`, batches by rows, one bucket a bound of `SIZES` and one above; `compute` seconds in
    the model and `queue` seconds of calls that waited for it; `units` billed; calls `refused` at the door because they could
    not be answered in time; `failures` of the model: it raised, answered another shape, or NaN for finite inputs."""

    __slots__ = ("batches", "compute", "failures", "queue", "refused", "rows", "sizes", "units")

    def __init__(self) -> None:
        self.batches = self.rows = self.units = self.refused = self.failures = 0
        self.compute = self.queue = 0.0
        self.sizes = [0] * (len(SIZES) + 1)

    def batch(self, rows: int, compute: float, queue: float, failures: int) -> None:
        """Count a batch that was computed."""
        self.batches += 1
        self.rows += rows
        self.sizes[bisect_left(SIZES, rows)] += 1
        self.compute += compute
        self.queue += queue
        self.failures += failures

    def to_wire(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def resident(pid: int | None = None) -> int:
    """Bytes of memory that a process takes, this one by default. Raises `OSError` where it is not seen."""
    pages = Path(f"/proc/{'self' if pid is None else pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def keep_loaded() -> None:
    """What is loaded stays, and what a call makes is freed by counting: from here on look for cycles rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
