"""The variants an optimise job measured, as a table: whatever figures it reports, one row a variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelyard.cli.screen import size, table


def variants_table(facts: Mapping[str, Any]) -> str:
    """A table of `facts["0"]["variants"]`, empty where the job reported none."""
    rows = facts.get("0", {}).get("variants", [])
    if not rows:
        return ""
    header = [name for name, value in rows[0].items() if not isinstance(value, Mapping)]
    return table([name.replace("_", " ") for name in header], [[cell(name, row.get(name)) for name in header] for row in rows])


def cell(name: str, value: Any) -> Any:
    """One figure as people read it: intervals as 'low–high', sizes in bytes with their unit, flags as a mark."""
    if isinstance(value, bool):
        return "✓" if value else ""
    if name in ("size", "bytes") and isinstance(value, int):
        return size(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "–".join(f"{part:.4g}" if isinstance(part, float) else str(part) for part in value)
    return value
