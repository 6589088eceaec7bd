"""The job kind `evaluate`: a version beside the one it is to stand in for, on the report split, by which neither was made.

Each runs on its own engine and through its own transform, so that they are compared as callers would meet them. What is found
is published as an artefact for people (README.md) and programs (evaluation.json), and as evidence that the gate decides by:
the catalogue records it for the inputs that the job was given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from modelyard.data.datasets import Dataset
from modelyard.engines.base import ENGINES, BatchEngine, ModelCard, StreamEngine
from modelyard.errors import Invalid
from modelyard.kinds import Input, JobContext, Outputs
from modelyard.optimisation.comparison import by_class, by_column, by_label, by_metric, compare
from modelyard.optimisation.embeddings import FOUND
from modelyard.optimisation.evaluation_config import EvaluateConfig, check_evaluation
from modelyard.optimisation.evidence import Drop, Evidence, Metric, Paired
from modelyard.optimisation.examples import Answers, Source
from modelyard.optimisation.greedy import Greedy, answering
from modelyard.optimisation.intervals import Interval, newcombe, wilson
from modelyard.tensors import Array

SPLIT = "report"
_USED = ("calibrate", "select")  # splits that variants are made and chosen by
_MOST_LEFT_OUT = 0.1
# Bytes of JSON: of the slices of one evaluation, a little less than the catalogue keeps; of one by counts, by quantiles.
_ROOM, _COUNTS, _QUANTILES = 900_000, 100, 2500
_PATIENT = 20.0  # times the usual heartbeat: a large language model takes a while to write
_TOLD = 50  # slices, and classes, that are reported as facts


@dataclass(frozen=True, slots=True)
class Subject:
    """One of the two versions: its folder, its card, its examples of the dataset."""

    folder: Path
    card: ModelCard
    source: Source

    def answers(self, metric: Metric, most: int, context: JobContext) -> tuple[Answers, Array]:
        """To the report split, of at most so many tokens; and what was wanted."""
        context.allow(_PATIENT)
        opened = ENGINES.get(self.card.engines[0])(self.folder, self.card)
        context.allow()
        stream = hasattr(opened, "step")
        engine = Greedy(cast(StreamEngine, opened), most, context.check) if stream else cast(BatchEngine, opened)
        try:
            if metric not in FOUND:
                return self.source.run(engine, SPLIT, context.check)
            return self.source.found(engine, SPLIT, metric, context.check)
        finally:
            engine.close()


def run(config: EvaluateConfig, inputs: Mapping[str, Input], outputs: Outputs, context: JobContext) -> None:
    """Publishes the artefact 'evaluation'. Raises `Invalid` where the two cannot be compared: other labels, another target, a
    report split that is empty, of one class, or used for making variants; a metric that does not fit."""
    check_evaluation(inputs)
    dataset = Dataset.open(inputs["dataset"].view.local())
    original, variant = (_open(inputs, role, dataset, context) for role in ("original", "model"))
    check_alike(original, variant)
    metric, *others = original.source.judges(config.metric)
    kept = fresh(original.source, context)
    within = by_columns(dataset, config.slices, original.source)
    classes = classes_of(original.source, within, context)
    context.progress(1, 3)
    first, wanted = original.answers(metric, config.max_tokens, context)
    context.progress(2, 3)
    second, _ = variant.answers(metric, config.max_tokens, context)
    slices = by_label(classes, wanted) | within
    how: dict[str, Any] = {"split": SPLIT, "slices": slices, "columns": config.slices, "kept": kept, "seed": config.seed}
    context.allow(_PATIENT)  # metrics of many texts take a while to draw again
    tokens = config.max_tokens if any("gguf" in one.card.files for one in (original, variant)) else None
    said: dict[str, Any] = {"usual": metric == original.source.metric, "tokens": tokens, "by_class": classes is not None}
    evidence = replace(compare(first, second, wanted, metric, **how), **said)
    pair = first.only(kept).predicted, second.only(kept).predicted, wanted[kept]
    labels, drawn = original.source.labels, (config.confidence, config.seed)
    more = {"others": by_metric(*pair, others, *drawn), "f1": by_class(*pair, labels, *drawn) if labels else None}
    context.allow()
    publish(config, inputs, evidence, outputs, context, more)
    context.progress(3, 3)


def by_columns(dataset: Dataset, columns: Sequence[str], source: Source) -> dict[str, Array]:
    """The rows with each value of some columns, but of the target, whose classes are slices anyway. Raises `Invalid` where a
    slice would have the name of a class, or there are more than an evaluation can hold."""
    found: dict[str, Array] = {}
    for column in columns:
        if column == source.target:
            if not source.labels:
                raise Invalid(f"'{column}' is what the model answers, and has no classes: slice by another column.")
            continue
        if column == "label" and source.labels:
            raise Invalid("Slices by a column named 'label' would be taken for the classes: give it another name.")
        found |= by_column(dataset, SPLIT, column)
    if _size(found, source) > _ROOM:
        raise Invalid(f"The {len(found):,} slices by {', '.join(columns)} are more than is kept: name fewer columns.")
    return found


def classes_of(source: Source, columns: Collection[str], context: JobContext) -> tuple[str, ...] | None:
    """The classes to slice by, beside the slices by columns; None where they are so many that the catalogue would not keep what
    is found, which is told."""
    labels = source.labels or ()
    if _size([*labels, *columns], source) <= _ROOM:
        return labels
    context.log(f"The {len(labels):,} classes are more than an evaluation holds: nothing is found by class.")
    return None


def _size(slices: Collection[str], source: Source) -> int:
    """Bytes of JSON that slices of these names take, at the most."""
    each = _COUNTS if source.metric == "accuracy" else _QUANTILES
    return sum(len(json.dumps(name)) + each for name in slices)


def check_alike(original: Subject, variant: Subject) -> None:
    """Raises `Invalid` where the two answer different questions."""
    one, two = original.source, variant.source
    if one.target != two.target or one.metric != two.metric:
        raise Invalid(f"The two predict different things: the original '{one.target}', the model '{two.target}'.")
    known = [labels_of(subject.card) for subject in (original, variant)]
    if known[0] != known[1] and all(known):
        only = [", ".join(sorted(mine - other)[:5]) or "none" for mine, other in (known, known[::-1])]
        raise Invalid(
            f"The two have different labels: only the original has {only[0]}, only the model {only[1]}. "
            "A version is held against one that answers the same."
        )
    check_labels(original.card, one)


def check_labels(card: ModelCard, source: Source) -> None:
    """Raises `Invalid` where the dataset has labels that a version never answers."""
    known = labels_of(card)
    if known and (unknown := sorted(set(source.labels or ()) - known)):
        raise Invalid(
            f"The dataset has labels that the original never answers ({', '.join(unknown[:5])}): where both are wrong nothing "
            "is lost."
        )


def labels_of(card: ModelCard) -> set[str]:
    """The labels a version answers with, as far as its card says."""
    return set(card.labels or (card.transform or {}).get("labels") or ())


def fresh(source: Source, context: JobContext) -> Array:
    """Which rows of the report split count: those that no variant is made or chosen by."""
    kept = source.fresh(SPLIT, _USED)
    out = int((~kept).sum())
    if out > _MOST_LEFT_OUT * len(kept):
        raise Invalid(
            f"{out:,} of {len(kept):,} rows of the split '{SPLIT}' are in {' or '.join(_USED)} as well, by which variants are "
            "made and chosen: they prove nothing. Import a dataset whose splits share no rows."
        )
    if out:
        context.log(f"{out:,} rows of the report split are in {' or '.join(_USED)} as well and were left out.")
    return kept


def described(evidence: Evidence, baseline: str, candidate: str | None = None) -> dict[str, Any]:
    """What an output says of itself for the catalogue to record as an evaluation, under the name 'evaluation' in its metadata:
    the roles of the candidate (None: the output itself), of the baseline, and the evidence."""
    roles = {"baseline": baseline, "dataset": "dataset", "split": evidence.split}
    return {**roles, **({"candidate": candidate} if candidate else {}), "evidence": evidence.to_json()}


def publish(
    config: EvaluateConfig,
    inputs: Mapping[str, Input],
    evidence: Evidence,
    outputs: Outputs,
    context: JobContext,
    more: Mapping[str, Any],
) -> None:
    """Leave the artefact, and what a command shows as the job's facts. `more`: what the gate does not decide by, `f1` of
    `by_class` (None where there are no labels) and `others` of `by_metric`."""
    figures, f1 = {**table(evidence, config.confidence), **more}, more["f1"]
    folder = context.work / "evaluation"
    folder.mkdir()
    whole = {
        "config": config.model_dump(mode="json"),
        "inputs": {role: {"reference": i.reference, "hash": i.view.hash} for role, i in sorted(inputs.items())},
        "evidence": evidence.to_json(),
        "figures": figures,
    }
    (folder / "evaluation.json").write_text(json.dumps(whole, indent=1, sort_keys=True, allow_nan=False) + "\n")
    (folder / "README.md").write_text(readme(config, inputs, figures))
    outputs.publish("evaluation", folder, metadata={"evaluation": described(evidence, "original", "model")}, version=False)
    worst = sorted(figures["slices"], key=lambda row: -math.inf if row["drop"] is None else -row["drop"]["high"])
    told = f1 and {**f1, "classes": sorted(f1["classes"], key=lambda row: row["variant"] - row["original"])[:_TOLD]}
    context.report(**{**figures, "slices": worst[:_TOLD], "f1": told})


def table(evidence: Evidence, confidence: float) -> dict[str, Any]:
    """The figures for people, with two-sided intervals at `confidence`: {metric, rows, left_out, original, variant, drop,
    agreement, calibration, slices: [{slice, rows, drop}]}; `drop` is in points, None where there is no row."""
    return {
        "metric": evidence.metric,
        "rows": evidence.rows,
        "left_out": evidence.left_out,
        "confidence": confidence,
        **_scores(evidence, confidence),
        "drop": _interval(evidence.drop, confidence),
        "agreement": evidence.agreement,
        "calibration": list(evidence.calibration) if evidence.calibration else None,
        "slices": [
            {"slice": name, "rows": drop.rows, "drop": _interval(drop, confidence)} for name, drop in evidence.slices.items()
        ],
    }


def readme(config: EvaluateConfig, inputs: Mapping[str, Input], figures: Mapping[str, Any]) -> str:
    """The same in prose, with tables of the classes and of the slices."""
    names = {role: f"`{given.reference}`" for role, given in inputs.items()}
    left_out = f"{figures['left_out']:,} rows were left out, which variants are made or chosen by"
    lines = [
        f"# {inputs['model'].reference} beside {inputs['original'].reference}\n",
        f"{names['model']} against {names['original']} on {figures['rows']:,} rows of the report split of {names['dataset']}; "
        f"intervals at {config.confidence:.4g}. {left_out}.\n",
        f"- {figures['metric']}: original {figures['original']['value']:.4f}, model {figures['variant']['value']:.4f}",
        f"- lost: {_points(figures['drop'])}",
        f"- agreement with the original's answers: {figures['agreement']:.4f}",
    ]
    if figures["calibration"]:
        before, after = figures["calibration"]
        lines.append(f"- expected calibration error: original {before:.4f}, model {after:.4f}")
    for other in figures["others"]:
        scores = f"original {other['original']:.4f}, model {other['variant']:.4f}"
        lines.append(f"- {other['metric']}: {scores}, lost: {_points(other['drop'])}")
    if f1 := figures["f1"]:
        lines.append(f"- macro F1: original {f1['original']:.4f}, model {f1['variant']:.4f}, lost: {_points(f1['drop'])}")
        lines += ["", "| class | rows | F1, original | F1, model |", "|---|---|---|---|"]
        lines += [f"| {row['class']} | {row['rows']} | {row['original']:.4f} | {row['variant']:.4f} |" for row in f1["classes"]]
    if figures["slices"]:
        lines += ["", "| slice | rows | lost (points) |", "|---|---|---|"]
        lines += [f"| {row['slice']} | {row['rows']} | {_points(row['drop'])} |" for row in figures["slices"]]
    return "\n".join(lines) + "\n"


def _points(drop: Mapping[str, float] | None) -> str:
    return f"{drop['value']:.2f} points ({drop['low']:.2f} to {drop['high']:.2f})" if drop else "not known"


def _interval(drop: Drop, confidence: float) -> dict[str, float] | None:
    if not drop.rows:
        return None
    if isinstance(drop, Paired):
        found = newcombe(drop.both, drop.original, drop.variant, drop.neither, confidence)
        return Interval(*(round(100 * value, 9) for value in (found.value, found.low, found.high))).to_json()
    tail = (1 - confidence) / 2
    low, high = np.quantile(drop.quantiles, [tail, 1 - tail])
    return Interval(drop.drop, min(drop.drop, float(low)), max(drop.drop, float(high))).to_json()


def _scores(evidence: Evidence, confidence: float) -> dict[str, Any]:
    """Of both; with Wilson's interval where they are shares."""
    drop = evidence.drop
    if not isinstance(drop, Paired):
        return {"original": {"value": evidence.original}, "variant": {"value": evidence.variant}}
    right = {"original": drop.both + drop.original, "variant": drop.both + drop.variant}
    return {name: wilson(count, drop.rows, confidence).to_json() for name, count in right.items()}


def _open(inputs: Mapping[str, Input], role: str, dataset: Dataset, context: JobContext) -> Subject:
    folder = inputs[role].view.local()
    context.allow(_PATIENT)
    there, card = answering(folder, ModelCard.load(folder), context.work / f"{role}-gguf")
    context.allow()
    like = inputs["original"].view.local() if role == "model" else None
    return Subject(there, card, Source(folder, card, dataset, like))
