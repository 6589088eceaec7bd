"""How fast engines are, side by side. Rounds alternate between them, so that whatever else the machine does slows all alike,
and each takes a bounded time. Called by `optimise`, with the very engines that will serve.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from modelyard.conversion.base import count
from modelyard.engines.base import BatchEngine
from modelyard.tensors import Array

ONE, MANY = 1, 32
_ROUNDS = 10
_WARM_UP = 3
_LATENCY_SHARE = 0.6  # of an engine's seconds; the rest is for throughput


@dataclass(frozen=True, slots=True)
class Speed:
    """`p50_ms`, `p99_ms`: of a forward of one row. `items_per_s`: rows a second in batches of 32, at the median batch."""

    p50_ms: float
    p99_ms: float
    items_per_s: float


UNKNOWN = Speed(math.nan, math.nan, math.nan)


def measure(
    engines: Mapping[str, BatchEngine],
    samples: Mapping[str, Array],
    seconds: float,
    tick: Callable[[], None] = lambda: None,
    cut: Callable[[Mapping[str, Array]], dict[str, Array]] = dict,
) -> dict[str, Speed]:
    """Speeds by engine, each run for about `seconds` (never less than one forward a size). `tick` is called every round; `cut`
    makes a batch of rows what the server would make of them."""
    batches = {size: cut(rows(samples, size)) for size in (ONE, MANY)}
    budgets = {ONE: seconds * _LATENCY_SHARE, MANY: seconds * (1 - _LATENCY_SHARE)}
    times: dict[str, dict[int, list[float]]] = {name: {ONE: [], MANY: []} for name in engines}
    for engine in engines.values():
        for batch in (*batches.values(),) * _WARM_UP:
            engine.forward(batch)
    for turn in range(1, _ROUNDS + 1):
        tick()
        for name, engine in engines.items():
            for size, batch in batches.items():
                _run(engine, batch, times[name][size], budgets[size] * turn / _ROUNDS)
    return {name: _speed(found) for name, found in times.items()}


def rows(samples: Mapping[str, Array], size: int) -> dict[str, Array]:
    """A batch of exactly `size` rows, repeated where there are fewer."""
    positions = np.arange(size) % count(samples)
    return {name: np.ascontiguousarray(array[positions]) for name, array in samples.items()}


def _run(engine: BatchEngine, batch: Mapping[str, Array], times: list[float], until: float) -> None:
    """Forward until `times` add up to `until` seconds; at least once ever."""
    spent = sum(times)
    while spent < until or not times:
        start = time.perf_counter()
        engine.forward(batch)
        times.append(time.perf_counter() - start)
        spent += times[-1]


def _speed(times: Mapping[int, list[float]]) -> Speed:
    p50, p99 = np.percentile(times[ONE], [50, 99]) * 1e3
    return Speed(round(float(p50), 4), round(float(p99), 4), round(MANY / float(np.median(times[MANY])), 1))
