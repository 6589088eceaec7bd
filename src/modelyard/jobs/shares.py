"""What every project has held of the cluster, as an average that fades: the past that fair shares are decided by.

The scheduler adds to it at every look and keeps one row a project. Control can be killed at any line: what is not yet written
is seconds of an average over a day, and is forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import select

from modelyard.db import Session, now
from modelyard.jobs.tables import ShareRow
from modelyard.jobs.types import Amount

# Seconds between two times that it is written.
_KEEP = 10.0
# Less than this of a processor, a GPU or a byte, on average, is none.
_NOTHING = 1e-6


def faded(past: Sequence[float], held: Sequence[float], seconds: float, half_life: float) -> tuple[float, ...]:
    """The average after `seconds` in which `held` was held: half of what it was after a half-life of nothing."""
    kept = 0.5 ** (max(0.0, seconds) / half_life)
    return tuple(before * kept + more * (1 - kept) for before, more in zip(past, held, strict=True))


class Shares:
    """The averages of all projects, in control's memory."""

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._past: dict[str, tuple[float, ...]] = {}
        self._moment = self._kept = time.monotonic()

    @property
    def past(self) -> Mapping[str, Sequence[float]]:
        """What each project held on average: CPUs, GPUs, bytes."""
        return self._past

    def load(self, session: Session) -> None:
        """What an earlier control kept, faded since."""
        self._past = {}
        for row in session.scalars(select(ShareRow)):
            since = (now() - row.at).total_seconds()
            self._past[row.project] = faded((row.cpus, row.gpus, row.memory), (0, 0, 0), since, self._half_life)
        self._moment = time.monotonic()

    def add(self, held: Iterable[tuple[str, int, Amount]]) -> None:
        """Project, ranks and what each takes, for every gang that was there since the last time."""
        totals: dict[str, list[float]] = {}
        for project, ranks, each in held:
            total = totals.setdefault(project, [0.0] * len(each))
            for resource, amount in enumerate(each):
                total[resource] += ranks * amount
        moment = time.monotonic()
        nothing = [0.0] * len(Amount._fields)
        for project in self._past.keys() | totals.keys():
            past, more = self._past.get(project, nothing), totals.get(project, nothing)
            self._past[project] = faded(past, more, moment - self._moment, self._half_life)
        self._past = {project: past for project, past in self._past.items() if max(past) > _NOTHING}
        self._moment = moment

    def due(self) -> bool:
        """Whether it is time to write it down."""
        return bool(self._past) and time.monotonic() - self._kept >= _KEEP

    def keep(self, session: Session) -> None:
        """Write it down."""
        for project, (cpus, gpus, memory) in sorted(self._past.items()):
            session.merge(ShareRow(project=project, cpus=cpus, gpus=gpus, memory=memory, at=now()))
        self._kept = time.monotonic()
