"""What the assignment of gangs to nodes takes and what it is worth: passes over a long queue, and a simulation.

The simulation asks the very function that the platform's scheduler asks. Beside it stand first come, first served without
anybody going ahead, and a bound that no schedule can beat. Nothing is started, nothing is waited for: time is simulated.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import svg
import workload
from record import Record, median, recording
from workload import PROJECTS, Outcome, Work, bound, cluster, simulate

from modelyard.jobs.assign import Placement, Plan, Queued, Running, assign
from modelyard.jobs.packing import Room, slots
from modelyard.jobs.types import Node

SEED = 4


def main() -> None:
    with recording("scheduler", __doc__ or "") as record:
        jobs, nodes = (1000, 100) if record.quick else (10_000, 1000)
        record.parameters = {"jobs": jobs, "nodes": nodes, "seed": SEED, "turn_seconds": 20, "window_seconds": 86400 * 1.44}
        machines = cluster(nodes)
        works = workload.jobs(jobs, machines, SEED)
        record.parameters["gangs by ranks"] = workload.sizes(works)
        passes(record, machines, works)
        worth(record, machines, works)


def passes(record: Record, nodes: Sequence[Node], works: Sequence[Work]) -> None:
    """All jobs at once: onto an empty cluster, onto a full one, and onto one where a tenth of the gangs have just ended."""
    queued = [work.job for work in works]
    known = {job.id: job for job in queued}
    for limits in ("with limits", "without limits"):
        line = queued if limits == "with limits" else [_without(job) for job in queued]
        first = assign(nodes, line, [])
        gangs = [_running(known[name], placement, limits == "with limits") for name, placement in first.start.items()]
        rest = [job for job in line if job.id not in first.start]
        more = [Queued(f"again-{job.id}", job.ranks, job.place, 0, job.project, job.each, job.limit) for job in line]
        full = rest + more[: len(line) - len(rest)]
        for name, running in (("empty", []), ("full", gangs), ("a tenth free", [g for n, g in enumerate(gangs) if n % 10])):
            waiting = line if name == "empty" else full
            taken = [_timed(nodes, waiting, running) for _ in range(3 if record.quick else 7)]
            seconds, plan = median(took for took, _ in taken), taken[0][1]
            title = f"pass over {len(waiting)} jobs and {len(nodes)} nodes, {name}, {limits}"
            each = [took for took, _ in taken]
            record.figure(title, 1e3 * seconds, "ms", most=500, each=each, running=len(running), starts=len(plan.start))
            if name != "full":
                record.figure(f"{title}: per started gang", 1e3 * seconds / max(1, len(plan.start)), "ms", most=10)


def worth(record: Record, nodes: Sequence[Node], works: Sequence[Work]) -> None:
    """The same jobs under each policy."""
    least, outcomes = bound(nodes, works), dict[str, Outcome]()
    turn, window = record.parameters["turn_seconds"], record.parameters["window_seconds"]
    record.figure("bound: makespan", least / 3600, "h")
    for name, policy in (("assign", assign), ("fifo", fifo)):
        out = outcomes[name] = simulate(nodes, works, policy, turn, window)
        for resource in (1, 2):
            used = _use(out, resource)
            record.figure(f"{name}: {'GPUs' if resource == 1 else 'CPUs'} in use while jobs wait", 100 * used, "%")
        record.figure(f"{name}: makespan over the bound", out.makespan / least, "×")
        slow = out.slowdowns(works)
        each = {project: round(sum(s) / len(s), 2) for project in PROJECTS if (s := out.slowdowns(works, project))}
        record.figure(f"{name}: bounded slowdown, mean", sum(slow) / len(slow), "×", projects=each)
        for part in (50, 95):
            record.figure(f"{name}: bounded slowdown, p{part}", slow[len(slow) * part // 100], "×")
    took = [turn[4] for turn in outcomes["assign"].turns]
    record.figure("assign: time of a pass in the simulation, mean", 1e3 * sum(took) / len(took), "ms", passes=len(took))
    record.figure("assign: time of a pass in the simulation, longest", 1e3 * max(took), "ms", most=500)
    record.figure("assign: time of all passes per started gang", 1e3 * sum(took) / len(works), "ms", most=10)
    plot(record.out.with_suffix(".svg"), outcomes, works)


def fifo(nodes: Sequence[Node], queued: Sequence[Queued], running: Sequence[Running], _: Mapping[str, Sequence[float]]) -> Plan:
    """First come, first served: who does not fit holds up all behind it."""
    room, start = Room(nodes), dict[str, Placement]()
    for gang in running:
        room.take(room.spots(gang.nodes), gang.each)
    for job in sorted(queued, key=lambda job: (job.place, job.id)):
        spots = room.fit(slots(room.free, job.each), job.ranks)
        if spots is None:
            break
        room.take(spots, job.each)
        start[job.id] = tuple((room.names[node], ranks) for node, ranks in spots)
    return Plan(start=start)


def plot(file: Path, outcomes: Mapping[str, Outcome], works: Sequence[Work]) -> None:
    """GPUs in use and jobs in the queue over time, and how many jobs were slowed down by how much."""
    file.parent.mkdir(parents=True, exist_ok=True)
    use = {name: [(turn[0] / 3600, 100 * turn[1]) for turn in out.turns] for name, out in outcomes.items()}
    queue = {name: [(turn[0] / 3600, float(turn[3])) for turn in out.turns] for name, out in outcomes.items()}
    slow = {}
    for name, out in outcomes.items():
        ordered = out.slowdowns(works)
        slow[name] = [(value, 100 * (n + 1) / len(ordered)) for n, value in enumerate(ordered)]
    panels = [
        svg.Panel("GPUs in use", "hours", "%", use),
        svg.Panel("jobs that wait", "hours", "jobs", queue),
        svg.Panel("jobs slowed down at most so much", "bounded slowdown", "%", slow, log=True),
    ]
    file.write_text(svg.drawn(panels))


def _use(out: Outcome, resource: int) -> float:
    """Mean use up to the last turn that left somebody waiting: after that, there was nothing to choose."""
    last = max((turn[0] for turn in out.turns if turn[3]), default=0.0)
    turns = [turn for turn in out.turns if turn[0] <= last]
    total = sum((after[0] - turn[0]) * turn[resource] for turn, after in pairwise(turns))
    return total / max(1e-9, turns[-1][0] - turns[0][0]) if len(turns) > 1 else 0.0


def _timed(nodes: Sequence[Node], queued: Sequence[Queued], running: Sequence[Running]) -> tuple[float, Plan]:
    begun = time.perf_counter()
    plan = assign(nodes, queued, running)
    return time.perf_counter() - begun, plan


def _running(job: Queued, placement: Placement, limits: bool) -> Running:
    return Running(job.id, placement, project=job.project, each=job.each, left=job.limit if limits else None)


def _without(job: Queued) -> Queued:
    return Queued(job.id, job.ranks, job.place, job.priority, job.project, job.each)


if __name__ == "__main__":
    main()
