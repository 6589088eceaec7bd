"""What a search found in one picture: quality beside each of the costs, the front as a line. `run` calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelyard.training.sweep.picture import panels, save

_BEST, _FRONT, _REST = "#c0392b", "#34699a", "#b9c4cf"
# What quality is held against: its name in the table, on the axis, whether more is better, and how much one is.
_PANELS = (
    ("p50_ms", "ms a call (p50, batch 1)", False, 1.0),
    ("items_per_s", "rows a second (batch 32)", True, 1.0),
    ("size", "kB", False, 1e-3),
    ("memory", "MB to serve it", False, 1e-6),
)

_WIDE = 20  # times: what is further apart is drawn by logarithms


def draw(folder: Path, table: Sequence[Mapping[str, Any]], metric: str, best: int, budget: float) -> None:
    """Write `pareto.svg` and `pareto.png`. The same table gives the same bytes."""
    rows = [row for row in table if row.get("drop") is not None]
    figure, axes = panels(len(_PANELS))
    for place, (axis, (name, label, more, unit)) in enumerate(zip(axes, _PANELS, strict=True)):
        _panel(axis, [row for row in rows if row.get(name) is not None], name, best, more=more, unit=unit)
        axis.axhline(budget, color=_BEST, linewidth=0.8, linestyle=":")
        if (costs := [row[name] for row in rows if row.get(name)]) and max(costs) > _WIDE * min(costs):
            axis.set_xscale("log")
            axis.minorticks_off()
        axis.set(xlabel=label, ylabel=f"points of {metric} lost" if place == 0 else "")
        axis.invert_yaxis()
    figure.suptitle("the best in red, the front in blue; above the dotted line is within the budget", fontsize=9)
    save(figure, folder, "pareto")


def _panel(axis: Any, rows: Sequence[Mapping[str, Any]], name: str, best: int, *, more: bool, unit: float) -> None:
    """Quality over one cost; the steps of the line are what is best for that cost alone."""
    ordered = sorted(rows, key=lambda row: -row[name] if more else row[name])
    least, line = float("inf"), []
    for row in ordered:
        if row["drop"] < least:
            least = row["drop"]
            line.append((row[name] * unit, least))
    if line:
        axis.step(*zip(*line, strict=True), where="post", color=_FRONT, linewidth=1)
    for row in rows:
        chosen = row["number"] == best
        colour = _BEST if chosen else _FRONT if row["front"] else _REST
        axis.plot([row[name] * unit], [row["drop"]], "o", color=colour, markersize=7 if chosen else 4)
