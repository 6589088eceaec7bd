"""The verbs of the jobs room: submit, look, cancel. Each takes a session and a project; routes and the scheduler (for child
jobs) open the transaction. What runs a job is the scheduler; nothing here knows a process.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import and_, func, or_, select

from modelyard.db import Session, now
from modelyard.errors import Invalid, not_found
from modelyard.jobs import records, resuming, reusing, submission
from modelyard.jobs.tables import EventRow, JobRow
from modelyard.jobs.types import Job, Node, State, Submission
from modelyard.kinds import JobKind
from modelyard.plugins import Registry
from modelyard.tenancy import ledger
from modelyard.tenancy.types import Principal

_PAGE = 1000
# What a parent is told at once: events, their bytes; children that are looked through in one question.
_NEWS, _NEWS_BYTES, _AT_ONCE = 500, 256 << 10, 50


def submit(
    session: Session,
    principal: Principal,
    asked: Submission,
    kinds: Registry[JobKind],
    *,
    nodes: Sequence[Node],
    parent: Job | None = None,
    reuse: Mapping[str, Any] | None = None,
) -> Job:
    """Queue a job. Raises `NotFound` (kind, inputs, the job it resumes), `Invalid` (config, roles, ranks, target, what differs
    from the job it resumes), each saying what there is, and `Forbidden` (priority).

    `nodes` are all there are; `parent` is the job that submits this one, whose priority, limits and ranks' resources it gets.
    `reuse`: where another child was asked the same before, and reported these facts, the job ends at once with what that
    came to.
    """
    kind = kinds.get(asked.kind)
    config = submission.check_config(kind, asked.config, asked.ranks)
    each, limits = (parent.resources, parent) if parent else (asked.resources.amount, asked)
    submission.check_ranks(kind, asked.ranks, each, nodes)
    if parent is None:
        submission.check_priority(principal, asked.priority)
    resolved = submission.check(session, principal.project, asked, kind, child=parent is not None)
    if asked.resume is not None:
        resuming.check(kind, get(session, principal.project, asked.resume), config, resolved)
    created = now()
    row = JobRow(
        id=secrets.token_hex(6),
        project=principal.project,
        key=principal.key,
        kind=asked.kind,
        config=config,
        inputs={one.role: submission.pinned(one) for one in resolved},
        resolved=records.resolved_to_json(resolved),
        target=asked.target.model_dump() if asked.target else None,
        ranks=asked.ranks,
        resources=each._asdict(),
        priority=limits.priority,
        timeout=limits.timeout,
        max_restarts=limits.max_restarts,
        resume=asked.resume,
        parent=parent.id if parent else None,
        place=parent.created if parent else created,
        state=State.queued.value,
        created=created,
    )
    session.add(row)
    session.flush()
    records.append(session, row.id, None, [("state", {"state": State.queued.value})])
    detail = {"kind": asked.kind, "inputs": row.inputs, "target": row.target, "parent": row.parent, "resume": row.resume}
    ledger.audit(session, principal.project, principal.key, "job.submit", row.id, detail)
    if reuse is not None and (before := reusing.find(session, row, reuse)) is not None:
        reusing.take(session, row, before)
    session.refresh(row)
    return records.load(row)


def get(session: Session, project: str, job: str) -> Job:
    """Raises `NotFound`, also for another project's job, naming the newest of the project's own."""
    row = session.get(JobRow, job, populate_existing=True)
    if row is None or row.project != project:
        mine = select(JobRow.id).where(JobRow.project == project).order_by(JobRow.created.desc(), JobRow.id).limit(_PAGE)
        raise not_found("job", job[:80], session.scalars(mine), newest=5)
    return records.load(row)


def moved(session: Session, job: str, after: int) -> bool:
    """Whether there may be more to tell of a job than its first `after` events: a follower asks often, so this is cheap."""
    found = session.execute(select(JobRow.events, JobRow.state).where(JobRow.id == job)).first()
    return found is None or found.events > after or State(found.state).ended


def jobs(session: Session, project: str, state: str | None = None, limit: int = _PAGE) -> list[Job]:
    """The project's newest jobs, newest first; of one state if given. Raises `Invalid` for a state that is none."""
    query = select(JobRow).where(JobRow.project == project).order_by(JobRow.created.desc(), JobRow.id).limit(limit)
    if state is not None:
        if state not in {known.value for known in State}:
            raise Invalid(f"'{state[:80]}' is no state of a job; there are {', '.join(known.value for known in State)}.")
        query = query.where(JobRow.state == state)
    return [records.load(row) for row in session.scalars(query)]


