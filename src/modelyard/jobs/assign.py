"""Which gangs run now: a pure function from what waits and what runs to what starts.

The scheduler calls it. All ranks of a gang start or none; first come, first served within a priority; a gang that does not fit
yet is never delayed by one that came later: a later one may go ahead only if, whichever running gangs end next, the first
could start as early without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Queued:
    """A job that waits to start. `place` is its moment in the queue."""

    id: str
    ranks: int
    place: datetime
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Running:
    """A job whose gang is there. While it waits for its children its ranks are idle and do not count; `resumes` once they have
    ended and it wants its processors back."""

    id: str
    ranks: int
    waits: bool = False
    resumes: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Who may go on, who starts, and why the others wait."""

    resume: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    why: Mapping[str, str] = field(default_factory=dict)


def assign(cpus: int, queued: Sequence[Queued], running: Sequence[Running]) -> Plan:
    """Give `cpus` processors, one a rank. Those that resume come first: what they hold is lost time for everybody."""
    busy = [gang.ranks for gang in running if not gang.waits]
    free = cpus - sum(busy)
    resume: list[str] = []
    start: list[str] = []
    why: dict[str, str] = {}
    head: int | None = None
    ahead = 0
    line = [(gang.id, gang.ranks, True) for gang in running if gang.waits and gang.resumes]
    line += [(job.id, job.ranks, False) for job in sorted(queued, key=lambda j: (-j.priority, j.place, j.id))]
    for name, ranks, resumes in line:
        if ranks > cpus:
            why[name] = f"needs {ranks} processor{'s' * (ranks > 1)} at once; there {'is' if cpus == 1 else 'are'} {cpus}"
        elif ranks <= (free if head is None else min(free, _spare(head, free, busy))):
            (resume if resumes else start).append(name)
            busy.append(ranks)
            free -= ranks
        else:
            why[name] = (
                f"waits for {ranks} free processor{'s' * (ranks > 1)} ({free} of {cpus} {'is' if free == 1 else 'are'} free)"
            )
            why[name] += f", behind {ahead} other{'s' if ahead > 1 else ''}" if ahead else ""
            ahead += 1
            head = ranks if head is None else head
    return Plan(tuple(resume), tuple(start), why)


def _spare(head: int, free: int, busy: Sequence[int]) -> int:
    """Processors that the first in line will not need at the moment it can start, whichever of the busy gangs end before it.

    Bit n of `sums` is set where some of the busy gangs together hold n processors.
    """
    sums = 1
    for ranks in busy:
        sums |= sums << ranks
    enough = sums >> (head - free)
    return (enough & -enough).bit_length() - 1 if enough else 0
