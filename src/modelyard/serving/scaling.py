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
BUSY = 0.8  # of what a replica can compute, that is asked of it where there is a latency target
CALLS = 8  # calls that a replica may well hold at a time where no latency target says otherwise
# What a replica is taken for before one was measured: a Python with its libraries, and its weights, which a graph's optimiser
# may hold twice for a moment.
_PROCESS, _WEIGHTS = 96 << 20, 2


class Load(NamedTuple):
    """What is asked of a release. `rising` and `falling`: calls at its replicas, on average in the last seconds, and at most in
    the last half minute; `us_a_row`: what a row takes in its best batch, None where that was not measured; `offered` and
    `lasting`: rows a second that were answered or refused as too many, in the last seconds, and at most in the last half
    minute; `refused` and `strained`: whether any were refused in the last seconds, and in the last half minute; `known`: all
    replicas answered when they were asked in the last seconds, so that none computes what was not seen."""

    rising: float = 0.0
    falling: float = 0.0
    us_a_row: float | None = None
    offered: float = 0.0
    lasting: float = 0.0
    refused: bool = False
    strained: bool = False
    known: bool = False

    def beside(self, tried: Load, share: int) -> Load:
        """What is asked of a release and a canary with `share` % of its calls together: what both were seen to be asked, but no
        more than the share says, so that a slow canary asks for no more. Of the last half minute it is what the share says
        where not all of the canary was seen: its calls may have gone to replicas that were lost."""
        seen = tried if tried.known else tried._replace(falling=math.inf, lasting=math.inf)

        def both(here: float, there: float) -> float:
            return min(here + there, here * 100 / (100 - share))

        return self._replace(
            rising=both(self.rising, seen.rising),
            falling=both(self.falling, seen.falling),
            offered=both(self.offered, seen.offered),
            lasting=both(self.lasting, seen.lasting),
            strained=self.strained or tried.strained,
        )


class Demand(NamedTuple):
    """`replicas`: as many as are wanted now; `whole`: all of them have served for some seconds; `quiet`: seconds since the last
    call; `watched`: these were the replicas that calls go to for half a minute, so that the most of it was seen."""

    replicas: int
    quiet: float
    load: Load
    whole: bool = True
    watched: bool = True


def scale(demand: Demand, options: Options) -> int:
    """How many replicas to want. By Little's law so many that what is outstanding is done within the latency target. What is
    refused for it is never outstanding: where there is a target the rate counts too, and where all there are refuse, there is
    one more, whatever was measured. None after `idle` seconds without a call, where it is known that none is computed any
    more. Only a call wakes what sleeps."""
    load, there = demand.load, demand.replicas
    if there == 0:
        return 0 if options.min_replicas == 0 else options.min_replicas
    if options.min_replicas == 0 and demand.quiet >= options.idle and load.known and load.rising == 0:
        return 0
    each = calls_each(options, load.us_a_row)
    row = 0.0 if options.latency_target is None else (load.us_a_row or 0.0) / 1e6 / BUSY  # of a replica's seconds
    more = there + 1 if load.refused and demand.whole else 0
    up = min(2 * there, max(math.ceil(load.rising / each), math.ceil(load.offered * row), more))
    down = there if load.strained or not demand.watched else max(math.ceil(load.falling / each), math.ceil(load.lasting * row))
    wanted = up if up > there else min(there, down)
    return min(max(1, options.min_replicas, wanted), options.max_replicas)


def calls_each(options: Options, us_a_row: float | None) -> float:
    """How many calls a replica may hold at a time."""
    if options.latency_target is None or not us_a_row:
        return CALLS
    return max(1.0, options.latency_target * 1e6 / us_a_row)


class _Seen(NamedTuple):
    at: float
    calls: int
    rows: int
    refused: int
    whole: bool
    rate: float = 0.0


class Loads:
    """What was asked of a release in the last half minute: at a moment so many calls were there, and since the moment before so
    many rows were answered and calls refused; `whole`: by the word of all its replicas."""

    def __init__(self) -> None:
        self._seen: deque[_Seen] = deque()

    def add(self, at: float, calls: int, done: int = 0, refused: int = 0, *, whole: bool = True) -> None:
        seen = _Seen(at, calls, done + refused, refused, whole)
        self._seen.append(seen)
        self._seen[-1] = seen._replace(rate=sum(one.rows for one in self._recent(at)) / RISING)
        while self._seen[0].at < at - FALLING:
            self._seen.popleft()

    def at(self, now: float, us_a_row: float | None = None) -> Load:
        recent = self._recent(now)
        return Load(
            sum(one.calls for one in recent) / len(recent) if recent else 0.0,
            float(max((one.calls for one in self._seen), default=0)),
            us_a_row,
            sum(one.rows for one in recent) / RISING,
            max((one.rate for one in self._seen), default=0.0),
            any(one.refused for one in recent),
            any(one.refused for one in self._seen),
            bool(recent) and all(one.whole for one in recent),
        )

    def _recent(self, now: float) -> Sequence[_Seen]:
        return [one for one in self._seen if one.at >= now - RISING]


class Room(NamedTuple):
    """What replicas may take of a machine, all together: bytes and processes; 0: as many as you like."""

    memory: int
    replicas: int

    @property
    def spare(self) -> int:
        """How many processes fewer there are when nothing is astir: who leaves takes a second, and who is called meanwhile
        should not have to wait for that."""
        return self.replicas // 8


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
    """Which deployments to put to sleep, least recently used first, so that one more replica of `need` bytes has room, and the
    spare is there again, where it can be: none where that is so already, None where even all of them would not make room."""
    staying = [one for one in held if not one.yields]
    memory, replicas = sum(one.memory for one in staying) + need, sum(one.replicas for one in staying) + 1
    spare = room.spare if _fits(memory, replicas + room.spare, room) else 0  # where it cannot be had, nobody sleeps for it
    memory, replicas = sum(one.memory for one in held) + need, sum(one.replicas for one in held) + 1
    asleep: list[int] = []
    for one in sorted((one for one in held if one.yields), key=lambda one: one.used):
        if _fits(memory, replicas + spare, room):
            break
        asleep.append(one.deployment)
        memory, replicas = memory - one.memory, replicas - one.replicas
    return asleep if _fits(memory, replicas, room) else None


def _fits(memory: int, replicas: int, room: Room) -> bool:
    return (not room.memory or memory <= room.memory) and (not room.replicas or replicas <= room.replicas)


def guess(artefact: int) -> int:
    """Bytes that a replica may take whose artefact has so many, before one was measured."""
    return _PROCESS + _WEIGHTS * artefact
