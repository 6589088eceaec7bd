"""A sweep for people: its trials as they come, the table of them, and its plot.

`train --sweep` shows it while it runs; `sweep JOB` shows it at any time and saves its report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from modelyard.cli.live import Live
from modelyard.cli.screen import AsJson, Data, describe, note, open_yard, say
from modelyard.cli.table import table
from modelyard.plugins import load


class Trials(Live):
    """One line for each trial that starts, ends or is stopped; on a terminal the table of all of them below the bar."""

    def __init__(self, title: str = "sweep", shown: Callable[..., str] | None = None) -> None:
        """`shown`: what the table of trials looks like, given its rows and the metric."""
        super().__init__(title, logs=True)
        self._shown = shown or trials_text
        self._rows: dict[str, Mapping[str, Any]] = {}
        self._metric: str | None = None

    def see(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        if event["type"] != "report":
            super().see(event)
            return
        self._metric = event["facts"].get("metric", self._metric)
        self._rows |= {name: row for name, row in event["facts"].items() if name.startswith("trial ")}
        if self._bars:
            self._bars.figures(f"\n{self._shown([self._rows[name] for name in sorted(self._rows)], self._metric)}")


def sweep(
    job: Annotated[str, typer.Argument(help="A sweep's id, as `modelyard train --sweep` printed it.", show_default=False)],
    save: Annotated[
        Path | None, typer.Option(help="Write sweep.json, sweep.svg and sweep.png into this new folder.", metavar="FOLDER")
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Show the trials of a sweep; save its table and plot."""
    show("sweep", found_text, job, save, data, as_json=as_json)


def show(kind: str, text: Callable[..., str], job: str, save: Path | None, data: Path | None, *, as_json: bool) -> None:
    """The trials of a job of that kind as `text` has them, and its report saved where that is asked for."""
    with open_yard(data) as yard:
        shown = yard.job(job)
        rows = load("modelyard.client.sweep:table")(shown, kind)
        if save is not None:
            note(f"the report is in {load('modelyard.client.sweep:save_report')(yard, shown, save)}")
    say(as_json, {"job": job, "state": shown["state"], "trials": rows}, text(shown, rows))


def swept_text(job: Mapping[str, Any], version: Mapping[str, Any]) -> str:
    """What came of a sweep: the trials, the version, and where its plot is."""
    rows = load("modelyard.client.sweep:table")(job)
    where = f"`modelyard sweep {job['id']} --save FOLDER` writes the table and the plot (sweep.json, sweep.svg, sweep.png)"
    return f"{found_text(job, rows)}\nregistered {describe(version)} as {version['name']}@best\n{where}"


def found_text(job: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The trials of a job, the best one marked."""
    facts = job["facts"].get("0", {})
    return trials_text(rows, facts.get("metric"), facts.get("best"))


def trials_text(rows: Sequence[Mapping[str, Any]], metric: str | None, best: int | None = None) -> str:
    """The table of trials."""
    names = list(rows[0]["parameters"]) if rows else []
    header = ("trial", *names, "state", "epoch", metric or "score", "seconds", "job", "note")
    return table(header, [_row(row, row["number"] == best) for row in rows], "No trial yet.", spare=("job", "seconds"))


def _row(row: Mapping[str, Any], best: bool) -> tuple[Any, ...]:
    score = None if row["score"] is None else f"{row['score']:.4f}"
    seconds = None if row["seconds"] is None else f"{row['seconds']:.1f}"
    values = [f"{value:.4g}" if isinstance(value, float) else value for value in row["parameters"].values()]
    mark = "→" if best else " "
    return f"{mark} {row['number']}", *values, row["state"], row["epoch"], score, seconds, row["job"], row["error"]
