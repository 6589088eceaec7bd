"""Batching: what waits goes together. Nothing waits for company: the next batch is whatever came in while the last one ran.

`next_batch` decides, `compute` joins, runs and splits; `Batcher` is the loop around them, on the replica's event loop and one
worker thread, so that the engine is never entered twice. It knows arrays and rows, no engine, door or frame.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np

from modelyard.errors import Internal, ModelyardError
from modelyard.tensors import Array

_NAME = itemgetter(0)
QUICK = 200e-6  # seconds
Forward = Callable[[Mapping[str, Array]], Mapping[str, Array]]
Answer = Mapping[str, Array] | ModelyardError


@dataclass(frozen=True, slots=True)
class Limits:
    """`rows` in one batch; `merge` False where the engine's batch dim is fixed: every call runs alone."""

    rows: int = 128
    merge: bool = True


@dataclass(slots=True, eq=False)
class Waiting:
    """A call ready to be computed: its arrays, all of `rows` rows, and who waits (`call`, opaque here). `kind` is equal for
    calls that may share a batch."""

    arrays: Mapping[str, Array]
    rows: int
    deadline: float
    call: Any
    cancelled: bool = False
    kind: object = field(init=False)

    def __post_init__(self) -> None:
        kinds = [(name, array.dtype, array.shape[1:]) for name, array in self.arrays.items()]
        self.kind = kinds[0] if len(kinds) == 1 else sorted(kinds, key=_NAME)
        for array in self.arrays.values():
            if not array.ndim:
                self.kind = object()  # without a batch dim there is nothing to join


def next_batch(waiting: Sequence[Waiting], limits: Limits, now: float) -> tuple[list[Waiting], list[Waiting], list[Waiting]]:
    """(to compute now, to wait on, given up), each in order of arrival. The eldest call decides what kind the batch is, and
    every later call of that kind joins while there is room; a call larger than a batch runs alone."""
    given_up = [item for item in waiting if item.cancelled or item.deadline <= now]
    alive = [item for item in waiting if not item.cancelled and item.deadline > now] if given_up else waiting
    if not alive:
        return [], [], given_up
    kind, rows = alive[0].kind, alive[0].rows
    batch, rest = [alive[0]], []
    room = limits.merge
    for item in alive[1:]:
        if room and item.kind == kind:
            if rows + item.rows <= limits.rows:
                batch.append(item)
                rows += item.rows
                continue
            room = False  # a smaller, later call does not overtake this one
        rest.append(item)
    return batch, rest, given_up


def compute(forward: Forward, batch: Sequence[Waiting]) -> list[Answer]:
    """One answer a call. Where a batch of several fails, each call is tried alone, so that one bad call fails by itself."""
    try:
        return split(forward(join(batch)), batch)
    except ModelyardError as error:
        failure = error
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - a model's code may raise anything, and exit
        failure = Internal(f"The model failed: {type(error).__name__}: {_first_line(error)}")
    if len(batch) == 1:
        return [failure]
    return [answer for item in batch for answer in compute(forward, [item])]


def join(batch: Sequence[Waiting]) -> dict[str, Array]:
    """The arrays of a batch, row after row. They may be written to: views of a request's bytes are copied."""
    if len(batch) == 1:
        arrays = batch[0].arrays
        return {name: array if array.flags.writeable else array.copy() for name, array in arrays.items()}
    return {name: np.concatenate([item.arrays[name] for item in batch]) for name in batch[0].arrays}


def split(outputs: Mapping[str, Array], batch: Sequence[Waiting]) -> list[Answer]:
    """Each call's rows of the outputs. Raises `Internal` where an output has not as many rows as the batch."""
    total = sum(item.rows for item in batch)
    for name, array in outputs.items():
        if not isinstance(array, np.ndarray) or array.ndim == 0 or array.shape[0] != total:
            shape = list(array.shape) if isinstance(array, np.ndarray) else type(array).__name__
            raise Internal(f"The model answered '{name}' with {shape} for {total} rows; expected {total} rows.")
    if len(batch) == 1:
        return [outputs]
    answers: list[Answer] = []
    at = 0
    for item in batch:
        answers.append({name: array[at : at + item.rows] for name, array in outputs.items()})
        at += item.rows
    return answers


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:300]


class Batcher:
    """The loop. `done(batch, answers, cpu_us)` and `given_up(call)` are called on the event loop's thread; `cpu_us` is what
    was spent in the worker thread.

    A model whose last batch took less than `QUICK` is run on the loop's own thread: handing over would take longer.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        forward: Forward,
        limits: Limits,
        done: Callable[[Sequence[Waiting], Sequence[Answer], int], None],
        given_up: Callable[[Waiting], None],
    ) -> None:
        self._loop, self._forward, self._limits = loop, forward, limits
        self._done, self._given_up = done, given_up
        self._waiting: list[Waiting] = []
        self._busy = self._scheduled = self._quick = False
        self._work: queue.SimpleQueue[Sequence[Waiting] | None] = queue.SimpleQueue()
        self.steps = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def put(self, item: Waiting) -> None:
        """Let a call wait for the next batch: at the end of this turn of the loop, or when the present one is done."""
        self._waiting.append(item)
        if not self._busy and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._next)

    def close(self) -> None:
        """Let the worker thread end after its present batch."""
        self._work.put(None)

    def _next(self) -> None:
        self._scheduled = False
        if self._busy or not self._waiting:
            return
        batch, self._waiting, given_up = next_batch(self._waiting, self._limits, time.time())
        for item in given_up:
            self._given_up(item)
        if not batch:
            return
        self._busy = True
        if self._quick:
            started = time.perf_counter()
            answers = compute(self._forward, batch)
            self._finish(batch, answers, 0, time.perf_counter() - started)
        else:
            self._work.put(batch)

    def _run(self) -> None:
        while (batch := self._work.get()) is not None:
            began, started = time.perf_counter(), time.thread_time_ns()
            answers = compute(self._forward, batch)
            cpu_us = (time.thread_time_ns() - started) // 1000
            self._loop.call_soon_threadsafe(self._finish, batch, answers, cpu_us, time.perf_counter() - began)

    def _finish(self, batch: Sequence[Waiting], answers: Sequence[Answer], cpu_us: int, seconds: float) -> None:
        was_quick, self._quick = self._quick, seconds < QUICK
        self._busy = False
        self.steps += 1
        if self._waiting and not was_quick:
            self._next()  # the worker computes the next batch while this one is answered
        elif self._waiting:
            self._scheduled = True
            self._loop.call_soon(self._next)  # after a turn: more may have come
        self._done(batch, answers, cpu_us)
