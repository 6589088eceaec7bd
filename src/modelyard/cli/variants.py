"""What an optimise job found, for people: its variants side by side, and the chosen one on data it was not chosen by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelyard.cli.screen import size
from modelyard.cli.table import table
from modelyard.optimisation.units import counted, units

_HEADER = ("variant", "accuracy", "interval", "lost", "size", "memory", "p50 ms", "p99 ms", "rate", "verdict")


def measured(row: Mapping[str, Any], metric: str) -> str:
    """One variant in a line, as soon as it was measured."""
    return f"{row['variant']:<12}  {metric} {_figure(row['accuracy'], 4)}  p50 {_figure(row['p50_ms'], 3)} ms"


def findings(facts: Mapping[str, Any]) -> str:
    """The table of variants on the select split, the chosen one marked, below it the report split's figures and, of a lesson,
    what it was worth."""
    metric = facts["metric"]
    unit, rate = units(metric)
    rows = [_row(row) for row in facts["table"]]
    named = {"accuracy": metric, "lost": "lost %" if unit == "percent" else "lost", "rate": rate}
    header = [named.get(name, name) for name in _HEADER]
    parts = [table(header, rows, spare=("interval", "p99 ms", "memory")), _report(facts["report"], metric)]
    parts += [_lesson(split, found, metric) for split, found in facts.get("distillation", {}).items()]
    return "\n".join(parts)


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    mark = "→ " if row["chosen"] else "  "
    return (
        mark + row["variant"],
        _figure(row["accuracy"], 4),
        f"{_figure(row['low'], 3)}–{_figure(row['high'], 3)}",
        _figure(row["drop"], 2),
        size(row["size"]),
        "—" if row.get("memory") is None else size(row["memory"]),
        _figure(row["p50_ms"], 3),
        _figure(row["p99_ms"], 3),
        _figure(row["items_per_s"], 0),
        row["verdict"],
    )


def _report(report: Mapping[str, Any], metric: str) -> str:
    lost = report["drop"]
    points = f"{lost['value']:.2f} {units(metric)[0]} lost ({lost['low']:.2f} to {lost['high']:.2f})"
    own, chosen = (_interval(report[name]) for name in ("original", "chosen"))
    rows, texts = counted(metric)
    out = f" ({report['left_out']:,} {texts} left out)" if report.get("left_out") else ""  # facts of before do not say
    on = f"on {report['rows']} {rows} kept for the report{out}"
    return f"{on}:\n  original {metric} {own}\n  chosen {metric} {chosen}, {points}"


def _lesson(split: str, found: Mapping[str, Any], metric: str) -> str:
    """What a teacher was worth: the student beside its control."""
    gain, against = found["gain"], found.get("against", "the same student from scratch")  # facts of before do not say
    lines = [f"the lesson, on {found['rows']} {counted(metric)[0]} of {split} (control: {against}):"]
    lines += [f"  {name:<9} {metric} {_interval(found[name])}" for name in ("teacher", "distilled", "control")]
    return "\n".join([*lines, f"  gain {gain['value']:.2f} {units(metric)[0]} ({gain['low']:.2f} to {gain['high']:.2f})"])


def _interval(figure: Mapping[str, float]) -> str:
    return f"{figure['value']:.4f} ({figure['low']:.3f}–{figure['high']:.3f})"


def _figure(value: float | None, digits: int) -> str:
    """A figure, or a dash where it could not be measured."""
    return "—" if value is None else f"{value:,.{digits}f}"
