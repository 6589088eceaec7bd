"""Which gangs run now, and where: a pure function from what there is, what waits and what runs to what starts.

The scheduler calls it, and so does the simulation in `benchmarks/scheduler.py`. All ranks of a gang start or none. Who is
first is decided in `fairness`, where a gang fits in `packing`, who may go ahead of one that waits in `backfill`, and who is
sent back to its checkpoint for one of higher priority in `preemption`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from modelyard.jobs.backfill import Held, Reservation
from modelyard.jobs.fairness import Standing, line
from modelyard.jobs.packing import Room, Spots, slots, slots_on
from modelyard.jobs.preemption import victims, withheld
from modelyard.jobs.reasons import amounts, lack, ordinal, too_large
from modelyard.jobs.types import ONE, Amount, Node

# How many ranks of a gang on which node, by the node's name; rank 0 is on the first.
Placement: TypeAlias = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Queued:
    """A job that waits to start with `ranks` × `each`. `place` is its moment in the queue; `limit` the most seconds that it
    will run, None where nobody knows."""

    id: str
    ranks: int
    place: float
    priority: int = 0
    project: str = ""
    each: Amount = ONE
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Running:
    """A job whose gang is there. While it waits for its children its ranks are idle and do not count; `resumes` once they have
    ended and it wants its room back, if it ever gave it away. `left` is the most seconds it will still run, None where nobody
    knows; `age` how many it has run; `yields`: it has a checkpoint, so that it may be sent back; `leaves`: it was, and is about
    to end."""

    id: str
    nodes: Placement
    waits: bool = False
    resumes: bool = False
    priority: int = 0
    project: str = ""
    each: Amount = ONE
    left: float | None = None
    age: float = 0.0
    yields: bool = False
    leaves: bool = False

    @property
    def ranks(self) -> int:
        return sum(ranks for _, ranks in self.nodes)


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a job waits, and as how many-th; `within`: seconds until it starts at the latest, where that is known."""

    position: int
    why: str
    within: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Who may go on, who starts where, who is sent back to its checkpoint for whom, and why the others wait. `never`: what is
    larger than everything there is."""

    resume: tuple[str, ...] = ()
    start: Mapping[str, Placement] = field(default_factory=dict)
    preempt: Mapping[str, str] = field(default_factory=dict)
    waits: Mapping[str, Wait] = field(default_factory=dict)
    never: Mapping[str, str] = field(default_factory=dict)


def assign(
    nodes: Sequence[Node],
    queued: Iterable[Queued],
    running: Iterable[Running],
    used: Mapping[str, Sequence[float]] | None = None,
) -> Plan:
    """Give the room of the nodes that are not away. `used` is what each project held on average over the window that is past
    (CPUs, GPUs, bytes). Those that resume come first: what they hold is lost time for everybody."""
    running = sorted(running, key=lambda gang: gang.id)
    queued = list(queued)
    pass_ = _Pass([node for node in nodes if not node.away], running)
    standing = Standing(pass_.room.capacity, used or {})
    for gang in running:
        if not gang.waits:
            standing.add(gang.project, gang.ranks, gang.each)
    projects = {job.project for job in queued} | {gang.project for gang in running}
    had = {project: standing.share(project) * len(projects) for project in projects} if len(projects) > 1 else {}
    for gang in sorted(running, key=lambda gang: -gang.priority):
        if gang.resumes:
            pass_.resume(gang)
    for job in line(queued, standing):
        pass_.consider(job)
    return pass_.plan(had)


class _Pass:
    """One walk along the line: what is free after those before, and what the first that waits keeps for itself."""

    def __init__(self, nodes: Sequence[Node], running: Sequence[Running]) -> None:
        self.room = Room(nodes)
        self._running = running
        self._held: dict[str, Held] = {}
        self._kept: Reservation | None = None
        self._possible: dict[Amount, int] = {}
        # Room only shrinks in a walk: where so many ranks did not fit, more of the same do not either.
        self._refused: dict[tuple[Amount, bool], int] = {}
        self._waiting: list[Queued | Running] = []
        self._resume: list[str] = []
        self._start: dict[str, Placement] = {}
        self._preempt: dict[str, str] = {}
        self._withheld = False
        self._never: dict[str, str] = {}
        for gang in running:
            if not gang.waits:
                self._take(gang.id, self.room.spots(gang.nodes), gang.each, 0.0 if gang.leaves else gang.left)

    def resume(self, gang: Running) -> None:
        """Let a parent go on, on the nodes where it is."""
        if not gang.waits:
            self._resume.append(gang.id)
            return
        spots = self.room.spots(gang.nodes)
        fits = all(slots_on(self.room.free[:, node].tolist(), gang.each) >= ranks for node, ranks in spots)
        if fits and (self._kept is None or self._kept.allows(spots, gang.each, gang.left)):
            self._take(gang.id, spots, gang.each, gang.left)
            self._resume.append(gang.id)
            return
        self._waiting.append(gang)
        if self._kept is None:
            self._kept = Reservation(self.room, sum(ranks for _, ranks in spots), gang.each, tuple(self._held.values()), spots)

    def consider(self, job: Queued) -> None:
        """Start a job, or have it wait."""
        if job.each not in self._possible:
            self._possible[job.each] = int(slots(self.room.total, job.each).sum())
        if job.ranks > self._possible[job.each]:
            self._never[job.id] = too_large(job.ranks, job.each, self.room.nodes)
            return
        spots = self._find(job)
        if spots is not None:
            self._take(job.id, spots, job.each, job.limit)
            self._start[job.id] = tuple((self.room.names[node], ranks) for node, ranks in spots)
            return
        self._waiting.append(job)
        if self._kept is None:
            self._make_room(job)
            self._kept = Reservation(self.room, job.ranks, job.each, tuple(self._held.values()))

    def plan(self, had: Mapping[str, float]) -> Plan:
        """What came of the walk. `had`: how much of its share each project has had, 1 being all of it."""
        tell, within = _Teller(self.room, had), self._kept.within if self._kept else None
        waits = {}
        for position, job in enumerate(self._waiting, start=1):
            first = position == 1
            why = tell.why(position, job)
            if first and within == 0.0:
                why += "; room is being made for it"
            elif first and self._withheld:
                why += "; what runs below its priority has no checkpoint to go back to yet, or children"
            waits[job.id] = Wait(position, why, within if first else None)
        return Plan(tuple(self._resume), self._start, self._preempt, waits, self._never)

    def _find(self, job: Queued) -> Spots | None:
        """Where a job may go."""
        kept = self._kept
        if kept is None:
            return self.room.fit(slots(self.room.free, job.each), job.ranks)
        same = (job.each, kept.ends_before(job.limit))
        if job.ranks >= self._refused.get(same, job.ranks + 1):
            return None
        spots = kept.find(job.ranks, job.each, job.limit)
        if spots is None:
            self._refused[same] = job.ranks
        return spots

    def _make_room(self, job: Queued) -> None:
        """Send back gangs of lower priority, if that is what it takes."""
        for victim in victims(self.room, job.ranks, job.each, job.priority, self._running):
            self._preempt[victim] = job.id
            self._held[victim] = replace(self._held[victim], left=0.0)
        self._withheld = not self._preempt and withheld(self.room, job.ranks, job.each, job.priority, self._running)

    def _take(self, name: str, spots: Spots, each: Amount, left: float | None) -> None:
        self.room.take(spots, each)
        self._held[name] = Held(spots, each, left)
        if self._kept is not None:
            self._kept.admit(spots, each, left)


class _Teller:
    """Says why jobs wait, once the walk is over. Many ask for the same, and are told the same."""

    def __init__(self, room: Room, had: Mapping[str, float]) -> None:
        self._room, self._had = room, had
        self._free, self._there = room.unused, room.capacity
        self._told: dict[tuple[int, Amount], str] = {}

    def why(self, position: int, job: Queued | Running) -> str:
        text = f"{self._short(job.ranks, job.each)}; {ordinal(position)}"
        if job.project in self._had:
            text += f"; project {job.project} has used {100 * self._had[job.project]:.0f} % of its share"
        return text

    def _short(self, ranks: int, each: Amount) -> str:
        if (ranks, each) not in self._told:
            short = lack(ranks, each, self._free, self._there)
            if not short:
                fits = slots(self._room.free, each).sum() >= ranks
                why = "kept for who is first" if fits else "too scattered over the nodes, or on others than its own"
                short = f"{amounts(ranks, each)}; what is free is {why}"
            self._told[ranks, each] = f"waits for {short}"
        return self._told[ranks, each]
