"""Who runs now and where: never too much on a node, never all but all, nobody last for ever or delayed by who came later."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.jobs.assign import Placement, Plan, Queued, Running, Wait, assign
from modelyard.jobs.fairness import Standing
from modelyard.jobs.fairness import line as in_line
from modelyard.jobs.types import Amount, Node

GB = 10**9
# How long an example takes depends on who else uses the machine.
patient = settings(deadline=None)


def cluster(*cpus: int) -> list[Node]:
    return [Node(f"n{n}", Amount(count)) for n, count in enumerate(cpus)]


def job(name: str, ranks: int, place: float = 0, priority: int = 0, **more: object) -> Queued:
    return Queued(name, ranks, place, priority, **more)  # type: ignore[arg-type]


def line(*ranks: int) -> list[Queued]:
    return [job(f"j{n}", count, n) for n, count in enumerate(ranks)]


def runs(name: str, ranks: int, node: str = "n0", **more: object) -> Running:
    return Running(name, ((node, ranks),), **more)  # type: ignore[arg-type]


def started(plan: Plan) -> tuple[str, ...]:
    return tuple(plan.start)


def test_first_come_first_served() -> None:
    plan = assign(cluster(4), line(2, 1, 1, 1), [])
    assert plan.start == {"j0": (("n0", 2),), "j1": (("n0", 1),), "j2": (("n0", 1),)}


def test_a_gang_starts_whole_or_not_at_all() -> None:
    plan = assign(cluster(4), line(3), [runs("r", 2)])
    assert plan == Plan(waits={"j0": Wait(1, "waits for 3 CPUs, 2 of 4 are free; 1st")})


def test_priority_goes_first() -> None:
    assert started(assign(cluster(1), [job("low", 1, 0), job("high", 1, 1, priority=1)], [])) == ("high",)


def test_a_gang_takes_the_node_that_is_left_with_least() -> None:
    assert assign(cluster(8, 3, 4), line(3), []).start == {"j0": (("n1", 3),)}


def test_a_node_that_is_away_is_given_nothing() -> None:
    assert assign([Node("a", Amount(4), away=True), Node("b", Amount(4))], line(2), []).start == {"j0": (("b", 2),)}


def test_a_gang_that_needs_no_gpu_leaves_nodes_with_gpus_to_those_that_do() -> None:
    nodes = [Node("a", Amount(4, 4)), Node("b", Amount(8))]
    assert assign(nodes, line(2), []).start == {"j0": (("b", 2),)}


def test_a_gang_too_large_for_one_node_spans_few() -> None:
    assert assign(cluster(2, 4, 2, 3), line(6), []).start == {"j0": (("n0", 2), ("n1", 4))}


def test_every_resource_counts() -> None:
    nodes = [Node("a", Amount(64, 8, 100 * GB))]
    each = Amount(4, 1, 30 * GB)
    plan = assign(nodes, [job("x", 3, each=each), job("y", 1, 1, each=each)], [])
    assert started(plan) == ("x",)
    assert plan.waits["y"].why == "waits for 30 GB of memory, 10 GB of 100 GB is free; 1st"


def test_a_later_one_goes_ahead_only_where_it_cannot_delay_the_first() -> None:
    # When the gang of 4 ends, 6 are free: the first needs 4, so 2 are to spare.
    assert started(assign(cluster(6), line(4, 2), [runs("r", 4)])) == ("j1",)
    # Either gang of 2 may end first, and then all 6 that are free are needed.
    plan = assign(cluster(8), line(6, 2), [runs("a", 2), runs("b", 2)])
    assert started(plan) == ()
    assert plan.waits["j1"].why == "waits for 2 CPUs; what is free is kept for who is first; 2nd"


def test_a_later_one_goes_ahead_where_the_first_can_have_no_use_for_the_node() -> None:
    nodes = [Node("gpu", Amount(4, 4)), Node("plain", Amount(4))]
    busy = Running("r", (("gpu", 1),), each=Amount(1, 2))
    plan = assign(nodes, [job("first", 1, each=Amount(1, 4)), job("later", 3, 1)], [busy])
    assert plan.start == {"later": (("plain", 3),)}


def test_with_limits_the_first_is_promised_a_moment_and_later_ones_end_by_then() -> None:
    running = [runs("r", 6, left=100.0)]
    queued = [job("first", 8), job("short", 2, 1, limit=100.0), job("long", 2, 2, limit=101.0), job("open", 1, 3)]
    plan = assign(cluster(8), queued, running)
    assert started(plan) == ("short",)
    assert plan.waits["first"] == Wait(1, "waits for 8 CPUs, 0 of 8 are free; 1st", 100.0)
    assert plan.waits["long"].within is None


def test_one_that_outlasts_the_promised_moment_may_use_what_is_left_then() -> None:
    running = [runs("r", 6, left=100.0)]
    assert started(assign(cluster(8), [job("first", 7), job("long", 1, 1)], running)) == ("long",)


def test_what_can_never_run_holds_up_nobody() -> None:
    plan = assign(cluster(2), line(3, 2), [])
    assert started(plan) == ("j1",)
    assert plan.never == {"j0": "needs 3 CPUs at once; there are 2"}
    wide = assign(cluster(3, 3), [job("x", 2, each=Amount(2)), job("y", 1, each=Amount(4))], [])
    assert started(wide) == ("x",)
    assert wide.never == {"y": "needs 1 × 4 CPUs at once; the largest of 2 nodes has 3 CPUs"}


def test_a_parent_that_waits_gives_way_to_its_children() -> None:
    assert started(assign(cluster(1), line(1), [runs("parent", 1, waits=True)])) == ("j0",)


def test_a_parent_whose_children_have_ended_comes_before_the_queue() -> None:
    parent = runs("parent", 2, waits=True, resumes=True)
    assert assign(cluster(2), line(1, 1), [parent]).resume == ("parent",)
    plan = assign(cluster(2), line(1), [parent, runs("child", 1)])
    assert plan.start == {}
    assert plan.waits["parent"].why == "waits for 2 CPUs, 1 of 2 is free; 1st"


def test_a_parent_that_never_gave_its_room_away_goes_on_at_once() -> None:
    parent = runs("parent", 2, resumes=True)
    plan = assign(cluster(2), line(1), [parent])
    assert (plan.resume, plan.start) == (("parent",), {})


def test_a_parent_goes_on_where_it_is() -> None:
    parent = runs("parent", 2, "n0", waits=True, resumes=True)
    plan = assign(cluster(2, 4), line(1, 3), [parent, runs("child", 1, "n0")])
    assert (plan.resume, plan.start) == ((), {"j0": (("n1", 1),), "j1": (("n1", 3),)})


def test_projects_take_turns() -> None:
    queued = [job(f"a{n}", 1, n, project="a") for n in range(4)] + [job(f"b{n}", 1, 10 + n, project="b") for n in range(4)]
    assert started(assign(cluster(4), queued, [])) == ("a0", "b0", "a1", "b1")


def test_who_has_had_more_comes_later() -> None:
    queued = [job("a0", 1, 0, project="a"), job("b0", 1, 1, project="b"), job("b1", 1, 2, project="b")]
    plan = assign(cluster(2), queued, [], used={"a": (1.5, 0, 0)})
    assert started(plan) == ("b0", "b1")
    assert plan.waits["a0"].why == "waits for 1 CPU, 0 of 2 are free; 1st; project a has used 150 % of its share"


def test_a_share_is_of_the_resource_a_project_has_most_of() -> None:
    nodes = [Node("n", Amount(10, 2))]
    queued = [job(f"a{n}", 1, n, project="a", each=Amount(1, 1)) for n in range(2)]
    queued += [job(f"b{n}", 5, 5 + n, project="b") for n in range(2)]
    # Half of the GPUs is as much as half of the processors.
    assert started(assign(nodes, queued, [])) == ("a0", "b0", "a1")


def test_a_gang_of_lower_priority_is_sent_back_to_its_checkpoint() -> None:
    running = [runs("old", 2, yields=True, age=9.0), runs("young", 2, yields=True, age=1.0), runs("none", 2)]
    plan = assign(cluster(6), [job("high", 2, priority=1), job("next", 2, 1)], running)
    assert plan.preempt == {"young": "high"}
    assert plan.start == {}
    assert plan.waits["high"].why.endswith("; 1st; room is being made for it")
    leaving = [replace(running[1], leaves=True), running[0], running[2]]
    assert assign(cluster(6), [job("high", 2, priority=1)], leaving) == Plan(waits={"high": plan.waits["high"]})


@pytest.mark.parametrize(
    "gang",
    [
        runs("r", 4, yields=True, priority=1),
        runs("r", 4),
        runs("r", 4, yields=True, each=Amount(1), leaves=True),
        runs("r", 1, yields=True),
    ],
    ids=["same priority", "no checkpoint", "leaves already", "too small to suffice"],
)
def test_nobody_is_sent_back_in_vain(gang: Running) -> None:
    rest = [runs("rest", 4 - gang.ranks)] if gang.ranks < 4 else []
    assert assign(cluster(4), [job("high", 4, priority=1)], [gang, *rest]).preempt == {}


# Properties.

amounts = st.builds(Amount, st.integers(1, 3), st.integers(0, 2), st.integers(0, 3))
clusters = st.lists(st.builds(Amount, st.integers(1, 9), st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=4).map(
    lambda rooms: [Node(f"n{n}", room) for n, room in enumerate(rooms)]
)
limits = st.none() | st.integers(1, 9).map(float)


@st.composite
def queues(draw: st.DrawFn, most: int = 8, each: st.SearchStrategy[Amount] = amounts) -> list[Queued]:
    return [
        job(
            f"j{n}",
            draw(st.integers(1, 6)),
            draw(st.integers(0, 3)),
            draw(st.integers(-1, 1)),
            project=draw(st.sampled_from("abc")),
            each=draw(each),
            limit=draw(limits),
        )
        for n in range(draw(st.integers(0, most)))
    ]


@st.composite
def states(draw: st.DrawFn) -> tuple[list[Node], list[Queued], list[Running]]:
    """A cluster, gangs that fit on it (some of which wait for children), and a queue."""
    nodes = draw(clusters)
    running: list[Running] = []
    for gang in draw(queues(4)):
        placement = assign(nodes, [gang], running).start.get(gang.id)
        if placement:
            waits = draw(st.booleans())
            flags = {"waits": waits, "resumes": waits and draw(st.booleans()), "yields": draw(st.booleans())}
            gang = replace(gang, id=f"r{gang.id}")
            running.append(
                Running(
                    gang.id, placement, priority=gang.priority, project=gang.project, each=gang.each, left=gang.limit, **flags
                )
            )
    return nodes, draw(queues(6)), running


def asked(queued: Iterable[Queued], running: Iterable[Running]) -> dict[str, Amount]:
    return {one.id: one.each for one in [*queued, *running]}


def used(placements: Iterable[tuple[Placement, Amount]]) -> Counter[tuple[str, str]]:
    """How much of which resource of which node."""
    total: Counter[tuple[str, str]] = Counter()
    for placement, each in placements:
        for node, ranks in placement:
            total.update({(node, resource): ranks * amount for resource, amount in each._asdict().items()})
    return total


State = tuple[list[Node], list[Queued], list[Running]]


@patient
@given(states())
def test_no_resource_of_any_node_is_ever_given_twice(state: State) -> None:
    nodes, queued, running = state
    plan = assign(nodes, queued, running)
    each = asked(queued, running)
    holding = [(gang.nodes, gang.each) for gang in running if not gang.waits or gang.id in plan.resume]
    total = used([*holding, *((placement, each[name]) for name, placement in plan.start.items())])
    room = {(node.name, resource): amount for node in nodes for resource, amount in node.room._asdict().items()}
    assert all(amount <= room[key] for key, amount in total.items())


@patient
@given(states())
def test_all_ranks_or_none_and_everybody_is_told(state: State) -> None:
    nodes, queued, running = state
    plan = assign(nodes, queued, running)
    ranks = {one.id: one.ranks for one in queued}
    assert {name: sum(count for _, count in placement) for name, placement in plan.start.items()} == {
        name: ranks[name] for name in plan.start
    }
    assert all(count > 0 for placement in plan.start.values() for _, count in placement)
    resuming = {gang.id for gang in running if gang.resumes}
    told = [*plan.start, *plan.waits, *plan.never, *plan.resume]
    assert sorted(told) == sorted({*ranks, *resuming})
    assert sorted(wait.position for wait in plan.waits.values()) == list(range(1, len(plan.waits) + 1))


@patient
@given(states(), st.randoms(use_true_random=False))
def test_the_order_of_the_lists_decides_nothing(state: State, order: random.Random) -> None:
    first = assign(*state)
    for part in state:
        order.shuffle(part)
    again = assign(*state)
    assert (again, list(again.start)) == (first, list(first.start))


@patient
@given(states())
def test_preemption_is_of_lower_priority_to_a_checkpoint_and_just_enough(state: State) -> None:
    nodes, queued, running = state
    running = [gang for gang in running if not gang.resumes]
    plan = assign(nodes, queued, running)
    if not plan.preempt:
        return
    (name,) = set(plan.preempt.values())
    head = next(one for one in queued if one.id == name)
    victims = [gang for gang in running if gang.id in plan.preempt]
    assert all(gang.yields and not gang.waits and gang.priority < head.priority for gang in victims)
    placed = [Running(n, p, each=asked(queued, [])[n]) for n, p in plan.start.items()]
    staying = [replace(gang, yields=False) for gang in running if gang not in victims] + placed
    assert name in assign(nodes, [head], staying).start
    for spared in victims:
        assert name not in assign(nodes, [head], [*staying, replace(spared, yields=False)]).start


def fits(nodes: Sequence[Node], one: Queued, busy: Iterable[tuple[Placement, Amount]]) -> bool:
    taken = used(busy)
    count = 0
    for node in nodes:
        left = [(amount - taken[node.name, name], one.each[n]) for n, (name, amount) in enumerate(node.room._asdict().items())]
        count += max(0, min(free // wanted for free, wanted in left if wanted))
    return count >= one.ranks


@patient
@given(states())
def test_where_no_limit_is_known_nobody_who_came_later_delays_the_first(state: State) -> None:
    """Whichever running gangs end: if the first in line could start then, it still can beside those that went ahead."""
    nodes, queued, running = state
    running = [replace(gang, left=None, yields=False) for gang in running if not gang.waits]
    queued = [replace(one, limit=None) for one in queued]
    plan = assign(nodes, queued, running)
    head = next((one for one in queued if one.id in plan.waits and plan.waits[one.id].position == 1), None)
    if head is None:
        return
    each = asked(queued, running)
    standing = Standing(Amount(*(sum(node.room[n] for node in nodes) for n in range(3))), {})
    for gang in running:
        standing.add(gang.project, gang.ranks, gang.each)
    ordered = [one.id for one in in_line(queued, standing)]
    before = ordered[: ordered.index(head.id)]
    gangs = [(gang.nodes, gang.each) for gang in running]
    gangs += [(placement, each[name]) for name, placement in plan.start.items() if name in before]
    behind = [(placement, each[name]) for name, placement in plan.start.items() if name not in before]
    for count in range(len(gangs) + 1):
        for left in combinations(gangs, count):
            if fits(nodes, head, left):
                assert fits(nodes, head, [*left, *behind])


class Yard:
    """A closed system: jobs of which none is ever added, gangs that end when the test says so."""

    def __init__(self, nodes: list[Node], queued: Sequence[Queued]) -> None:
        self.nodes, self.queued, self.now = nodes, list(queued), 0.0
        self.running: dict[str, tuple[Queued, Placement, float]] = {}
        self.began: dict[str, float] = {}
        self.plan = Plan()

    def turn(self) -> None:
        running = [
            Running(
                name,
                placement,
                priority=one.priority,
                project=one.project,
                each=one.each,
                left=None if one.limit is None else since + one.limit - self.now,
            )
            for name, (one, placement, since) in self.running.items()
        ]
        self.plan = assign(self.nodes, self.queued, running)
        known = {one.id: one for one in self.queued}
        for name, placement in self.plan.start.items():
            self.running[name] = (known[name], placement, self.now)
            self.began[name] = self.now
        self.queued = [one for one in self.queued if one.id not in self.plan.start and one.id not in self.plan.never]


@patient
@given(clusters, queues(12), st.data())
def test_everybody_runs_in_the_end(nodes: list[Node], queued: list[Queued], data: st.DataObject) -> None:
    yard = Yard(nodes, queued)
    for _ in range(2 * len(queued) + 1):
        yard.turn()
        if yard.running:
            del yard.running[data.draw(st.sampled_from(sorted(yard.running)))]
    assert not yard.queued


@patient
@given(clusters, queues(10), st.data())
def test_the_first_starts_at_the_moment_it_was_promised(nodes: list[Node], queued: list[Queued], data: st.DataObject) -> None:
    """Gangs end at their limits or before; those without one when they like. Whoever is first stays first until it starts."""
    queued = [replace(one, project="", priority=0, place=float(n)) for n, one in enumerate(queued)]
    lasts = {one.id: data.draw(st.integers(1, int(one.limit or 20))) for one in queued}
    yard, promised = Yard(nodes, queued), {}
    while yard.queued or yard.running:
        yard.turn()
        for name, wait in yard.plan.waits.items():
            if wait.within is not None:
                promised[name] = min(promised.get(name, 1e9), yard.now + wait.within)
        if yard.running:
            yard.now = min(since + lasts[name] for name, (_, _, since) in yard.running.items())
            yard.running = {n: held for n, held in yard.running.items() if held[2] + lasts[n] > yard.now}
    assert all(yard.began[name] <= moment for name, moment in promised.items())


@patient
@given(st.lists(amounts, min_size=1, max_size=4), st.integers(12, 40))
def test_equal_projects_get_at_least_an_equal_part_of_what_they_need_most(wants: list[Amount], size: int) -> None:
    """From an empty node, all with more work than fits, in ranks: to within the two ranks that indivisibility may cost."""
    room = Amount(size, size // 2, size)
    queued = [job(f"{p}{n}", 1, n, project=str(p), each=each) for p, each in enumerate(wants) for n in range(size)]
    plan = assign([Node("n", room)], queued, [])
    each = asked(queued, [])
    largest = max(max(a / whole for a, whole in zip(want, room, strict=True)) for want in wants)
    for project, want in enumerate(wants):
        count = sum(each[name] is want and name.startswith(str(project)) for name in plan.start)
        dominant = max(count * a / whole for a, whole in zip(want, room, strict=True))
        assert dominant >= 1 / len(wants) - 2 * largest


def test_over_time_everybody_gets_its_part_however_others_push() -> None:
    """Three projects on 16 processors: one pushes small jobs, one large ones; one asks for little, and gets all of it."""
    nodes, chance = cluster(8, 8), random.Random(7)
    past, got = dict.fromkeys("abc", 0.0), Counter[str]()
    queued: list[Queued] = []
    running: dict[str, tuple[Queued, Placement, int]] = {}
    for turn in range(200):
        queued += [job(f"a{turn}-{n}", 1, turn, project="a") for n in range(20 - sum(q.project == "a" for q in queued))]
        queued += [job(f"b{turn}", 4, turn, project="b")] if sum(q.project == "b" for q in queued) < 4 else []
        queued += [job(f"c{turn}", 2, turn, project="c")] if turn % 4 == 0 else []
        busy = [Running(name, placement, project=one.project) for name, (one, placement, _) in running.items()]
        plan = assign(nodes, queued, busy, {project: (amount, 0.0, 0.0) for project, amount in past.items()})
        running |= {q.id: (q, plan.start[q.id], turn + chance.randint(1, 6)) for q in queued if q.id in plan.start}
        queued = [q for q in queued if q.id not in plan.start]
        holds = Counter(dict.fromkeys("abc", 0))
        for one, placement, _ in running.values():
            holds[one.project] += sum(count for _, count in placement)
        got.update(holds)
        past = {project: 0.95 * amount + 0.05 * holds[project] for project, amount in past.items()}
        running = {name: held for name, held in running.items() if held[2] > turn}
    total = 16 * 200
    assert sum(got.values()) > 0.9 * total
    assert min(got["a"], got["b"]) > total / 3
    assert sum(q.project == "c" for q in queued) <= 2
