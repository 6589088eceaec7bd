"""How good a version is beside another: `evaluate`, and what it found, for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from modelyard.cli.jobs import Set, detached, started
from modelyard.cli.live import Live
from modelyard.cli.screen import AsJson, Data, note, open_yard, say
from modelyard.cli.table import table
from modelyard.cli.values import asked, names

Against = Annotated[
    str | None,
    typer.Option(help="What to hold it against; what it was made from where not said.", metavar="REF", show_default=False),
]
On = Annotated[
    str | None,
    typer.Option(help="The dataset whose report split counts; that of its lineage where not said.", metavar="REF"),
]
Slices = Annotated[
    list[str] | None,
    typer.Option("--slice", help="A column by whose values to compare, too. May be repeated.", metavar="COLUMN"),
]
Metric = Annotated[
    str | None,
    typer.Option(help="What decides, as wer, chrf or mrr; what is usual for the task where not said.", show_default=False),
]


def evaluate(
    reference: Annotated[str, typer.Argument(help="The version to evaluate, as digits-cnn@3.", show_default=False)],
    against: Against = None,
    on: On = None,
    slices: Slices = None,
    metric: Metric = None,
    settings: Set = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return at once; print the job.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Hold a version against another on rows that neither was made by; the gate decides by what is found."""
    with open_yard(data) as yard:
        given = asked(settings, {"against": against, "on": on, "slices": slices or None, "metric": metric})
        given |= {"slices": names(given["slices"])} if "slices" in given else {}
        job = yard.evaluate(reference, wait=False, **given)
        if no_wait:
            return started(as_json, job)
        note(f"job {job['id']}")
        try:
            with Live("evaluate", logs=True) as live:
                found = yard.evaluated(job["id"], live.see)
        except KeyboardInterrupt as error:
            raise detached(job["id"]) from error
    say(as_json, found, evaluation(found))
    return None


def evaluation(found: Mapping[str, Any]) -> str:
    """The two beside each other, over all rows and by slice, the worst first."""
    on = f"{found['rows']:,} rows of the report split of {found['dataset']}"
    out = f" ({found['left_out']:,} left out)" if found["left_out"] else ""
    scores = [f"{found[which]['value']:.4f}" for which in ("original", "variant")]
    figures = [(found["metric"], *scores, _points(found["drop"]))]
    for other in found.get("others", ()):
        figures.append((other["metric"], f"{other['original']:.4f}", f"{other['variant']:.4f}", _points(other["drop"])))
    if f1 := found.get("f1"):
        figures.append(("macro F1", f"{f1['original']:.4f}", f"{f1['variant']:.4f}", _points(f1["drop"])))
    if found["calibration"]:
        figures.append(("calibration error", *(f"{value:.4f}" for value in found["calibration"]), ""))
    lost = f"lost, points (at {found['confidence']:g})"
    slices = [(row["slice"], row["rows"], _points(row["drop"])) for row in found["slices"]]
    parts = [
        f"{found['reference']} against {found['against']} on {on}{out}",
        table(("", found["against"], found["reference"], lost), figures),
        f"answers alike: {found['agreement']:.4f}",
        table(("slice", "rows", lost), slices) if slices else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _points(drop: Mapping[str, float] | None) -> str:
    return f"{drop['value']:.2f} ({drop['low']:.2f} to {drop['high']:.2f})" if drop else "—"
