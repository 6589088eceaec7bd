"""Keeping checkpoints while training goes on: each rank has a thread write its part, rank 0's then stores the whole, one at a
time.

`loop` calls it. What goes wrong in it, such as a full disk, is told and costs that checkpoint alone: the last good one stays,
and training goes on.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from modelyard.errors import ModelyardError
from modelyard.kinds import Cancelled, JobContext
from modelyard.training.staging import set_aside

# Seconds between two looks at how much of a checkpoint that is waited for is written.
_LOOK = 0.1
# How much less the thread presses for a processor than training does.
_NICE = 10


class Keeper:
    """At most one checkpoint is under way. `last`: how many are kept, beside the best."""

    def __init__(self, context: JobContext, last: int = 1) -> None:
        self._context = context
        self._last = last
        self._thread: threading.Thread | None = None
        self._folder = context.work
        self.failed = 0

    def keep(self, step: int, folder: Path, write: Callable[[Path], None], score: float | None = None) -> None:
        """Have `write` fill `folder`, and rank 0 store it; returns at once, but first waits for the one before."""
        self.wait()
        self._folder = folder
        self._thread = threading.Thread(target=self._keep, args=(step, folder, write, score), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is under way. A sign of life is given as often as more of it is written; while it is stored
        control owes the answer. Raises `Cancelled` where the job is asked to stop meanwhile."""
        thread, written = self._thread, (-1, 0)
        while thread is not None and thread.is_alive():
            thread.join(_LOOK)
            if (now := _written(self._folder)) != written:
                written = now
                self._context.check()
        self._thread = None

    def _keep(self, step: int, folder: Path, write: Callable[[Path], None], score: float | None) -> None:
        _make_way()
        began, first = time.monotonic(), self._context.rank == 0
        try:
            write(folder)
            if first:
                self._context.checkpoint(step, folder, score=score, last=self._last)
        except Cancelled:
            return  # the loop hears of it too; what is stored at this moment is stored to its end, so the folder stays
        except (ModelyardError, OSError, RuntimeError, ValueError, MemoryError) as error:
            self.failed += 1
            self._context.log(f"WARNING: the checkpoint of {step} could not be kept, the last good one stays: {error}")
            self._context.report(checkpoints_failed=self.failed, checkpoint_error=str(error)[:500])
            if first:
                shutil.rmtree(folder, ignore_errors=True)  # who still reads it must not see it written over
        else:
            if first:
                self._context.report(checkpoint_seconds_behind=round(time.monotonic() - began, 3))
                set_aside(folder)


def _written(folder: Path) -> tuple[int, int]:
    """How many bytes its files have by now, and when one was last written."""
    size = newest = 0
    with suppress(OSError):  # it is not there yet, or no more
        for entry in os.scandir(folder):
            with suppress(OSError):
                found = entry.stat()
                size, newest = size + found.st_size, max(newest, found.st_mtime_ns)
    return size, newest


def _make_way() -> None:
    """Have this thread take the processor when training leaves it: on Linux each thread has a priority of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, 0, min(19, os.getpriority(os.PRIO_PROCESS, 0) + _NICE))
