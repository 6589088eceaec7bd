"""How many replicas a release should have, and who gives way where a machine cannot hold all: decisions from values.

`controller` asks; it knows processes and tables, this knows numbers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from modelyard.serving.types import Options

RISING, FALLING = 2.0, 30.0  # seconds of the past that count for more replicas, and for fewer
CALLS = 8  # calls that a replica may well hold at a time where no latency target says otherwise
# What a replica is taken for before one was measured: a Python with its libraries, and its weights, which a graph's optimiser
# may hold twice for a moment.
_PROCESS, _WEIGHTS = 96 << 20, 2


class Demand(NamedTuple):
    """What is asked of a release. `replicas`: as many as are wanted now; `rising` and `falling`: calls at its replicas, on
    average in the last seconds, and at most in the last half minute; `us_a_row`: what a row takes in its best batch, None where
    that was not measured; `quiet`: seconds since the last call."""

    replicas: int
    rising: float
    falling: float
    us_a_row: float | None
    quiet: float


def scale(demand: Demand, options: Options) -> int:
    """How many replicas to want. By Little's law so many that what is outstanding is done within the latency target; none after
    `idle` seconds without a call. Only a call wakes what sleeps."""
    if demand.replicas == 0:
        return 0 if options.min_replicas == 0 else options.min_replicas
    if options.min_replicas == 0 and demand.quiet >= options.idle and demand.falling == 0:
        return 0
    each = calls_each(options, demand.us_a_row)
    up = min(math.ceil(demand.rising / each), 2 * demand.replicas)
    down = math.ceil(demand.falling / each)
    wanted = up if up > demand.replicas else min(demand.replicas, down)
    return min(max(1, options.min_replicas, wanted), options.max_replicas)


def calls_each(options: Options, us_a_row: float | None) -> float:
    """How many calls a replica may hold at a time."""
    if options.latency_target is None or not us_a_row:
        return CALLS
    return max(1.0, options.latency_target * 1e6 / us_a_row)


class Loads:
    """Calls at a release's replicas, as they were counted in the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, at: float, calls: int) -> None:
        self._seen.append((at, calls))
        while self._seen[0][0] < at - FALLING:
            self._seen.popleft()

    def rising(self, at: float) -> float:
        recent = [calls for moment, calls in self._seen if moment >= at - RISING]
        return sum(recent) / len(recent) if recent else 0.0

    @property
    def falling(self) -> float:
        return float(max((calls for _, calls in self._seen), default=0))


class Room(NamedTuple):
    """What replicas may take of a machine, all together: bytes and processes; 0: as many as you like."""

    memory: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Holder:
    """A deployment whose replicas are in memory. `used`: when it was last called; `yields`: it may be put to sleep: what
    it computes is finished first, and the next call wakes it."""

    deployment: int
    memory: int
    replicas: int
    used: float
    yields: bool


def make_room(need: int, room: Room, held: Sequence[Holder]) -> list[int] | None:
    """Which deployments to put to sleep, least recently used first, so that one more replica of `need` bytes has room: none
    where it has already, None where even all of them would not do."""
    memory, replicas = sum(one.memory for one in held) + need, sum(one.replicas for one in held) + 1
    asleep: list[int] = []
    for one in sorted((one for one in held if one.yields), key=lambda one: one.used):
        if _fits(memory, replicas, room):
            break
        asleep.append(one.deployment)
        memory, replicas = memory - one.memory, replicas - one.replicas
    return asleep if _fits(memory, replicas, room) else None


def _fits(memory: int, replicas: int, room: Room) -> bool:
    return (not room.memory or memory <= room.memory) and (not room.replicas or replicas <= room.replicas)


def guess(artefact: int) -> int:
    """Bytes that a replica may take whose artefact has so many, before one was measured."""
    return _PROCESS + _WEIGHTS * artefact
