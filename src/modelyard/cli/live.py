"""Work as it goes on, on stderr: a progress bar with the newest figures on a terminal, one line a step elsewhere.

Fed with the client's events — a job's and a transfer's alike — by whatever command waits.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from modelyard.cli.screen import note, size, sparkline
from modelyard.cli.variants import measured
from modelyard.plugins import load

if TYPE_CHECKING:
    from modelyard.cli.bars import Bars


class Figures:
    """The metrics a job has told, and how they read in one line."""

    def __init__(self) -> None:
        self.series: dict[str, list[float]] = {}
        self.step = 0

    def add(self, event: Mapping[str, Any]) -> None:
        self.step = int(event.get("step", 0))
        for name, value in event["values"].items():
            self.series.setdefault(name, []).append(float(value))

    def line(self, curves: bool) -> str:
        """'loss 0.031 ▇▄▂▁  accuracy 0.981', the curve the first loss's; what is neither loss nor accuracy stays out."""
        parts = []
        for name, values in self.series.items():
            if name.endswith(("loss", "accuracy")):
                curve = f" {sparkline(values, width=12)}" if curves and name == "loss" and len(values) > 1 else ""
                parts.append(f"{name.replace('_', ' ')} {values[-1]:.4g}{curve}")
        return "  ".join(parts)


class Live:
    """`with Live("train") as live: yard.wait(job, live.see)`. `logs`: also show what the ranks write."""

    def __init__(self, title: str, *, logs: bool = False) -> None:
        self.title, self.logs = title, logs
        self.figures = Figures()
        self._why: str | None = None
        self._bars: Bars | None = None

    def __enter__(self) -> Live:
        if sys.stderr.isatty():
            self._bars = load("modelyard.cli.bars:Bars")()
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bars:
            self._bars.stop()

    def see(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        match event["type"]:
            case "progress" if self._bars:
                self._bars.bar(event.get("what", self.title), progress_text(event), event["done"], event["total"] or None)
            case "metric" if self.title != "optimize":  # its report tells the same by variant
                self.figures.add(event)
                self._figures()
            case "report" if "table" in event["facts"]:
                self._variants(event["facts"])
            case "state":
                self._state(str(event["state"]))
            case "log" if self.logs:
                self._log(f"rank {event.get('rank', 0)} │ {event['text']}")

    def _figures(self) -> None:
        if self._bars:
            self._bars.figures(self.figures.line(curves=True))
        else:
            note(f"{self.title}  {self.figures.step:>3}  {self.figures.line(curves=False)}")

    def _state(self, state: str) -> None:
        if self._bars is None:
            note(f"{self.title}  {state}")
        elif state in ("queued", "starting"):
            self._bars.bar(self.title, state)

    def waits(self, why: str | None) -> None:
        """Show why a job is still queued, where that is new."""
        if not why or why == self._why:
            return
        self._why = why
        if self._bars:
            self._bars.bar(self.title, why)
        else:
            note(f"{self.title}  queued: {why}")

    def _variants(self, facts: Mapping[str, Any]) -> None:
        """What an optimise job measured, a line a variant, once: its last report says again what the result will."""
        if "metric" in facts:
            for row in facts["table"]:
                self._log(f"{self.title}  {measured(row, facts['metric'])}")

    def _log(self, text: str) -> None:
        if self._bars:
            self._bars.line(text)
        else:
            note(text)


def progress_text(event: Mapping[str, Any]) -> str:
    """'3/20 epochs', or '1.5 MiB/3.0 MiB'."""
    done, total, unit = event["done"], event["total"], event.get("unit", "steps")
    if unit == "bytes":
        return f"{size(done)}/{size(total)}"
    return f"{done}/{total} {unit}"
