"""A child job that was done before: of the same kind, configuration, ranks and versions. Whoever submits it so may have what
came of it then, at once and for nothing. Called by `service.submit`, in its transaction.
"""

from __future__ import annotations

from sqlalchemy import select

from modelyard.db import Session
from modelyard.jobs import records
from modelyard.jobs.tables import EventRow, JobRow
from modelyard.jobs.types import State
from modelyard.tenancy import ledger

_MOST = 1000  # of the newest children of a kind that are looked through


def find(session: Session, asked: JobRow) -> JobRow | None:
    """The newest child of the same project that was asked the same and succeeded."""
    alike = (JobRow.project == asked.project, JobRow.kind == asked.kind, JobRow.ranks == asked.ranks)
    done = (JobRow.state == State.succeeded.value, JobRow.parent.is_not(None))
    query = (
        select(JobRow.id, JobRow.config, JobRow.inputs, JobRow.target)
        .where(*alike, *done)
        .order_by(JobRow.created.desc())
        .limit(_MOST)
    )
    wanted = (asked.config, asked.inputs, None)  # pinned references: what they mean never changes
    same = next((row.id for row in session.execute(query) if (row.config, row.inputs, row.target) == wanted), None)
    return session.get(JobRow, same) if same else None


def take(session: Session, row: JobRow, before: JobRow) -> None:
    """End a job that has not begun with what `before` came to: metrics, facts and outputs, which name who made them."""
    told = select(EventRow.body).where(EventRow.job == before.id, EventRow.type == "metric").order_by(EventRow.seq)
    line = f"job {before.id} did the same before: the same kind, configuration and inputs; nothing is done again"
    said = [("log", {"rank": 0, "text": line}), *(("metric", body) for body in session.scalars(told))]
    records.append(session, row.id, None, said)
    outputs = [{"job": before.id, **output} for output in before.outputs]
    records.evolve(session, row.id, None, State.succeeded, outputs=outputs, facts=dict(before.facts))
    ledger.audit(session, row.project, row.key, "job.reuse", row.id, {"kind": row.kind, "job": before.id})
