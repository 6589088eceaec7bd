"""Who runs now: never too many, never all but all, nobody for ever last, and nobody delayed by who came later."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from modelyard.jobs.assign import Plan, Queued, Running, assign

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def job(name: str, ranks: int, place: int = 0, priority: int = 0) -> Queued:
    return Queued(name, ranks, EPOCH + timedelta(seconds=place), priority)


def line(*ranks: int) -> list[Queued]:
    return [job(f"j{n}", count, n) for n, count in enumerate(ranks)]


def test_first_come_first_served() -> None:
    assert assign(4, line(2, 1, 1, 1), []).start == ("j0", "j1", "j2")


def test_a_gang_starts_whole_or_not_at_all() -> None:
    plan = assign(4, line(3), [Running("r", 2)])
    assert plan == Plan(why={"j0": "waits for 3 free processors (2 of 4 are free)"})


def test_priority_goes_first() -> None:
    assert assign(1, [job("low", 1, 0), job("high", 1, 1, priority=1)], []).start == ("high",)


def test_a_later_one_goes_ahead_only_where_it_cannot_delay_the_first() -> None:
    # When the gang of 4 ends, 6 are free: the first needs 4, so 2 are to spare.
    assert assign(6, line(4, 2), [Running("r", 4)]).start == ("j1",)
    # Either gang of 2 may end first, and then all 6 that are free are needed.
    assert assign(8, line(6, 2), [Running("a", 2), Running("b", 2)]).start == ()


def test_what_can_never_run_holds_up_nobody() -> None:
    plan = assign(2, line(3, 2), [])
    assert plan.start == ("j1",)
    assert plan.why == {"j0": "needs 3 processors at once; there are 2"}


def test_a_parent_that_waits_gives_way_to_its_children() -> None:
    assert assign(1, line(1), [Running("parent", 1, waits=True)]).start == ("j0",)


def test_a_parent_whose_children_have_ended_comes_before_the_queue() -> None:
    parent = Running("parent", 2, waits=True, resumes=True)
    text = "waits for 1 free processor (0 of 2 are free)"
    assert assign(2, line(1, 1), [parent]) == Plan(("parent",), why={"j0": text, "j1": f"{text}, behind 1 other"})
    assert assign(2, line(1), [parent, Running("child", 1)]).start == ()


queues = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3), st.integers(0, 1)), max_size=8).map(
    lambda rows: [job(f"j{n}", ranks, place, priority) for n, (ranks, place, priority) in enumerate(rows)]
)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[int, list[Running]]:
    """A number of processors and gangs that fit on them, some of which wait for children."""
    cpus = free = draw(st.integers(1, 9))
    running = []
    for n in range(draw(st.integers(0, 5))):
        ranks, waits = draw(st.integers(1, cpus)), draw(st.booleans())
        if waits or ranks <= free:
            running.append(Running(f"r{n}", ranks, waits, waits and draw(st.booleans())))
            free -= 0 if waits else ranks
    return cpus, running


def used(running: Iterable[Running], plan: Plan, queued: list[Queued]) -> int:
    ranks = {gang.id: gang.ranks for gang in [*running, *queued]}
    return sum(g.ranks for g in running if not g.waits) + sum(ranks[name] for name in (*plan.resume, *plan.start))


@given(clusters(), queues)
def test_never_more_ranks_than_processors(cluster: tuple[int, list[Running]], queued: list[Queued]) -> None:
    cpus, running = cluster
    plan = assign(cpus, queued, running)
    assert used(running, plan, queued) <= cpus
    assert set(plan.start) | set(plan.why) == {j.id for j in queued} | {g.id for g in running if g.resumes} - set(plan.resume)
    assert not set(plan.start) & set(plan.why)


@given(clusters(), queues, st.randoms())
def test_the_order_of_the_lists_decides_nothing(
    cluster: tuple[int, list[Running]], queued: list[Queued], random: object
) -> None:
    cpus, running = cluster
    shuffled = list(queued)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign(cpus, shuffled, running) == assign(cpus, queued, running)


@given(clusters(), queues)
def test_nobody_who_came_later_delays_the_first(cluster: tuple[int, list[Running]], queued: list[Queued]) -> None:
    """Whichever running gangs end: if the first in line could start then, it still can beside those that went ahead."""
    cpus, running = cluster
    running = [gang for gang in running if not gang.waits]
    ordered = sorted((j for j in queued if j.ranks <= cpus), key=lambda j: (-j.priority, j.place, j.id))
    plan = assign(cpus, queued, running)
    head = next((j for j in ordered if j.id not in plan.start), None)
    if head is None:
        return
    at = ordered.index(head)
    before = sum(j.ranks for j in ordered[:at])
    ahead = sum(j.ranks for j in ordered[at:] if j.id in plan.start)
    gangs = [g.ranks for g in running] + [j.ranks for j in ordered[:at]]
    free = cpus - sum(g.ranks for g in running) - before
    for count in range(len(gangs) + 1):
        for ended in combinations(gangs, count):
            if free + sum(ended) >= head.ranks:
                assert free - ahead + sum(ended) >= head.ranks


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(4, 6), st.data())
def test_everybody_runs_in_the_end(ranks: list[int], cpus: int, data: st.DataObject) -> None:
    queued, running = line(*ranks), []
    for _ in range(2 * len(ranks) + 1):
        plan = assign(cpus, queued, running)
        running += [Running(j.id, j.ranks) for j in queued if j.id in plan.start]
        queued = [j for j in queued if j.id not in plan.start]
        if running:
            running.pop(data.draw(st.integers(0, len(running) - 1)))
    assert not queued
