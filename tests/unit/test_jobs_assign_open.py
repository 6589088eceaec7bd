"""`assign` in an open system: jobs keep coming, what projects held counts, and still whoever asks waits no longer than a bound;
and projects that all have work get their part on several nodes and in gangs, too.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.jobs.assign import Placement, Queued, Running, assign
from modelyard.jobs.packing import slots_on
from modelyard.jobs.types import Amount, Node

patient = settings(deadline=None)
LONGEST = 6  # turns that a gang runs at most
PUSHERS = ("a", "b", "c")


@dataclass(frozen=True)
class Arrival:
    """A gang, for how long it runs, and what it says of that: nothing, or a limit."""

    project: str
    ranks: int
    each: Amount
    lasts: int
    limit: float | None


amounts = st.builds(Amount, st.integers(1, 3), st.integers(0, 1), st.integers(0, 2))
rooms = st.lists(st.builds(Amount, st.integers(3, 9), st.integers(1, 3), st.integers(2, 9)), min_size=1, max_size=3)


@st.composite
def arrivals(draw: st.DrawFn, project: st.SearchStrategy[str]) -> Arrival:
    lasts = draw(st.integers(1, LONGEST))
    limit = draw(st.none() | st.integers(lasts, LONGEST).map(float))
    return Arrival(draw(project), draw(st.integers(1, 4)), draw(amounts), lasts, limit)


crowds = st.lists(st.lists(arrivals(st.sampled_from(PUSHERS)), max_size=4), min_size=1, max_size=8)
pasts = st.dictionaries(st.sampled_from(PUSHERS), st.floats(0, 20), max_size=3)


class Cluster:
    """Turns of the scheduler: what came is queued, what may start does, what has run its time ends, what was held is noted."""

    def __init__(self, nodes: list[Node], past: dict[str, float]) -> None:
        self.nodes, self.past, self.now = nodes, past, 0
        self.queued: dict[str, tuple[Queued, Arrival]] = {}
        self.running: dict[str, tuple[Queued, Arrival, Placement, int]] = {}
        self.began: dict[str, int] = {}

    def come(self, name: str, asked: Arrival) -> bool:
        """False: it is larger than all there is, and was refused."""
        if sum(slots_on(node.room, asked.each) for node in self.nodes) < asked.ranks:
            return False
        place = self.now + len(self.queued) / 1000  # one after another
        one = Queued(name, asked.ranks, place, project=asked.project, each=asked.each, limit=asked.limit)
        self.queued[name] = one, asked
        return True

    def turn(self) -> None:
        running = [
            Running(name, placement, project=one.project, each=one.each, left=one.limit and one.limit - (self.now - since))
            for name, (one, _, placement, since) in self.running.items()
        ]
        past = {project: (cpus, 0.0, 0.0) for project, cpus in self.past.items()}
        for name, placement in assign(self.nodes, [one for one, _ in self.queued.values()], running, past).start.items():
            self.running[name] = (*self.queued.pop(name), placement, self.now)
            self.began[name] = self.now
        held = Counter[str]()
        for one, _, _, _ in self.running.values():
            held[one.project] += one.ranks * one.each.cpus
        self.past = {project: 0.9 * self.past.get(project, 0) + 0.1 * held[project] for project in {*self.past, *held}}
        self.now += 1
        self.running = {name: held for name, held in self.running.items() if held[3] + held[1].lasts > self.now}


@patient
@given(rooms, crowds, pasts, arrivals(st.just("late")), st.integers(0, 12))
def test_whoever_had_nothing_yet_waits_no_longer_than_a_bound_however_others_push(
    room: list[Amount], crowd: list[list[Arrival]], past: dict[str, float], asked: Arrival, moment: int
) -> None:
    """Each other project that had nothing either may go before it once, and whoever is first waits for what runs at most."""
    cluster = Cluster([Node(f"n{n}", each) for n, each in enumerate(room)], past)
    bound = (len(PUSHERS) + 1) * (LONGEST + 1)
    there = False
    for turn in range(moment + bound + 1):
        for number, one in enumerate(crowd[turn % len(crowd)]):  # they never stop
            cluster.come(f"{turn}-{number}", one)
        if turn == moment:
            there = cluster.come("late", asked)
        cluster.turn()
        if turn >= moment and ("late" in cluster.began or not there):
            return
    raise AssertionError(f"after {bound} turns it still waits; {len(cluster.queued)} wait")


@patient
@given(rooms, crowds, pasts)
def test_when_nobody_comes_any_more_everybody_has_run(
    room: list[Amount], crowd: list[list[Arrival]], past: dict[str, float]
) -> None:
    cluster = Cluster([Node(f"n{n}", each) for n, each in enumerate(room)], past)
    came = 0
    for turn, ones in enumerate(crowd):
        came += sum(cluster.come(f"{turn}-{number}", one) for number, one in enumerate(ones))
        cluster.turn()
    for _ in range(came * (LONGEST + 1)):
        cluster.turn()
    assert len(cluster.began) == came


@patient
@given(st.lists(st.tuples(amounts, st.integers(1, 3)), min_size=1, max_size=4), st.integers(1, 4), st.integers(12, 30))
def test_on_several_nodes_projects_with_gangs_get_their_part_of_what_they_need_most(
    wants: list[tuple[Amount, int]], count: int, size: int
) -> None:
    """All have more work than fits. What they lack of an equal part is what cannot be divided: two of the widest gang, and a
    rank of the largest on every node."""
    room, nodes = Amount(size, size // 2, size), [Node(f"n{n}", Amount(size, size // 2, size)) for n in range(count)]
    queued = [
        Queued(f"{project}-{n}", width, n, project=str(project), each=each)
        for project, (each, width) in enumerate(wants)
        for n in range(size * count // width + 1)
    ]
    started = Counter(name.partition("-")[0] for name in assign(nodes, queued, []).start)

    def share(each: Amount) -> float:
        return max(a / (whole * count) for a, whole in zip(each, room, strict=True))

    slack = max(share(each) for each, _ in wants) * (2 * max(width for _, width in wants) + count)
    for project, (each, width) in enumerate(wants):
        assert started[str(project)] * width * share(each) >= 1 / len(wants) - slack
