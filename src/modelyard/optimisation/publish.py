"""What an optimise job leaves: each verified variant as a model version of its own, with the figures it was judged by, for
people (README.md), for programs (optimisation.json) and for the catalogue (metadata).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from modelyard.conversion.importing import describe_metadata
from modelyard.conversion.readme import write as write_readme
from modelyard.engines.files import inside
from modelyard.engines.huggingface import PAPERS, copy_companions
from modelyard.kinds import Input, Outputs
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.examples import TRAINING
from modelyard.optimisation.units import counted, units
from modelyard.optimisation.variants import Variant
from modelyard.training.gang import processors

REPORT = "optimisation.json"
_LONGEST = 63  # letters of an output's name
_LIBRARIES = (
    *("modelyard", "torch", "onnxruntime", "onnxscript", "openvino", "openvino-genai", "ai-edge-litert", "litert-torch"),
    *("torch-pruning", "transformers", "numpy"),
)
_NAMES = {"accuracy": "accuracy", "r2": "R²", "spearman": "Spearman's ρ", "perplexity": "perplexity"}


@dataclass(frozen=True, slots=True)
class Findings:
    """What the job found: the table of all variants on the select split, and the report split's figures of the chosen one.
    `evaluations`: of each variant the evidence of the report split, for the catalogue to record. `more`: of steps what each did
    (`steps`) and what a lesson was worth (`distillation`)."""

    config: OptimiseConfig
    inputs: Mapping[str, Input]
    metric: str
    table: Sequence[Mapping[str, Any]]
    report: Mapping[str, Any]
    chosen: str
    evaluations: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def publish(findings: Findings, variant: Variant, outputs: Outputs) -> None:
    """Complete the variant's folder and hand it over under its name; the chosen one, if that was asked for, as 'best'."""
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
        **findings.more,
    }
    original = findings.inputs["model"].view.local()
    if tokenizer := (variant.card.transform or {}).get("tokenizer"):
        shutil.copyfile(inside(original, tokenizer), variant.folder / tokenizer)
    copy_companions(original, variant.folder, (*PAPERS, TRAINING))
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
        **findings.more,
    }
    if variant.name in findings.evaluations:
        metadata["evaluation"] = findings.evaluations[variant.name]
    output = variant.name.replace("+", ".")[:_LONGEST]  # what joins steps is no part of a name
    alias = "best" if chosen and findings.config.alias else None
    outputs.publish(output, variant.folder, task=variant.card.task, metadata=metadata, alias=alias)


def machine() -> dict[str, Any]:
    """Where figures were made, and by what; they hold nowhere else."""
    there = {}
    for name in _LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            there[name] = version(name)
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        **there,
        "processors": processors(),
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
    name, config, (unit, rate) = _NAMES[findings.metric], findings.config, units(findings.metric)
    lines = [
        f"Optimised from `{findings.inputs['model'].reference}` on `{findings.inputs['dataset'].reference}`"
        f"{_within(config, name, unit)}. Figures of the select split, one thread; intervals at {config.confidence:.4g}.\n",
        f"| variant | {name} | interval | lost ({unit}) | bytes | memory | p50 ms | p99 ms | {rate} | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in findings.table),
    ]
    lines += of_steps(findings)
    original, chosen = findings.report["original"], findings.report["chosen"]
    lines.append(
        f"\nOn the report split, which nothing was chosen by, {findings.chosen} reaches {name} {chosen['value']:.4f} "
        f"({chosen['low']:.4f} to {chosen['high']:.4f}), the original {original['value']:.4f}."
    )
    if out := findings.report["left_out"]:
        texts = counted(findings.metric)[1]
        lines.append(f"Of that split {out:,} {texts} were left out, since they are in calibrate or select as well.")
    return "\n".join(lines)


def _within(config: OptimiseConfig, name: str, unit: str) -> str:
    """What it was chosen by, where there was a choice."""
    if config.max_accuracy_drop > 100:
        return ""
    return f" for {config.goal}, at most {config.max_accuracy_drop:g} {unit} of {name} lost"


def of_steps(findings: Findings) -> list[str]:
    """How the variant was made, and what a teacher was worth."""
    lines, unit, (rows, _) = list[str](), units(findings.metric)[0], counted(findings.metric)
    if steps := findings.more.get("steps"):
        lines.append("\nMade by these steps, which `--with` takes again:\n")
        lines += [f"1. `{step['step']}`{_zeros(step)}" for step in steps]
    for split, found in findings.more.get("distillation", {}).items():
        gain = found["gain"]
        lines += [
            f"\nThe lesson on the {split} split ({found['rows']} {rows}); the control is {found['against']}, trained for as "
            "long:\n",
            f"| | {_NAMES[findings.metric]} | interval |",
            "|---|---|---|",
            *(
                f"| {name} | {found[name]['value']:.4f} | {found[name]['low']:.4f} to {found[name]['high']:.4f} |"
                for name in ("teacher", "distilled", "control")
            ),
            f"\nThe distilled student gains {gain['value']:.2f} {unit} on it ({gain['low']:.2f} to {gain['high']:.2f}).",
        ]
    return lines


def _zeros(step: Mapping[str, Any]) -> str:
    if "sparsity" not in step:
        return ""
    return f": {step['sparsity']:.1%} of what it pruned is nought in the file, which makes no engine here faster"


def _line(row: Mapping[str, Any]) -> str:
    if row["accuracy"] is None:
        return f"| {row['variant']} | | | | | | | | | {row['verdict']} |"
    return (
        f"| {row['variant']} | {row['accuracy']:.4f} | {row['low']:.4f} to {row['high']:.4f} | {row['drop']:.2f} "
        f"| {row['size']} | {_figure(row['memory'], 0)} | {_figure(row['p50_ms'], 3)} | {_figure(row['p99_ms'], 3)} "
        f"| {_figure(row['items_per_s'], 0)} | {row['verdict']} |"
    )


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
