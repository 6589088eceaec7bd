"""What an optimise job leaves: each verified variant as a model version of its own, with the figures it was judged by, for
people (README.md), for programs (optimisation.json) and for the catalogue (metadata).
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from modelyard.conversion.importing import describe_metadata
from modelyard.conversion.readme import write as write_readme
from modelyard.kinds import Input, Outputs
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.variants import Variant

REPORT = "optimisation.json"
_NAMES = {"accuracy": "accuracy", "r2": "R²"}


@dataclass(frozen=True, slots=True)
class Findings:
    """What the job found: the table of all variants on the select split, and the report split's figures of the chosen one."""

    config: OptimiseConfig
    inputs: Mapping[str, Input]
    metric: str
    table: Sequence[Mapping[str, Any]]
    report: Mapping[str, Any]
    chosen: str


def publish(findings: Findings, variant: Variant, outputs: Outputs) -> None:
    """Complete the variant's folder and hand it over under its name; the chosen one as 'best'."""
    chosen = variant.name == findings.chosen
    row = next(row for row in findings.table if row["variant"] == variant.name)
    report = findings.report if chosen else None
    whole = {
        "variant": variant.name,
        "chosen": findings.chosen,
        "config": findings.config.model_dump(mode="json"),
        "inputs": {role: {"reference": i.reference, "hash": i.view.hash} for role, i in sorted(findings.inputs.items())},
        "metric": findings.metric,
        "table": list(findings.table),
        "report": dict(findings.report),
        "verification": dict(variant.proof),
        "machine": machine(),
    }
    (variant.folder / REPORT).write_text(json.dumps(whole, indent=1, sort_keys=True, allow_nan=False) + "\n")
    score = findings.report["chosen"]["value"] if chosen else row["accuracy"]
    title = f"{findings.inputs['model'].reference}, {variant.name}"
    write_readme(variant.folder, variant.card, title, readme(findings), {findings.metric: score})
    metadata = {
        **describe_metadata(variant.card),
        **{key: row[key] for key in ("variant", "verdict", "chosen")},
        "original": findings.inputs["model"].reference,
        "metric": findings.metric,
        "goal": findings.config.goal,
        "max_accuracy_drop": findings.config.max_accuracy_drop,
        "select": dict(row),
        "report": report,
        "verification": dict(variant.proof),
    }
    outputs.publish(variant.name, variant.folder, task=variant.card.task, metadata=metadata, alias="best" if chosen else None)


def machine() -> dict[str, Any]:
    """Where latencies were measured; they hold nowhere else."""
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "onnxruntime": onnxruntime.__version__,
        "threads": 1,
    }


def _processor() -> str:
    """The processor's name as Linux tells it; elsewhere as Python knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def readme(findings: Findings) -> str:
    """The table and the report in prose."""
    name, config = _NAMES[findings.metric], findings.config
    lines = [
        f"Optimised from `{findings.inputs['model'].reference}` on `{findings.inputs['dataset'].reference}` for {config.goal}, "
        f"at most {config.max_accuracy_drop:g} points of {name} lost. Figures of the select split, one thread; intervals at "
        f"{config.confidence:.0%}.\n",
        f"| variant | {name} | interval | lost (points) | bytes | p50 ms | p99 ms | rows/s | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in findings.table),
    ]
    original, chosen = findings.report["original"], findings.report["chosen"]
    lines.append(
        f"\nOn the report split, which nothing was chosen by, {findings.chosen} reaches {name} {chosen['value']:.4f} "
        f"({chosen['low']:.4f} to {chosen['high']:.4f}), the original {original['value']:.4f}."
    )
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    if row["accuracy"] is None:
        return f"| {row['variant']} | | | | | | | | {row['verdict']} |"
    return (
        f"| {row['variant']} | {row['accuracy']:.4f} | {row['low']:.4f} to {row['high']:.4f} | {row['drop']:.2f} "
        f"| {row['size']} | {row['p50_ms']:.3f} | {row['p99_ms']:.3f} | {row['items_per_s']:.0f} | {row['verdict']} |"
    )