def underway(session: Session, project: str, first: int) -> tuple[list[Job], dict[str, int]]:
    """The project's jobs that start or run, oldest first, then the `first` of those that wait, in the order of the queue; and
    how many there are of each state."""
    mine, waits = JobRow.project == project, JobRow.state == State.queued.value
    unended = select(JobRow.state, func.count()).where(mine, JobRow.state.in_(records.UNENDED)).group_by(JobRow.state)
    counts = dict.fromkeys(records.UNENDED, 0) | {row[0]: row[1] for row in session.execute(unended)}
    started = select(JobRow).where(mine, JobRow.state.in_((State.starting.value, State.running.value)))
    position = func.coalesce(JobRow.position, 1 << 30)
    order = (JobRow.priority.desc(), position, JobRow.place, JobRow.id)
    queue = select(JobRow).where(mine, waits).order_by(*order).limit(first)
    rows = [*session.scalars(started.order_by(JobRow.created, JobRow.id)), *session.scalars(queue)]
    return [records.load(row) for row in rows], counts


def news(session: Session, parent: str, after: Mapping[str, int]) -> dict[str, list[dict[str, Any]]] | None:
    """The children of a job, in the order they were submitted, and what each went through beyond the event numbers `after`:
    changes of state and metrics. None while there is nothing new and a child has not ended."""
    mine = select(JobRow.id, JobRow.events, JobRow.state).where(JobRow.parent == parent).order_by(JobRow.created, JobRow.id)
    children = session.execute(mine).all()
    told: dict[str, list[dict[str, Any]]] = {row.id: [] for row in children}
    heard = {row.id: after.get(row.id, 0) for row in children}
    later = [and_(EventRow.job == row.id, EventRow.seq > heard[row.id]) for row in children if row.events > heard[row.id]]
    size = 0
    for start in range(0, len(later), _AT_ONCE):
        query = select(EventRow).where(or_(*later[start : start + _AT_ONCE]), EventRow.type.in_(("state", "metric")))
        for row in session.scalars(query.order_by(EventRow.job, EventRow.seq).limit(_NEWS)):
            size += len(json.dumps(row.body))
            if size > _NEWS_BYTES and any(told.values()):
                return told
            told[row.job].append(_shown(row))
    return told if any(told.values()) or all(State(row.state).ended for row in children) else None


def cancel(session: Session, principal: Principal, job: str) -> Job:
    """Ask a job to stop; one that has ended stays as it is."""
    found = get(session, principal.project, job)
    if not found.state.ended and not found.cancelling:
        records.cancel(session, found)
        ledger.audit(session, principal.project, principal.key, "job.cancel", job)
    return get(session, principal.project, job)


def events(session: Session, project: str, job: str, after: int = 0, limit: int = _PAGE) -> Sequence[dict[str, Any]]:
    """A job's events from number `after` on, in order: {'seq', 'at', 'type', …}. Raises `NotFound` as `get`."""
    get(session, project, job)
    query = select(EventRow).where(EventRow.job == job, EventRow.seq > after).order_by(EventRow.seq).limit(limit)
    return [_shown(row) for row in session.scalars(query)]


def _shown(row: EventRow) -> dict[str, Any]:
    return {**row.body, "seq": row.seq, "at": row.at.isoformat(), "type": row.type}
