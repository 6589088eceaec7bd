"""A child job that was done before: of the same kind, configuration, ranks and versions, and by the same means, as far as
it said. Whoever submits it so may have what came of it then, at once and for nothing. Called by `service.submit`, in its
transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from modelyard.db import Session
from modelyard.jobs import records
from modelyard.jobs.tables import EventRow, JobRow
from modelyard.jobs.types import State
from modelyard.tenancy import ledger

_MOST = 1000  # of the newest children of a kind that are looked through


def find(session: Session, asked: JobRow, known: Mapping[str, Any]) -> JobRow | None:
    """The newest child of the same project that was asked the same and succeeded, and whose first rank reported what is
    `known`, such as the versions of libraries."""
    alike = (JobRow.project == asked.project, JobRow.kind == asked.kind, JobRow.ranks == asked.ranks)
    done = (JobRow.state == State.succeeded.value, JobRow.parent.is_not(None))
    query = (
        select(JobRow.id, JobRow.config, JobRow.inputs, JobRow.target)
        .where(*alike, *done)
        .order_by(JobRow.created.desc())
        .limit(_MOST)
    )
    wanted = (asked.config, asked.inputs, None)  # pinned references: what they mean never changes
    same = [row.id for row in session.execute(query) if (row.config, row.inputs, row.target) == wanted]
    found = (session.get_one(JobRow, one) for one in same)
    return next((row for row in found if known.items() <= row.facts.get("0", {}).items()), None)


def take(session: Session, row: JobRow, before: JobRow) -> None:
    """End a job that has not begun with what `before` came to: metrics, facts and outputs, which name who made them."""
    told = select(EventRow.body).where(EventRow.job == before.id, EventRow.type == "metric").order_by(EventRow.seq)
    line = f"job {before.id} did the same before: the same kind, configuration and inputs; nothing is done again"
    said = [("log", {"rank": 0, "text": line}), *(("metric", body) for body in session.scalars(told))]
    records.append(session, row.id, None, said)
    outputs = [{"job": before.id, **output} for output in before.outputs]
    records.evolve(session, row.id, None, State.succeeded, outputs=outputs, facts=dict(before.facts))
    ledger.audit(session, row.project, row.key, "job.reuse", row.id, {"kind": row.kind, "job": before.id})
