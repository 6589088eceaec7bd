"""Tables of text: aligned columns that fit the terminal. Where stdout is no terminal nothing is cut, so that scripts see all.

Called by whatever lists things; it knows neither commands nor JSON.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import typer

_COLOURS = {
    "ready": "green",
    "succeeded": "green",
    "ok": "green",
    "running": "cyan",
    "starting": "cyan",
    "pending": "yellow",
    "queued": "yellow",
    "warning": "yellow",
    "failed": "red",
    "cancelled": "magenta",
}
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d):[\d.:+Z-]+")
# Characters that a last column (a note) and any other column of text keep at least.
_LEAST_LAST, _LEAST = 20, 8


def table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], empty: str = "none", *, spare: Sequence[str] = (), width: int = 0
) -> str:
    """Aligned columns under a header; numbers to the right; states in colour (stripped where stdout is no terminal).

    In `width` characters (0: as wide as the terminal) the columns `spare` may be left out, and long text ends in '…'.
    """
    if not rows:
        return empty
    cells = [[cell(value) for value in row] for row in rows]
    numeric = [all(isinstance(row[i], int | float) or row[i] is None for row in rows) for i in range(len(header))]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    kept = fit(header, widths, numeric, width or terminal_width(), spare)

    def line(parts: Sequence[str]) -> str:
        padded = [_cut(parts[i], w).rjust(w) if numeric[i] else _cut(parts[i], w).ljust(w) for i, w in kept.items()]
        return "  ".join(padded).rstrip()

    def coloured(parts: Sequence[str]) -> str:
        text = line(parts)
        for part in parts:
            if part in _COLOURS:
                text = text.replace(f" {part}", " " + typer.style(part, fg=_COLOURS[part]), 1)
        return text

    return "\n".join([typer.style(line(header).upper(), bold=True), *(coloured(row) for row in cells)])


def fit(
    header: Sequence[str], widths: Sequence[int], numeric: Sequence[bool], width: int | None, spare: Sequence[str]
) -> dict[int, int]:
    """Which columns to show, and how wide each: index → characters. The last column gives way first, then spare columns
    go, then the widest text is cut; numbers never are."""
    kept, last = dict(enumerate(widths)), len(widths) - 1
    least = {i: w if numeric[i] else min(w, max(len(header[i]), _LEAST)) for i, w in kept.items()}
    least_last = least[last] if numeric[last] else min(widths[last], _LEAST_LAST)

    def over() -> int:
        return 0 if width is None else sum(kept.values()) + 2 * (len(kept) - 1) - width

    for name in spare:
        if over() > kept[last] - least_last:
            del kept[header.index(name)]
    kept[last] -= max(0, min(over(), kept[last] - least_last))
    while over() > 0 and any(kept[i] > least[i] for i in kept):
        widest = max((i for i in kept if kept[i] > least[i]), key=lambda i: kept[i])
        kept[widest] -= 1
    return kept


def terminal_width() -> int | None:
    """Characters of a line of the terminal (or of COLUMNS, where that is set); None where stdout is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else None


def cell(value: Any) -> str:
    """A value as a table shows it: times to the minute, on one line."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(_TIME.sub(r"\1 \2", str(value)).splitlines())


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
