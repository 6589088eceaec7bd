"""Writing jobs: the only statements that change a job once it is there, each fenced by the lease of whoever may.

`service` and the scheduler call these inside their transactions. Every change of state leaves an event in the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, insert, or_, select, update

from modelyard.db import Session, now
from modelyard.jobs.tables import EventRow, JobRow
from modelyard.jobs.types import Amount, Job, Resolved, State, Target

Said = tuple[str, Mapping[str, Any]]


class Lost(Exception):
    """Another attempt, or nobody, holds this job now. It never leaves the room: who meets it lets go of the job."""


def load(row: JobRow) -> Job:
    """The row as a value."""
    other = ("state", "resolved", "target", "resources")
    same = {name: getattr(row, name) for name in Job.__dataclass_fields__ if name not in other}
    return Job(
        **same,
        resources=Amount(**row.resources),
        state=State(row.state),
        resolved=tuple(Resolved(**said) for said in row.resolved),
        target=Target(**row.target) if row.target else None,
    )


def resolved_to_json(resolved: Iterable[Resolved]) -> list[dict[str, Any]]:
    return [{**asdict(one), "metadata": dict(one.metadata)} for one in resolved]


def append(session: Session, job: str, lease: str | None, said: Sequence[Said]) -> None:
    """Add events in order. The counter on the job's row numbers them, also between two writers. Raises `Lost` as `change`."""
    if not said:
        return
    mine = update(JobRow).where(JobRow.id == job, JobRow.token == lease)
    counted = mine.values(events=JobRow.events + len(said)).returning(JobRow.events)
    last = session.scalars(counted, execution_options={"synchronize_session": False}).one_or_none()
    if last is None:
        raise Lost(f"The job {job} is another's now.")
    moment, first = now(), last - len(said) + 1
    rows = [
        {"job": job, "seq": first + n, "at": moment, "type": kind, "body": dict(body)} for n, (kind, body) in enumerate(said)
    ]
    session.execute(insert(EventRow), rows)


def change(session: Session, job: str, lease: str | None, **values: Any) -> None:
    """Set columns of a job. Raises `Lost` unless `lease` (None: no attempt) holds it and it has not ended."""
    where = (JobRow.id == job, JobRow.token == lease, JobRow.state.in_(UNENDED))
    found = session.execute(update(JobRow).where(*where).values(**values).returning(JobRow.id)).first()
    if found is None:
        raise Lost(f"The job {job} is another's now.")


def evolve(session: Session, job: str, lease: str | None, state: State, **values: Any) -> None:
    """Bring a job into a state, with what else changes then, and say so in its events. Raises `Lost` as `change`."""
    if state.ended:
        values = {"finished": now(), "token": None, "why": None, "position": None, **values}
    change(session, job, lease, state=state.value, **values)
    error = values.get("error")
    said = {"state": state.value, **({"error": error} if error else {})}
    append(session, job, values.get("token", lease), [("state", said)])


def requeue(session: Session, job: str, lease: str | None, why: str) -> None:
    """Put a job whose gang is gone back into the queue, at its old place."""
    evolve(session, job, lease, State.queued, token=None, pids=[], why=why)


def may_start() -> tuple[ColumnElement[bool], ...]:
    """What is true of a job that need not wait for its next attempt."""
    return (or_(JobRow.not_before.is_(None), JobRow.not_before <= now()),)


def cancel(session: Session, job: Job) -> None:
    """Ask for a job's end: one that never ran is over at once, another when its gang is."""
    if job.state is State.queued and job.attempt == 0:
        try:
            evolve(session, job.id, job.token, State.cancelled)
            return
        except Lost:
            pass  # it was claimed a moment ago
    session.execute(update(JobRow).where(JobRow.id == job.id, JobRow.state.in_(UNENDED)).values(cancelling=True))


def cancel_children(session: Session, parent: str) -> None:
    """A job's children end with it."""
    for row in session.scalars(select(JobRow).where(JobRow.parent == parent, JobRow.state.in_(UNENDED))):
        cancel(session, load(row))


UNENDED = tuple(state.value for state in State if not state.ended)
