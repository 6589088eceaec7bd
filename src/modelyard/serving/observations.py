"""What gateways saw of releases on trial, in the database: running totals, a row a gateway, so that telling twice counts once.

A gateway's settling thread writes them, the controller sums and judges them. It knows tables, and nothing of calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from modelyard.db import Database, Session
from modelyard.serving.tables import DeploymentRow, ObservationRow
from modelyard.serving.types import Seen
from modelyard.serving.verdict import Evidence, Signal, Tally


def write(database: Database, seen: Sequence[Seen]) -> None:
    """Keep the newest totals; of trials that have ended nothing is kept any more."""
    with database.begin() as session:
        for one in seen:
            row = session.get(DeploymentRow, one.deployment)
            if row is not None and (row.trial, row.weight) == (one.generation, one.share):
                put(session, one)


def put(session: Session, seen: Seen) -> None:
    session.merge(
        ObservationRow(
            deployment=seen.deployment,
            generation=seen.generation,
            source=seen.source,
            calls=seen.calls,
            evidence=shown(seen.evidence),
        )
    )


def total(rows: Iterable[ObservationRow]) -> Evidence:
    """The sum of what all gateways saw."""
    return sum((read(row) for row in rows), Evidence())


def read(row: ObservationRow) -> Evidence:
    return Evidence(**{signal.value: Tally(*row.evidence[signal]) for signal in Signal})


def shown(evidence: Evidence) -> Mapping[str, Sequence[int]]:
    """[comparisons, those against the trial] by signal."""
    return {signal.value: [evidence.of(signal).n, evidence.of(signal).k] for signal in Signal}
