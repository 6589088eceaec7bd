"""What gateways saw of releases on trial, in the database: running totals, a row a gateway, so that telling twice counts once.

A gateway's settling thread writes them, the controller sums and judges them; in a row of its own it counts the replicas that
were lost meanwhile. It knows tables, and nothing of calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from modelyard.db import Database, Session
from modelyard.serving.tables import DeploymentRow, ObservationRow
from modelyard.serving.types import Seen
from modelyard.serving.verdict import Evidence, Signal, Tally

LOSSES = "losses"  # the source, and the name, of what the controller counts


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
    return Evidence(**{signal.value: Tally(*row.evidence.get(signal, (0, 0))) for signal in Signal})


def lost(session: Session, deployment: int, generation: int) -> None:
    """Count a replica that was lost, while a release is on trial."""
    row = session.get(DeploymentRow, deployment)
    if row is None or row.trial is None or generation not in (row.stable, row.trial):
        return
    kept = session.get(ObservationRow, (deployment, row.trial, LOSSES))
    if kept is None:
        kept = ObservationRow(deployment=deployment, generation=row.trial, source=LOSSES, calls=0)
        session.add(kept)
    counted = losses([kept]) + Tally(1, int(generation == row.trial))
    kept.evidence = {LOSSES: [counted.n, counted.k]}


def losses(rows: Iterable[ObservationRow]) -> Tally:
    """Replicas lost of the stable release and the one on trial, and those of the latter."""
    return sum((Tally(*(row.evidence or {}).get(LOSSES, (0, 0))) for row in rows), Tally())


def shown(evidence: Evidence) -> Mapping[str, Sequence[int]]:
    """[comparisons, those against the trial] by signal."""
    return {signal.value: [evidence.of(signal).n, evidence.of(signal).k] for signal in Signal}
