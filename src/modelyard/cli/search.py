"""A search among chains of steps for people: its trials as they come, the table of them, and the picture.

`optimize --time-budget` shows it while it runs; `search JOB` shows it at any time and saves its report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from modelyard.cli.screen import AsJson, Data, describe, size
from modelyard.cli.sweep import Trials, show
from modelyard.cli.table import table
from modelyard.plugins import load


def search(
    job: Annotated[str, typer.Argument(help="A search's id, as `modelyard optimize` printed it.", show_default=False)],
    save: Annotated[
        Path | None, typer.Option(help="Write search.json, pareto.svg and pareto.png into this new folder.", metavar="FOLDER")
    ] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Show what a search among chains of steps tried; save its table and plot."""
    show("search", _text, job, save, data, as_json=as_json)


def searching() -> Trials:
    """Shows a search as it goes on."""
    return Trials("search", trials_text)


def searched_text(job: Mapping[str, Any], version: Mapping[str, Any]) -> str:
    """What came of a search: the trials, the version, what makes it again, and where the picture is."""
    rows = load("modelyard.client.sweep:table")(job, "search")
    where = (
        f"`modelyard search {job['id']} --save FOLDER` writes the table and the picture (search.json, pareto.svg, pareto.png)"
    )
    again = f"made again by: {version['metadata']['search']['command']}"
    return f"{_text(job, rows)}\nregistered {describe(version)} as {version['name']}@best\n{again}\n{where}"


def _text(job: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    facts = job["facts"].get("0", {})
    return trials_text(rows, facts.get("metric"), facts.get("best"))


def trials_text(rows: Sequence[Mapping[str, Any]], metric: str | None, best: int | None = None) -> str:
    """The table of trials: the best marked by an arrow, those on the front by a star."""
    figures = ("lost", "interval", "p50 ms", "p99 ms", "rows/s", "size", "memory", "seconds")
    shown = [_row(row, row["number"] == best) for row in rows]
    spare = ("seconds", "p99 ms", "interval", "memory")
    return table(("trial", "steps", metric or "score", *figures, "verdict"), shown, "No trial yet.", spare=spare)


def _row(row: Mapping[str, Any], best: bool) -> tuple[Any, ...]:
    def figure(name: str, digits: int) -> str | None:
        return None if row.get(name) is None else f"{row[name]:,.{digits}f}"

    mark = "→" if best else "*" if row.get("front") else " "
    interval = None if row.get("drop_low") is None else f"{row['drop_low']:.2f}–{row['drop_high']:.2f}"
    speeds = (figure("p50_ms", 3), figure("p99_ms", 3), figure("items_per_s", 0))
    quality = (figure("accuracy", 4), figure("drop", 2), interval)
    room = [None if row.get(name) is None else size(int(row[name])) for name in ("size", "memory")]
    told = row.get("verdict") or row["error"] or row["state"]
    steps = " ".join(row["steps"]) or row["variant"]
    return f"{mark} {row['number']}", steps, *quality, *speeds, *room, figure("seconds", 1), told
