"""Checkpoints that nobody will resume from, and what killed writers left in the store: what goes, and letting go of it.

The scheduler has it done once in a while. It looks at what the store has, so that whatever a killed control left goes too, and
doing it twice, or only half, does no harm.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import select

from modelyard.db import Database, Session, now
from modelyard.jobs.tables import JobRow
from modelyard.jobs.types import State
from modelyard.storage import Artefacts
from modelyard.tenancy import service as tenancy

# An upload that is under way writes at least so often: a chunk has at most 64 MiB.
_LEFT = timedelta(days=1)


def collect(db: Database, artefacts: Artefacts, days: float) -> int:
    """Drop the checkpoints of jobs that are over, those of failed ones `days` after; returns of how many jobs. Sweep the store
    of what was left half written, a day after."""
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


def superfluous(session: Session, project: str, jobs: Collection[str], before: datetime) -> list[str]:
    """Of jobs that have checkpoints those that need them no more: done or cancelled, failed `before` then, or unknown."""
    found = []
    for job in sorted(jobs):
        row = session.scalar(select(JobRow).where(JobRow.id == job, JobRow.project == project))
        if row is None or (State(row.state).ended and (row.state != State.failed.value or (row.finished or before) < before)):
            found.append(job)
    return found
