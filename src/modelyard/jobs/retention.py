"""Checkpoints that nobody will resume from, and what killed writers left in the store: what goes, and letting go of it.

The scheduler has it done once in a while. It looks at what the store has, so that whatever a killed control left goes too, and
doing it twice, or only half, does no harm.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta

from sqlalchemy import select

from modelyard.db import Database, Session, now
from modelyard.jobs.records import UNENDED
from modelyard.jobs.tables import JobRow
from modelyard.jobs.types import State
from modelyard.storage import Artefacts
from modelyard.tenancy import service as tenancy

# An upload that is under way writes at least so often: a chunk has at most 64 MiB.
_LEFT = timedelta(days=1)


def collect(db: Database, artefacts: Artefacts, days: float) -> int:
    """Drop the checkpoints of jobs that are over, those of failed and cancelled ones `days` after; returns of how many jobs.
    Sweep the store of what was left half written, a day after."""
    artefacts.sweep((now() - _LEFT).timestamp())
    before, dropped = now() - timedelta(days=days), 0
    with db.read() as session:
        projects = [str(project["name"]) for project in tenancy.projects(session)]
    for project in projects:
        kept = artefacts.checkpointed(project)
        with db.read() as session:
            done = superfluous(session, project, kept, before)
        for job in done:
            artefacts.drop_checkpoints(project, job)
        dropped += len(done)
    return dropped


def superfluous(session: Session, project: str, jobs: AbstractSet[str], before: datetime) -> list[str]:
    """Of jobs that have checkpoints those whose nobody needs any more: done, failed or cancelled `before` then, or unknown.
    What a job that has not ended goes on from is needed."""
    mine = JobRow.project == project
    wanted = select(JobRow.resume).where(mine, JobRow.resume.is_not(None), JobRow.state.in_(UNENDED))
    needed, found = set(session.scalars(wanted)), []
    for job in sorted(jobs - needed):
        row = session.scalar(select(JobRow).where(mine, JobRow.id == job))
        if row is None or _over(row, before):
            found.append(job)
    return found


def _over(row: JobRow, before: datetime) -> bool:
    if row.state in (State.failed.value, State.cancelled.value) and not (row.parent and row.state == State.cancelled.value):
        return (row.finished or before) < before
    return State(row.state).ended
