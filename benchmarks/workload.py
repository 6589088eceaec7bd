"""A made-up cluster and its jobs, from a seed, and what becomes of them under a policy: the simulation of `scheduler.py`.

Durations are heavy-tailed, gangs powers of two, three projects steady and three in bursts; limits are said by some, and are
several times what is needed, as they are in practice. Time is simulated: a policy is asked at most once a `turn`.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from modelyard.jobs.assign import Placement, Plan, Queued, Running
from modelyard.jobs.types import Amount, Node

GIB = 1 << 30
PROJECTS = ("steady-1", "steady-2", "steady-3", "burst-1", "burst-2", "burst-3")
# What a rank takes, and how often: processors alone, or a GPU with some.
SHAPES = (
    (Amount(1, 0, 2 * GIB), 25),
    (Amount(4, 0, 8 * GIB), 20),
    (Amount(16, 0, 32 * GIB), 10),
    (Amount(4, 1, 24 * GIB), 30),
    (Amount(8, 1, 48 * GIB), 15),
)
Policy = Callable[[Sequence[Node], Sequence[Queued], Sequence[Running], Mapping[str, Sequence[float]]], Plan]


@dataclass(frozen=True, slots=True)
class Work:
    """A job as it will turn out: asked for at `place`, and over after `seconds`."""

    job: Queued
    seconds: float

    @property
    def amount(self) -> list[float]:
        return [self.job.ranks * self.seconds * amount for amount in self.job.each]


def cluster(count: int) -> list[Node]:
    """Half of the nodes have eight GPUs."""
    return [Node(f"node{n:04}", Amount(64, 8 if n % 2 else 0, 512 * GIB)) for n in range(count)]


def jobs(count: int, nodes: Sequence[Node], seed: int, load: float = 1.25) -> list[Work]:
    """Jobs that arrive over as long as the cluster would need for them, were it `load` times as large."""
    chance = random.Random(seed)
    drawn = [_draw(chance) for _ in range(count)]
    span = max(sum(w.amount[r] for w in drawn) / sum(node.room[r] for node in nodes) for r in range(3)) / load
    bursts = {project: [chance.uniform(0, span) for _ in range(4)] for project in PROJECTS if project.startswith("burst")}
    arrived = []
    for work in drawn:
        starts = bursts.get(work.job.project)
        moment = chance.choice(starts) + chance.expovariate(50 / span) if starts else chance.uniform(0, span)
        arrived.append((min(moment, span), work))
    arrived.sort(key=lambda pair: pair[0])
    return [_named(work, f"job{n:05}", moment) for n, (moment, work) in enumerate(arrived)]


def _draw(chance: random.Random) -> Work:
    each = chance.choices([shape for shape, _ in SHAPES], [weight for _, weight in SHAPES])[0]
    ranks = 1 << min(8, int(chance.expovariate(0.55)))
    seconds = min(43_200.0, max(30.0, chance.lognormvariate(math.log(1800), 1.5)))
    limit = seconds * chance.choice((1.2, 2.0, 5.0)) if chance.random() < 0.8 else None
    return Work(Queued("", ranks, 0.0, 0, chance.choice(PROJECTS), each, limit), seconds)


def _named(work: Work, name: str, place: float) -> Work:
    job = work.job
    return Work(Queued(name, job.ranks, place, job.priority, job.project, job.each, job.limit), work.seconds)


@dataclass
class Outcome:
    """What came of it: per job when it began and ended; per turn the moment, the GPUs and processors in use, the queue, and the
    seconds the pass took."""

    began: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    turns: list[tuple[float, float, float, int, float]] = field(default_factory=list)

    @property
    def makespan(self) -> float:
        return max(self.ended.values())

    def slowdowns(self, works: Sequence[Work], project: str | None = None) -> list[float]:
        """Time in the system over time run, in order; runs under a minute count as one of a minute (bounded slowdown)."""
        chosen = [w for w in works if project in (None, w.job.project)]
        return sorted(max(1.0, (self.ended[w.job.id] - w.job.place) / max(w.seconds, 60.0)) for w in chosen)


def simulate(nodes: Sequence[Node], works: Sequence[Work], policy: Policy, turn: float, window: float) -> Outcome:
    """Run all of it under a policy."""
    out, room = Outcome(), [sum(node.room[r] for node in nodes) for r in range(3)]
    known = {work.job.id: work for work in works}
    arriving, ending = list(reversed(works)), list[tuple[float, str]]()
    queued: dict[str, Queued] = {}
    running: dict[str, tuple[Work, Placement, float]] = {}
    past: dict[str, list[float]] = {project: [0.0] * 3 for project in PROJECTS}
    now = 0.0
    while arriving or ending or queued:
        upcoming = min(arriving[-1].job.place if arriving else math.inf, ending[0][0] if ending else math.inf)
        after = max(now + turn, upcoming)
        held = holds(running)
        fade = math.exp((now - after) / window)
        past = {p: [x * fade + h * (1 - fade) for x, h in zip(past[p], held[p], strict=True)] for p in PROJECTS}
        now = after
        while ending and ending[0][0] <= now:
            moment, name = heapq.heappop(ending)
            out.ended[name] = moment
            del running[name]
        while arriving and arriving[-1].job.place <= now:
            work = arriving.pop()
            queued[work.job.id] = work.job
        gangs = [_gang(work, placement, since, now) for work, placement, since in running.values()]
        begun = time.perf_counter()
        plan = policy(nodes, list(queued.values()), gangs, past)
        took = time.perf_counter() - begun
        for name, placement in plan.start.items():
            running[name] = (known[name], placement, now)
            out.began[name] = now
            heapq.heappush(ending, (now + known[name].seconds, name))
            del queued[name]
        use = [sum(column) / whole for column, whole in zip(zip(*holds(running).values(), strict=True), room, strict=True)]
        out.turns.append((now, use[1], use[0], len(queued), took))
    return out


def holds(running: Mapping[str, tuple[Work, Placement, float]]) -> dict[str, list[float]]:
    """What every project holds."""
    held = {project: [0.0] * 3 for project in PROJECTS}
    for work, _, _ in running.values():
        for resource, amount in enumerate(work.job.each):
            held[work.job.project][resource] += work.job.ranks * amount
    return held


def bound(nodes: Sequence[Node], works: Sequence[Work]) -> float:
    """No schedule ends earlier: every job lasts its time, and what arrives from any moment on must be done by all there is."""
    best = max(work.job.place + work.seconds for work in works)
    for resource in range(3):
        whole, left = sum(node.room[resource] for node in nodes), 0.0
        for work in reversed(works):
            left += work.amount[resource]
            best = max(best, work.job.place + left / whole)
    return best


def _gang(work: Work, placement: Placement, since: float, now: float) -> Running:
    job = work.job
    left = None if job.limit is None else max(0.0, since + job.limit - now)
    return Running(job.id, placement, project=job.project, each=job.each, left=left, age=now - since)


def sizes(works: Sequence[Work]) -> dict[int, int]:
    """How many jobs there are of how many ranks."""
    return dict(sorted(Counter(work.job.ranks for work in works).items()))
