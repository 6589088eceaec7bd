"""Optimises a language model: its matrices on the grids of GGUF, in the file that serves it, and what that costs of how well it
foretells texts. Called by `optimise` for versions of the task text-generation.

As there, rounding looks at the calibrate split, the choice at the select split, and the report split is read last. Losses are
those of the file as another reader has it, so that what was written is what is judged.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from modelyard.conversion.gguf import FILE, KIND, prove, read_back, write
from modelyard.data.datasets import Dataset
from modelyard.engines.base import ModelCard
from modelyard.engines.huggingface import open_model, open_tokenizer
from modelyard.errors import Invalid
from modelyard.kinds import Input, JobContext, Outputs
from modelyard.optimisation.choose import ORIGINAL, Measured, choose, told
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.evaluation import described
from modelyard.optimisation.language.losses import Foretold, drop, evidence, interval
from modelyard.optimisation.language.rounding import Rounded
from modelyard.optimisation.language.sensitivity import costs, eight_bit
from modelyard.optimisation.language.speed import measure
from modelyard.optimisation.language.texts import Texts, foretell
from modelyard.optimisation.language.tuning import tune
from modelyard.optimisation.language.walk import Walk
from modelyard.optimisation.measure import UNKNOWN, Speed
from modelyard.optimisation.publish import Findings, publish
from modelyard.optimisation.steps.config import GGUF, Quantize
from modelyard.optimisation.steps.text import show
from modelyard.optimisation.variants import Variant
from modelyard.training.recipes.packing import Blocks

METRIC = "perplexity"
_USUAL = (Quantize(method="q8_0"), Quantize(method="q4_0"))
_BLOCKS = 32  # of the calibrate split, unless the step says how many
_PATIENT = 20.0  # times the usual heartbeat: a layer's matrices take a while


@dataclass(frozen=True, slots=True)
class Subject:
    """The version, its own answers to the select split, and the texts."""

    inputs: Mapping[str, Input]
    folder: Path
    card: ModelCard
    texts: Texts
    select: Blocks
    own: Foretold

    def fresh(self) -> Any:
        """The model anew, in float32."""
        model, _ = open_model(self.folder, KIND, dtype=torch.float32)
        return model


def run(config: OptimiseConfig, inputs: Mapping[str, Input], outputs: Outputs, context: JobContext) -> None:
    """Publishes every variant under its name, the best within the budget last. Raises `Invalid` for what cannot be written as
    GGUF, steps that are not for language models, and where no variant is within the budget."""
    steps = wanted(config)
    total = len(steps) + 3
    subject = read(inputs, context)
    context.progress(1, total)
    original = (_size(subject.folder, "*.safetensors"), UNKNOWN, math.nan)
    variants, rows = [], [_row(ORIGINAL, subject, subject.own, original, config)]
    for place, step in enumerate(steps):
        variant, found = make(subject, step, config, context)
        variants.append(variant)
        costs = (_size(variant.folder, FILE), *measure(variant.folder, context.check))
        rows.append(_row(variant.name, subject, found, costs, config))
        context.progress(2 + place, total)
    by = {"metric": METRIC, "goal": config.goal}
    context.report(table=told(rows), **by)
    choice = choose(rows[1:], config.goal, config.max_accuracy_drop)
    table = told(rows, choice)
    report, evaluations = judge(subject, variants, choice.variant, config, context)
    context.progress(total - 1, total)
    context.report(table=table, chosen=choice.variant, report=report, **by)
    findings = Findings(
        config,
        inputs,
        METRIC,
        table,
        report,
        choice.variant,
        evaluations,
        {"steps": [{"step": variant.proof["step"]} for variant in variants]},
    )
    for variant in sorted(variants, key=lambda variant: variant.name == choice.variant):
        publish(findings, variant, outputs)
    context.progress(total, total)


def wanted(config: OptimiseConfig) -> tuple[Quantize, ...]:
    """The variants to make. Raises `Invalid` for steps that are not for language models."""
    for step in config.steps:
        if not isinstance(step, Quantize) or step.method not in GGUF:
            raise Invalid(f"'{show(step)}' is not for language models; they are quantised to {', '.join(GGUF)}.")
    return tuple(step for step in config.steps if isinstance(step, Quantize)) or _USUAL


def read(inputs: Mapping[str, Input], context: JobContext) -> Subject:
    folder = inputs["model"].view.local()
    card = ModelCard.load(folder)
    if "gguf" in card.files:
        raise Invalid(f"{inputs['model'].reference} is quantised already; optimise the version it was made from.")
    model, _ = open_model(folder, KIND, dtype=torch.float32)
    texts = Texts.of(Dataset.open(inputs["dataset"].view.local()), open_tokenizer(folder), model)
    select, _ = texts.blocks("select", (), context.check)
    own = foretell(model, select, context.check)
    known = model.get_input_embeddings().weight.shape[0]
    if not own.perplexity < known:
        raise Invalid(
            f"The original foretells texts no better than chance (perplexity {own.perplexity:.4g} of {known:,} tokens): "
            "nothing could be lost. Is it trained, and on texts like these?"
        )
    context.log(f"the original foretells {own.tokens.sum():,} tokens of select with a perplexity of {own.perplexity:.3f}.")
    return Subject(inputs, folder, card, texts, select, own)


def make(subject: Subject, step: Quantize, config: OptimiseConfig, context: JobContext) -> tuple[Variant, Foretold]:
    """One variant in a folder of its own, proved to be what was meant, and how well it foretells the select split."""
    context.allow(_PATIENT)
    model, out = subject.fresh(), context.work / name_of(step)
    out.mkdir()
    check_layers(step, model)
    most, others = step.rows or _BLOCKS, ("select", "report")
    blocks, _ = subject.texts.blocks("calibrate", others, context.check, most, config.seed)
    eight = spread(step, model, blocks, config.seed, context.check) if step.bits else frozenset[str]()
    walk = Walk(model, lambda name: "q8_0" if name in eight else kind_of(step, name, model), context.check)
    if step.rounding == "nearest" or step.method == "q8_0":  # eight bits are rounded nearest anyway
        walk.nearest()
    else:
        walk.compensated(torch.from_numpy(blocks.inputs).long(), context.log)
    rounded: Mapping[str, Rounded] = walk.rounded
    if step.tune:
        how: dict[str, Any] = {"epochs": step.tune, "lr": step.tune_lr, "seed": config.seed}
        rounded = tune(model, subject.fresh(), rounded, blocks, check=context.check, say=context.log, **how)
    card = write(model, subject.folder, subject.card, out, rounded)
    again = read_back(out)
    proof = {"ok": True, "tensors": prove(model, rounded, again), "rounded": len(rounded), "step": show(step)}
    proof |= {"eight_bit": sorted(eight)} if eight else {}
    found = foretell(again, subject.select, context.check)
    context.allow()
    if not math.isfinite(found.perplexity):
        raise Invalid(f"{show(step)}: the model foretells nothing any more.")
    context.log(f"{out.name}: {proof['tensors']} tensors read back as they were meant; perplexity {found.perplexity:.3f}.")
    return Variant(out.name, out, card, None, verified=True, proof=proof), found


def spread(step: Quantize, model: Any, blocks: Blocks, seed: int, check: Callable[[], None]) -> frozenset[str]:
    """The weights that have eight bits so that the mean one has `step.bits`. Raises `Invalid` where the grid takes more."""
    matrices = Walk(model, lambda name: kind_of(step, name, model)).matrices()
    kinds = {name: kind_of(step, name, model) or "" for name in matrices}
    sizes = {name: matrix.numel() for name, matrix in matrices.items()}
    cheap = {name: kind for name, kind in kinds.items() if kind != "q8_0"}
    found = costs(model, cheap, blocks, seed=seed, check=check)
    return frozenset(eight_bit(found, sizes, kinds, float(step.bits or 0)))


def name_of(step: Quantize) -> str:
    more = (f"{step.bits:g}bits" if step.bits else "", "nearest" if step.rounding == "nearest" else "", "tuned" if step.tune else "")
    return "-".join([step.method, *filter(None, more)])


def kind_of(step: Quantize, name: str, model: Any) -> str | None:
    """The grid of a weight: embeddings, and the head where it is one with them, have their own; layers that were named eight
    bits or none."""
    weight, embedded = model.get_submodule(name.removesuffix(".weight")).weight, model.get_input_embeddings().weight
    called = [name.removesuffix(".weight")]
    if weight is embedded and model.get_output_embeddings().weight is embedded:  # one matrix of two names
        called = [layer for layer, part in model.named_modules() if getattr(part, "weight", None) is weight]
    if _matches(called, step.float_layers):
        return None
    if _matches(called, step.eight_bit_layers):
        return "q8_0"
    return (step.embeddings or (step.method if step.bits else "q8_0")) if weight is embedded else step.method


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def check_layers(step: Quantize, model: Any) -> None:
    """Raises `Invalid` for a pattern that no layer has the name of."""
    there = [name for name, part in model.named_modules() if getattr(part, "weight", None) is not None and part.weight.ndim > 1]
    for pattern in (*step.float_layers, *step.eight_bit_layers):
        if not any(fnmatch.fnmatchcase(name, pattern) for name in there):
            raise Invalid(f"'{pattern}' is the name of no layer with weights; there are {', '.join(there[:12])}, ….")


def judge(
    subject: Subject, variants: list[Variant], chosen: str, config: OptimiseConfig, context: JobContext
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report split: figures of the original and the chosen one, and of every variant the evidence."""
    blocks, out = subject.texts.blocks("report", ("calibrate", "select"), context.check)
    context.allow(_PATIENT)
    own = foretell(subject.fresh(), blocks, context.check)
    report: dict[str, Any] = {"rows": len(blocks.targets), "metric": METRIC, "variant": chosen}
    report["tokens"] = int(own.tokens.sum())
    report[ORIGINAL] = interval(own, config.confidence, config.seed).to_json()
    evaluations = {}
    for variant in variants:
        found = foretell(read_back(variant.folder), blocks, context.check)
        if not math.isfinite(own.perplexity + found.perplexity):
            raise Invalid(f"On the report split the original or {variant.name} foretells nothing: its losses are no numbers.")
        evaluations[variant.name] = described(evidence(own, found, "report", out, config.seed), "model")
        if variant.name == chosen:
            report["chosen"] = interval(found, config.confidence, config.seed).to_json()
            report["drop"] = drop(own, found, config.confidence, config.seed).to_json()
    context.allow()
    return report, evaluations


def _row(name: str, subject: Subject, found: Foretold, costs: tuple[int, Speed, float], config: OptimiseConfig) -> Measured:
    """`costs`: size, speed and memory."""
    size, speed, memory = costs
    score = interval(found, config.confidence, config.seed)
    lost = drop(subject.own, found, config.confidence, config.seed)
    return Measured(
        variant=name,
        verified=True,
        accuracy=score.value,
        low=score.low,
        high=score.high,
        drop=lost.value,
        drop_low=lost.low,
        drop_high=lost.high,
        size=size,
        memory=memory,
        **asdict(speed),
    )


def _size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))
