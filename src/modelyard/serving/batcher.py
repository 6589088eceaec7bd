"""The loop around batches: what waits, what runs, how long it takes, and whether the model still works.

A `Batcher` lives on the replica's event loop with one worker thread, so that the engine is never entered twice. `batching`
decides what goes together, `pace` how long things will take; this only claims, computes, counts and hands back.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from modelyard.errors import ModelyardError, TimedOut
from modelyard.serving.batching import Answer, Forward, Limits, Waiting, compute, next_batch, patience
from modelyard.serving.conduct import Conduct
from modelyard.serving.pace import Pace, Queue, affordable, given_up_after, predicted
from modelyard.serving.stats import Stats
from modelyard.tensors import Array

QUICK = 200e-6  # seconds
# Batches that take longer make way for what is short, on whichever processor that comes: nobody notices it of them. Seconds,
# and the niceness of the thread that computes them, for good.
LONG, COURTESY = 5e-3, 5
_NEAR = 1.0  # seconds: calls that are surely answered within are let in without a closer look
_LESSON = 16  # of the batches of a quick model every so many teach the pace: all would cost too much
_WEIGHT = 0.1  # of the newest batch in the work of a mean call

Done = Callable[[Sequence[Waiting], Sequence[Answer], int], None]


class Batcher:
    """`done(batch, answers, cpu_us)`, `given_up(call)` and `broken(error)` are called on the event loop's thread; `cpu_us` is
    what was spent in the worker thread. `target` is the seconds within which a call should be answered, None for any; `known`
    one row the model can answer. `yields(niceness)` is called once, where the model's batches are long.

    A model whose last batch took less than `QUICK` is run on the loop's own thread: handing over would take longer.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        forward: Forward,
        limits: Limits,
        done: Done,
        given_up: Callable[[Waiting], None],
        *,
        target: float | None = None,
        open_outputs: frozenset[str] = frozenset(),
        broken: Callable[[ModelyardError], None] = lambda _: None,
        known: Mapping[str, Array] | None = None,
        yields: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._loop, self._forward, self._limits, self._target = loop, forward, limits, target
        self._done, self._given_up, self._broken = done, given_up, broken
        self._open, self._yields = open_outputs, yields
        self._now_limits = limits  # `limits`, less where the target asks for smaller batches
        self._waiting: list[Waiting] = []
        self._ahead, self._since = 0, 0.0  # the work that waits, and the sum of when it began to
        # Of the present batch: its rows and work, the calls in it, when it began, and how long they waited for it, together.
        self._rows, self._running, self._calls, self._began, self._waited = 0, 0, 0, 0.0, 0.0
        self._sure = self._safe = 0.0
        self._batch: Sequence[Waiting] = ()
        self.ran = (0.0, 0.0)  # when the batch that is handed back began, and when it was computed
        self._call_work = float(limits.length)
        self._busy = self._scheduled = self._quick = False
        self._work: queue.SimpleQueue[Sequence[Waiting] | None] = queue.SimpleQueue()
        self.pace, self.stats, self._conduct = Pace(), Stats(), Conduct(forward, known)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def put(self, item: Waiting) -> None:
        """Let a call wait for the next batch: at the end of this turn of the loop, or when the present one is done."""
        item.since = now = time.perf_counter()
        self._since += now
        if item.ragged:
            item.due = self.stats.batches + patience(self._ahead, self._now_limits.most)
        self._ahead += item.work
        self._waiting.append(item)
        if not self._busy and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._next)

    def close(self) -> None:
        """Let the worker thread end after its present batch."""
        self._work.put(None)

    def at_ease(self, deadline: float) -> bool:
        """Whether a call of that deadline, a time.time(), is so surely answered in time that `overload` need not be asked: the
        model is quick, so none of its batches is old."""
        return self._quick and self._ahead < self._sure and deadline > self._safe

    def overload(self, depth: int, allowed: float) -> tuple[float, float] | None:
        """(seconds predicted, seconds allowed) where a call that comes now would not be answered in time; None where it
        would. `depth` is the calls in the replica, those that are not here yet included; `allowed` the seconds to its deadline.

        Where nothing runs the call is always taken: it costs nobody's time, and teaches the pace. Where nothing waits, only
        its deadline counts: the model must not stand still between two batches.
        """
        since = time.perf_counter() - self._began if self._busy else 0.0
        if since < _NEAR < allowed and self._ahead < self._sure:
            return None
        coming = depth - len(self._waiting) - self._calls
        if not self._busy and not self._waiting and coming <= 0:
            return None
        call = self._call_work
        waiting = self._ahead + coming * call
        if self._target is not None and waiting > 0:
            allowed = min(allowed, self._target)
        # What runs alone is a batch by itself.
        most = self._now_limits.most if self._limits.merge else call
        seconds = predicted(self.pace, Queue(waiting, self._running, since), call, most)
        return (seconds, allowed) if seconds > allowed else None

    def hung(self, now: float) -> tuple[ModelyardError, Sequence[Waiting]] | None:
        """Why the present batch will hardly end any more, and its calls, where that is so; `now` is a time.time()."""
        if not self._batch:
            return None
        elapsed = time.perf_counter() - self._began
        left = max(item.deadline for item in self._batch) - now + elapsed
        expected = self.pace.batch(self._running) if self.pace.batches else None
        if elapsed <= given_up_after(expected, left):
            return None
        return TimedOut(f"The model computed nothing for {elapsed:.1f} s and was given up."), self._batch

    def _next(self) -> None:
        self._scheduled = False
        if self._busy or not self._waiting:
            return
        now = time.time()
        self._safe = now + 2 * _NEAR
        batch, self._waiting, given_up = next_batch(self._waiting, self._now_limits, now, self.stats.batches)
        since, self._since = self._since, sum(item.since for item in self._waiting)
        for item in given_up:
            self._ahead -= item.work
            self._given_up(item)
        if not batch:
            return
        self._began = began = time.perf_counter()
        self._busy, self._calls, self._batch = True, len(batch), batch
        if not self._waiting and not given_up and self._limits.length == 1:  # all that waited goes: the sums are known
            rows = work = self._ahead
            longest, waited = 1, len(batch) * began - since
        else:
            rows, work, longest = sum(i.rows for i in batch), sum(i.work for i in batch), max(i.length for i in batch)
            waited = len(batch) * began - sum(item.since for item in batch)
        self._ahead -= work
        self._rows, self._running, self._waited = rows, rows * longest, waited
        self._call_work += _WEIGHT * (work / len(batch) - self._call_work)
        if self._quick:
            self._finish(batch, *self._compute(batch))
        else:
            self._work.put(batch)

    def _run(self) -> None:
        courteous = False
        while (batch := self._work.get()) is not None:
            if not courteous and self.pace.seconds > LONG:
                courteous = True
                mine = (os.PRIO_PROCESS, threading.get_native_id())
                os.setpriority(*mine, max(COURTESY, os.getpriority(*mine)))  # to less, as under Ray, is not allowed
                self._yields(COURTESY)
            started = time.thread_time_ns()
            answers, failed, seconds, error = self._compute(batch)
            cpu_us = (time.thread_time_ns() - started) // 1000
            self._loop.call_soon_threadsafe(self._finish, batch, answers, failed, seconds, error, cpu_us)

    def _compute(self, batch: Sequence[Waiting]) -> tuple[list[Answer], int, float, ModelyardError | None]:
        began = time.perf_counter()
        answers, failed = compute(self._forward, batch, self._open)
        seconds = time.perf_counter() - began
        calm = not failed and self._conduct.calm
        return answers, failed, seconds, None if calm else self._conduct.judge(batch, answers, failed)

    def _finish(
        self,
        batch: Sequence[Waiting],
        answers: Sequence[Answer],
        failed: int,
        seconds: float,
        error: ModelyardError | None,
        cpu_us: int = 0,
    ) -> None:
        was_quick, self._quick = self._quick, seconds < QUICK
        self._busy = False
        self.stats.batch(self._rows, seconds, self._waited, failed)
        began, work = self._began, self._running
        self.ran = (began, began + seconds)
        self._running = self._calls = 0
        self._batch = ()  # each of its calls knows its question: nobody holds them on
        if not was_quick:
            self._learn(work, time.perf_counter() - began)
        if self._waiting and not self._quick:
            self._next()  # the worker computes the next batch while this one is answered
        elif self._waiting:
            self._scheduled = True
            self._loop.call_soon(self._next)  # after a turn: more may have come
        self._done(batch, answers, cpu_us)
        if was_quick and (not self.stats.batches % _LESSON or self.pace.seconds > 4 * QUICK):
            self._learn(work, time.perf_counter() - began)
        if error is not None:
            self._broken(error)

    def _learn(self, work: int, seconds: float) -> None:
        """How long batches take, their encoding included where the model waits for it; and what follows from it."""
        pace = self.pace
        pace.learn(work, seconds)
        if self._target is not None and self._limits.merge:
            self._now_limits = replace(
                self._limits, rows=affordable(pace, self._limits.most, self._target) / self._limits.length
            )
        most = self._now_limits.most if self._limits.merge else self._call_work
        near = _NEAR if self._target is None else min(_NEAR, self._target)
        self._sure = most * (near / max(pace.batch(most), 1e-9) - 2)
