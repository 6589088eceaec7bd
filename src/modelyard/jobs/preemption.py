"""Who is sent back to its checkpoint so that a gang of higher priority can start.

`assign` asks it for the first in line only. Never one of the same priority, never one that would lose all its work, never more
than needed, and nobody where it would not be enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from modelyard.jobs.packing import Room, slots, slots_on
from modelyard.jobs.types import Amount


class Victim(Protocol):
    """What the choice needs to know of a gang that runs."""

    @property
    def id(self) -> str: ...
    @property
    def nodes(self) -> Sequence[tuple[str, int]]: ...
    @property
    def each(self) -> Amount: ...
    @property
    def priority(self) -> int: ...
    @property
    def age(self) -> float: ...
    @property
    def waits(self) -> bool: ...
    @property
    def yields(self) -> bool: ...
    @property
    def leaves(self) -> bool: ...


def victims(room: Room, ranks: int, each: Amount, priority: int, running: Sequence[Victim]) -> tuple[str, ...]:
    """Gangs whose end makes room for `ranks` × `each`, the lowest priority first, the youngest of them first.

    Those that leave already are counted on: what they make room for needs nobody else's.
    """
    growing = _leaving(room, ranks, each, running)
    below = [gang for gang in _below(running, priority) if gang.yields]
    below.sort(key=lambda gang: (gang.priority, gang.age, gang.id))
    chosen: list[Victim] = []
    for gang in below:
        if growing.enough():
            break
        growing.add(gang)
        chosen.append(gang)
    if not growing.enough():
        return ()
    needed: list[str] = []
    # Who was taken last is worth most, and is spared first.
    for gang in reversed(chosen):
        growing.add(gang, -1)
        if not growing.enough():
            growing.add(gang)
            needed.append(gang.id)
    return tuple(reversed(needed))


def withheld(room: Room, ranks: int, each: Amount, priority: int, running: Sequence[Victim]) -> bool:
    """Whether gangs of lower priority are in the way of `ranks` × `each` that cannot be sent back, or not yet: they have no
    checkpoint, or children."""
    growing = _leaving(room, ranks, each, running)
    if growing.enough():
        return False
    for gang in _below(running, priority):
        growing.add(gang)
    return growing.enough()


def _leaving(room: Room, ranks: int, each: Amount, running: Sequence[Victim]) -> _Growing:
    """The room there is when those are gone that were sent back already."""
    growing = _Growing(room, ranks, each)
    for gang in running:
        if gang.leaves and not gang.waits:
            growing.add(gang)
    return growing


def _below(running: Sequence[Victim], priority: int) -> list[Victim]:
    return [gang for gang in running if gang.priority < priority and not gang.waits and not gang.leaves]


class _Growing:
    """How many ranks of a gang would fit, while others are imagined gone."""

    def __init__(self, room: Room, ranks: int, each: Amount) -> None:
        self._room, self._ranks, self._each = room, ranks, each
        self._fit = int(slots(room.free, each).sum())
        self._free: dict[int, list[int]] = {}

    def enough(self) -> bool:
        return self._fit >= self._ranks

    def add(self, gang: Victim, sign: int = 1) -> None:
        for node, ranks in self._room.spots(gang.nodes):
            free = self._free.setdefault(node, self._room.free[:, node].tolist())
            self._fit -= slots_on(free, self._each)
            for resource, amount in enumerate(gang.each):
                free[resource] += sign * ranks * amount
            self._fit += slots_on(free, self._each)
