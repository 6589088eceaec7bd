"""What `assign` is asked with, from the books and from what runs, and what it answered, back into the books.

The scheduler calls these. Of a long queue only what is needed is read, and of every project the same number of jobs, so that
one project's thousands hide nobody else's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, select, update

from modelyard.db import Session, now
from modelyard.jobs import records
from modelyard.jobs.active import Active
from modelyard.jobs.assign import Plan, Queued, Running
from modelyard.jobs.tables import JobRow
from modelyard.jobs.types import Amount, State
from modelyard.kinds import JobKind
from modelyard.plugins import Registry

# Jobs of one project that are looked at; the others are told nothing new until they are among these.
_MOST = 1000
# Seconds after which those that wait are told again, where only their position or somebody's share has changed.
_TOLD = 5.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that waits, what it was told, and how often it made room for others."""

    job: Queued
    position: int | None
    why: str | None
    preempted: int = 0

    def note(self, why: str) -> str:
        """Why it waits, and why it waits again."""
        times = "a job" if self.preempted == 1 else f"{self.preempted} jobs"
        made = f"; it made room for {times} of higher priority and goes on from its checkpoint"
        return why + made if self.preempted else why


def own(kinds: Registry[JobKind], kind: str, each: Amount) -> Amount:
    """What a rank of such a job takes itself: one that only looks after its children leaves the GPUs to them."""
    watches = kind in kinds and kinds.get(kind).rejoins
    return each._replace(gpus=0) if watches else each


def waiting(session: Session, kinds: Registry[JobKind]) -> dict[str, Waiting]:
    """The first jobs of every project's queue, by id."""
    columns = [getattr(JobRow, name) for name in _COLUMNS]
    order = (JobRow.priority.desc(), JobRow.place, JobRow.id)
    number = func.row_number().over(partition_by=JobRow.project, order_by=order).label("number")
    queued = (JobRow.state == State.queued.value, JobRow.cancelling.is_(False), *records.may_start())
    found = select(*columns, number).where(*queued).subquery()
    rows = session.execute(select(found).where(found.c.number <= _MOST)).all()
    return {row.id: Waiting(_queued(row, kinds), row.position, row.why, row.preempted) for row in rows}


# What a `Queued` is made of, and what the job was told.
_LIMITS = ("timeout", "spent", "started")
_COLUMNS = ("id", "kind", "project", "ranks", "resources", "place", "priority", *_LIMITS, "position", "why", "preempted")


def gang(active: Active, kinds: Registry[JobKind]) -> Running:
    """A gang that is there, as `assign` sees it."""
    job = active.job
    return Running(
        job.id,
        active.nodes,
        waits=active.idle,
        resumes=active.resumes,
        priority=job.priority,
        project=job.project,
        each=own(kinds, job.kind, job.resources),
        left=_left(job.timeout, job.ran(now())),
        age=time.monotonic() - active.began,
        yields=active.yields,
        leaves=active.sent_back is not None,
    )


class Notices:
    """Tells those that wait their position and why, at most as often as is worth a write."""

    def __init__(self) -> None:
        self._told = 0.0

    def due(self, plan: Plan, known: Mapping[str, Waiting]) -> list[dict[str, object]]:
        """What is to be written: at once for who knows nothing yet, for others every few seconds."""
        all_ = time.monotonic() - self._told >= _TOLD
        said: list[tuple[str, int | None, str]] = [(name, wait.position, wait.why) for name, wait in plan.waits.items()]
        said += [(name, None, why) for name, why in plan.never.items()]
        new: list[dict[str, object]] = []
        for name, position, why in said:
            before = known.get(name)
            if before is None or not (all_ or before.position is None):
                continue
            why = before.note(why)
            if (before.position, before.why) != (position, why):
                new.append({"job": name, "position": position, "why": why})
        if all_ and new:
            self._told = time.monotonic()
        return new


def tell(session: Session, notices: Iterable[Mapping[str, object]]) -> None:
    """Write notices, in one statement; who no longer waits is left alone."""
    statement = update(JobRow).where(JobRow.id == bindparam("job"), JobRow.state == State.queued.value)
    written = statement.values(position=bindparam("position"), why=bindparam("why"))
    session.connection().execute(written, [dict(notice) for notice in notices])


def _queued(row: Any, kinds: Registry[JobKind]) -> Queued:
    ran = row.spent + ((now() - row.started).total_seconds() if row.started else 0.0)
    each, limit = own(kinds, row.kind, Amount(**row.resources)), _left(row.timeout, ran)
    return Queued(row.id, row.ranks, row.place.timestamp(), row.priority, row.project, each, limit)


def _left(timeout: float | None, ran: float) -> float | None:
    """Seconds that a job may still run where somebody said so; the platform's own guard of a day promises nothing."""
    return timeout and max(0.0, timeout - ran)
