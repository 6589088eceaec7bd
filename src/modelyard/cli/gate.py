"""What decides whether a version may be deployed, as options that `deploy`, `promote` and `project gate` share, and as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from modelyard.cli.table import table
from modelyard.cli.values import asked, names, nested
from modelyard.errors import Invalid

MaxDrop = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=100,
        help="Gate: points of accuracy (100 × R²) that may be lost; of a language model percent of its perplexity.",
        metavar="POINTS",
        show_default=False,
    ),
]
MaxSliceDrop = Annotated[
    float | None,
    typer.Option(min=0, max=100, help="Gate: the same within each class and slice.", metavar="POINTS", show_default=False),
]
Confidence = Annotated[
    float | None,
    typer.Option(help="Gate: how sure that must be, one-sided; 0.95 where not said.", metavar="SHARE", show_default=False),
]
More = Annotated[
    list[str] | None,
    typer.Option(
        "--gate",
        help="Gate: one more field: min_agreement, max_calibration_rise, slices=A,B, dataset, metric. May be repeated.",
        metavar="KEY=VALUE",
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        help="Gate: the version to hold others against; what this was made from, or else what is served, where not said.",
        metavar="REF",
        show_default=False,
    ),
]
NoGate = Annotated[bool, typer.Option("--no-gate", help="Lift the deployment's gate.")]
Override = Annotated[
    str | None,
    typer.Option(
        help="Pass a gate that refuses, for this reason; with an admin key that has a name.",
        metavar="REASON",
        show_default=False,
    ),
]


def policy(more: list[str] | None, **said: Any) -> dict[str, Any] | None:
    """The fields of a gate that were said; None where none was. Raises `Invalid` where what may be lost is not among them."""
    slices = [pair for pair in more or [] if pair.startswith("slices=")]
    gate = asked((pair for pair in more or [] if pair not in slices), said, way="--gate")
    if slices:
        gate["slices"] = list(dict.fromkeys(name for pair in slices for name in names(nested([pair])["slices"])))
    if gate and "max_accuracy_drop" not in gate:
        raise Invalid(f"A gate with {', '.join(gate)} needs --max-accuracy-drop, too: the points of accuracy that may be lost.")
    return gate or None


def gate_text(gate: Mapping[str, Any] | None, of: str) -> str:
    """A gate in a line; nothing where there is none."""
    if gate is None:
        return ""
    said = {name.replace("_", " "): _shown(value) for name, value in gate.items() if value not in (None, [])}
    return f"gate of {of}: " + ", ".join(f"{name} {value}" for name, value in said.items())


def decision_text(decision: Mapping[str, Any] | None) -> str:
    """What the gate said of a version that is served; nothing where it was not asked."""
    if decision is None:
        return ""
    rows = [
        (held["by"], held["baseline"], held["dataset"], *_check(check)) for held in decision["held"] for check in held["checks"]
    ]
    text = table(("held by", "against", "on", "what", "seen", "at confidence", "allowed"), rows, "It was not evaluated.")
    override = decision["override"]
    return f"{text}\npassed all the same by {override['key_name']}: {override['reason']}" if override else text


def _check(check: Mapping[str, Any]) -> tuple[str, ...]:
    figures = (check["seen"], check["bound"], check["budget"])
    return (check["what"], *("—" if value is None else f"{value:.4g}" for value in figures))


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else str(value)
