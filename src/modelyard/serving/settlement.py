"""Books what a meter counted: the ledger's entries and the counters they reach up to, in one transaction.

Called by the gateway's settling thread through `app`; `meter` itself knows no database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import delete, select, update

from modelyard.db import Database, Session, now
from modelyard.errors import Conflict
from modelyard.serving.meter import Counters, Settlement
from modelyard.serving.tables import DeploymentRow, MeterRow
from modelyard.tenancy.ledger import UsageEntry, record


def settle(database: Database, settlements: Sequence[Settlement]) -> None:
    """Append what was used to the ledger, keep the new totals, and note who was called. All or nothing. Raises `Conflict` where
    another settler booked a part of it: what is `settled` is to be read again."""
    with database.begin() as session:
        settlements = [settlement for settlement in settlements if _keep(session, settlement)]
        record(session, [_entry(settlement) for settlement in settlements])
        called = {(s.identity.project, s.identity.deployment) for s in settlements if s.used.calls}
        for project, name in called:
            row = (DeploymentRow.project == project) & (DeploymentRow.name == name)
            session.execute(update(DeploymentRow).where(row).values(used=now()))


def _keep(session: Session, settlement: Settlement) -> bool:
    """Keep a new total; False where it was told before."""
    total, place = settlement.total, {"file": settlement.file, "slot": settlement.slot}
    row = session.get(MeterRow, tuple(place.values()), with_for_update=True)
    kept = row.version if row is not None else 0
    if kept >= total.version:
        return False
    if kept != total.version - settlement.used.version:
        raise Conflict(f"Slot {settlement.slot} of meter {settlement.file} is booked up to {kept}, by another settler.")
    session.merge(MeterRow(**place, **total._asdict()))
    return True


def settled(database: Database, file: str) -> Mapping[int, Counters]:
    """Up to where a meter file was booked, by slot."""
    with database.read() as session:
        rows = session.scalars(select(MeterRow).where(MeterRow.file == file))
        return {row.slot: Counters(*(getattr(row, name) for name in Counters._fields)) for row in rows}


def forget(database: Database, file: str) -> None:
    """Drop what was kept of a file that is booked whole and gone; its entries in the ledger stay."""
    with database.begin() as session:
        session.execute(delete(MeterRow).where(MeterRow.file == file))


def _entry(settlement: Settlement) -> UsageEntry:
    who, used = settlement.identity, settlement.used
    return UsageEntry(
        project=who.project,
        source=settlement.source,
        key=who.key,
        kind="serving",
        subject=who.deployment,
        version=who.model,
        calls=used.calls,
        units=used.units,
        cpu_us=used.cpu_us,
        bytes_in=used.bytes_in,
        bytes_out=used.bytes_out,
        errors=used.errors,
    )
