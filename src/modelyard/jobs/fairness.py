"""Who is first: the line of those that wait, by priority, then by how little of the cluster their project has had.

`assign` calls it. Dominant resource fairness: a project's share is the largest of its shares of processors, of GPUs and of
memory. What counts is what it holds now and what it held on average over the window that is past. The line is made as if
each got what it asks for at its turn, so that equal projects take turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Protocol, TypeVar

from modelyard.jobs.types import Amount


class Waiting(Protocol):
    """What the order needs to know of a job."""

    @property
    def id(self) -> str: ...
    @property
    def project(self) -> str: ...
    @property
    def ranks(self) -> int: ...
    @property
    def each(self) -> Amount: ...
    @property
    def place(self) -> float: ...
    @property
    def priority(self) -> int: ...


J = TypeVar("J", bound=Waiting)


class Standing:
    """How much of a cluster's `capacity` every project has; while the line is made, would have."""

    def __init__(self, capacity: Amount, used: Mapping[str, Sequence[float]]) -> None:
        self._capacity = [max(1, amount) for amount in capacity]
        self._amounts = {project: [float(amount) for amount in amounts] for project, amounts in used.items()}

    def add(self, project: str, ranks: int, each: Amount) -> None:
        amounts = self._amounts.setdefault(project, [0.0] * len(each))
        for resource, amount in enumerate(each):
            amounts[resource] += ranks * amount

    def share(self, project: str) -> float:
        """The dominant share: 1 is all of the cluster."""
        amounts = self._amounts.get(project)
        return max(map(float.__truediv__, amounts, map(float, self._capacity))) if amounts else 0.0


def line(queued: Iterable[J], standing: Standing) -> list[J]:
    """All that wait, first to last. `standing` is brought to where it would be if all of them had started."""
    by_project: dict[str, list[J]] = {}
    for job in queued:
        by_project.setdefault(job.project, []).append(job)
    heads = []
    for project, jobs in by_project.items():
        # Last to first, because they are taken from the end.
        jobs.sort(key=lambda job: (-job.priority, job.place, job.id), reverse=True)
        heads.append((-jobs[-1].priority, standing.share(project), jobs[-1].place, project))
    heapify(heads)
    ordered: list[J] = []
    while heads:
        *_, project = heappop(heads)
        jobs = by_project[project]
        job = jobs.pop()
        ordered.append(job)
        standing.add(project, job.ranks, job.each)
        if jobs:
            heappush(heads, (-jobs[-1].priority, standing.share(project), jobs[-1].place, project))
    return ordered
