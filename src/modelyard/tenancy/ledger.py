"""The append-only book of usage and of audit. The scheduler and the gateway's settler record what was used when work ends;
services record who did what, in the transaction that does it. Numbers are integers, so sums are exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import func, insert, select

from modelyard.db import Session, insert_new, now
from modelyard.errors import Invalid
from modelyard.tenancy.tables import Audit, Usage

GROUPS = ("kind", "subject", "version", "key")
COUNTS = ("calls", "units", "cpu_us", "bytes_in", "bytes_out", "errors")


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageEntry:
    """One piece of work that ended. `source` names it within its project ('job:<id>:<attempt>', '<gateway>:<sequence>');
    `subject` is a deployment's name or a job's id; `version` a reference ('digits-cnn@3') or ''; `cpu_us` microseconds."""

    project: str
    source: str
    key: str
    kind: Literal["serving", "job"]
    subject: str
    version: str = ""
    calls: int = 0
    units: int = 0
    cpu_us: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    errors: int = 0
    at: datetime | None = None

    def __post_init__(self) -> None:
        for name in COUNTS:
            count = getattr(self, name)
            if not isinstance(count, int) or count < 0:
                raise Invalid(f"Usage counts are whole and not negative; '{name}' is {count!r}.")


def record(session: Session, entries: Iterable[UsageEntry]) -> int:
    """Write entries into the book; one whose source is already there is skipped. Returns how many were new."""
    moment = now()
    rows = [{**asdict(entry), "at": entry.at or moment} for entry in entries]
    return insert_new(session, Usage, rows) if rows else 0


def usage(
    session: Session,
    project: str,
    since: datetime | None = None,
    until: datetime | None = None,
    group_by: Sequence[str] = GROUPS,
) -> list[dict[str, Any]]:
    """Sums over [since, until) by any of `GROUPS`, in the order of the groups: {'project', groups…, counts…, 'cpu_seconds'}."""
    if unknown := [name for name in group_by if name not in GROUPS]:
        raise Invalid(f"Usage cannot be grouped by '{unknown[0]}'; it can by {', '.join(GROUPS)}.")
    groups = [getattr(Usage, name) for name in group_by]
    query = select(*groups, *(func.sum(getattr(Usage, name)) for name in COUNTS)).where(Usage.project == project)
    if since is not None:
        query = query.where(Usage.at >= since)
    if until is not None:
        query = query.where(Usage.at < until)
    # Without groups SQL sums an empty book to one row of NULLs; HAVING leaves none.
    query = query.group_by(*groups).order_by(*groups).having(func.count() > 0)
    return [_sums(project, group_by, row) for row in session.execute(query)]


def _sums(project: str, groups: Sequence[str], row: Sequence[Any]) -> dict[str, Any]:
    counts = {name: int(value) for name, value in zip(COUNTS, row[len(groups) :], strict=True)}
    named = dict(zip(groups, row[: len(groups)], strict=True))
    return {"project": project, **named, **counts, "cpu_seconds": counts["cpu_us"] / 1e6}


def audit(
    session: Session, project: str, key: str | None, action: str, subject: str, detail: Mapping[str, Any] | None = None
) -> None:
    """Write down that `key` (None: the platform itself) did `action` ('key.create') to `subject`; no secrets in `detail`."""
    who = {"project": project, "key": key or "", "at": now()}
    session.execute(insert(Audit).values(**who, action=action, subject=subject, detail=dict(detail or {})))


def audit_log(session: Session, project: str, limit: int = 100, before: int | None = None) -> list[dict[str, Any]]:
    """The newest `limit` entries, oldest of them first, as a log reads; `before` an entry's id pages back."""
    query = select(Audit).where(Audit.project == project).order_by(Audit.id.desc()).limit(limit)
    if before is not None:
        query = query.where(Audit.id < before)
    return [_entry(row) for row in reversed(session.scalars(query).all())]


def _entry(row: Audit) -> dict[str, Any]:
    shown = {name: getattr(row, name) for name in ("id", "key", "action", "subject", "detail")}
    return {**shown, "at": row.at.isoformat()}
