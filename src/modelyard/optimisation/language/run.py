"""Optimises a language model: its matrices pruned and on the grids of GGUF, in the file that serves it, and what that costs of
how well it foretells texts. Called by `optimise` for versions of the task text-generation.

As there, pruning and rounding look at the calibrate split, the choice at the select split, and the report split is read last.
Losses are those of the file as another reader has it, so that what was written is what is judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modelyard.conversion.gguf import FILE, KIND, prove, read_back, write
from modelyard.conversion.gguf import check as check_gguf
from modelyard.data.datasets import Dataset
from modelyard.engines.base import ModelCard
from modelyard.engines.huggingface import open_model, open_tokenizer
from modelyard.errors import Invalid
from modelyard.kinds import Input, JobContext, Outputs
from modelyard.optimisation.choose import ORIGINAL, Measured, choose, told
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.evaluation import described
from modelyard.optimisation.language.losses import Foretold, drop, evidence, interval
from modelyard.optimisation.language.plan import Plan, check_layers, kind_of, wanted
from modelyard.optimisation.language.pruning import going
from modelyard.optimisation.language.rounding import Rounded
from modelyard.optimisation.language.rounding import check as check_grid
from modelyard.optimisation.language.sensitivity import allot, look
from modelyard.optimisation.language.speed import measure
from modelyard.optimisation.language.students import Lesson, distil, worth
from modelyard.optimisation.language.texts import Texts, foretell, some
from modelyard.optimisation.language.tuning import tune
from modelyard.optimisation.language.walk import Walk, decoder
from modelyard.optimisation.measure import UNKNOWN, Speed
from modelyard.optimisation.publish import Findings, publish
from modelyard.optimisation.steps.text import show
from modelyard.optimisation.units import units
from modelyard.optimisation.variants import Variant
from modelyard.training.recipes.packing import Blocks

METRIC = "perplexity"
_PATIENT = 20.0  # times the usual heartbeat: a layer's matrices take a while


@dataclass(frozen=True, slots=True)
class Subject:
    """The version, its own answers to the select split, the texts, of the calibrate split all blocks (None: no plan asks for
    them), and of the report split the blocks that count and how many texts were left out."""

    inputs: Mapping[str, Input]
    folder: Path
    card: ModelCard
    texts: Texts
    calibrate: Blocks | None
    select: Blocks
    report: tuple[Blocks, int]
    own: Foretold

    def fresh(self) -> Any:
        """The model anew, in float32."""
        model, _ = open_model(self.folder, KIND, dtype=torch.float32)
        return model


def run(config: OptimiseConfig, inputs: Mapping[str, Input], outputs: Outputs, context: JobContext) -> None:
    """Publishes every variant under its name, the best within the budget last. Raises `Invalid` for what cannot be written as
    GGUF, steps that are not for language models, and where no variant is within the budget."""
    plans = wanted(config)
    total = len(plans) + 3
    subject = read(inputs, plans, context)
    context.progress(1, total)
    original = (_size(subject.folder, "*.safetensors"), UNKNOWN, math.nan)
    lesson = taught(subject, plans[0], config, context)
    variants, rows = [], [_row(ORIGINAL, subject, subject.own, original, config)]
    for place, plan in enumerate(plans):
        variant, found = make(subject, plan, config, context, lesson)
        variants.append(variant)
        costs = (_size(variant.folder, FILE), *measure(variant.folder, context.check))
        rows.append(_row(variant.name, subject, found, costs, config))
        context.progress(2 + place, total)
    by = {"metric": METRIC, "goal": config.goal}
    more: dict[str, Any] = {"steps": variants[0].proof["steps"]} if config.steps else {}
    if lesson:
        more["distillation"] = {"select": worth(lesson, subject.select, subject.own, config, context.check)}
    context.report(table=told(rows), **by, **more)
    choice = choose(rows[1:], config.goal, config.max_accuracy_drop, units(METRIC)[0])
    table = told(rows, choice)
    report, evaluations, of_lesson = judge(subject, variants, choice.variant, config, context, lesson)
    if lesson:
        more["distillation"]["report"] = of_lesson
    context.progress(total - 1, total)
    context.report(table=table, chosen=choice.variant, report=report, **by, **more)
    findings = Findings(config, inputs, METRIC, table, report, choice.variant, evaluations, more)
    for variant in sorted(variants, key=lambda variant: variant.name == choice.variant):
        publish(findings, variant, outputs)
    context.progress(total, total)


def read(inputs: Mapping[str, Input], plans: Sequence[Plan], context: JobContext) -> Subject:
    """Raises `Invalid` for all that would end the making of a variant and can be known before."""
    folder = inputs["model"].view.local()
    card = ModelCard.load(folder)
    if "gguf" in card.files:
        raise Invalid(f"{inputs['model'].reference} is quantised already; optimise the version it was made from.")
    model, _ = open_model(folder, KIND, dtype=torch.float32)
    check_gguf(model, folder)
    for plan in plans:
        check_plan(plan, model)
    texts = Texts.of(Dataset.open(inputs["dataset"].view.local()), open_tokenizer(folder), model)
    select, _ = texts.blocks("select", (), context.check)
    report = texts.blocks("report", ("calibrate", "select"), context.check)  # before anything is made that it could not judge
    looks = any(plan.reads for plan in plans)
    calibrate = texts.blocks("calibrate", ("select", "report"), context.check)[0] if looks else None
    own = foretell(model, select, context.check)
    known = model.get_input_embeddings().weight.shape[0]
    if not own.perplexity < known:
        raise Invalid(
            f"The original foretells texts no better than chance (perplexity {own.perplexity:.4g} of {known:,} tokens): "
            "nothing could be lost. Is it trained, and on texts like these?"
        )
    context.log(f"the original foretells {own.tokens.sum():,} tokens of select with a perplexity of {own.perplexity:.3f}.")
    return Subject(inputs, folder, card, texts, calibrate, select, report, own)


def check_plan(plan: Plan, model: Any) -> None:
    """Raises `Invalid` for layers that are not there, and matrices that fit no grid or share."""
    check_layers(plan, model)
    for name, weight in Walk(model, lambda name: kind_of(plan, name, model)).matrices().items():
        check_grid(weight, kind_of(plan, name, model) or "")
    if plan.prune:
        for part in decoder(model)[0].modules():
            if isinstance(part, nn.Linear):
                going(part.weight, plan.prune.weights, plan.prune.pattern)


def taught(subject: Subject, plan: Plan, config: OptimiseConfig, context: JobContext) -> Lesson | None:
    """The student that the plan asks for, and its control."""
    if plan.distil is None:
        return None
    context.allow(_PATIENT)
    blocks, _ = subject.texts.blocks("train", ("select", "report"), context.check, plan.distil.rows, config.seed)
    lesson = distil(subject.fresh, subject.folder, plan.distil, blocks, config.seed, context)
    context.allow()
    return lesson


def make(
    subject: Subject, plan: Plan, config: OptimiseConfig, context: JobContext, lesson: Lesson | None = None
) -> tuple[Variant, Foretold]:
    """One variant, of the version or of the student it taught, in a folder of its own, proved to be what was meant, and how
    well it foretells the select split."""
    context.allow(_PATIENT)
    subject = replace(subject, folder=lesson.distilled) if lesson else subject
    model, out, epochs = subject.fresh(), context.work / plan.name, plan.quantize.tune if plan.quantize else 0
    out.mkdir()
    check_layers(plan, model)
    if subject.calibrate is not None:
        blocks = some(subject.calibrate, plan.rows, config.seed)
    finer, tokens = weighed(plan, model, blocks, config.seed, context.check) if plan.weighs else (dict[str, str](), {})

    def kinds(name: str) -> str | None:
        return finer.get(name) or kind_of(plan, name, model)

    walk = Walk(model, kinds, context.check, plan.prune, plain=plan.plain, tokens=tokens)
    if plan.looks:
        walk.through(blocks, context.log)
    else:
        walk.nearest()
    rounded: Mapping[str, Rounded] = walk.rounded
    if plan.quantize and epochs:
        how: dict[str, Any] = {"epochs": epochs, "lr": plan.quantize.tune_lr, "seed": config.seed}
        rounded = tune(model, subject.fresh(), rounded, blocks, check=context.check, say=context.log, **how)
    card = write(model, subject.folder, subject.card, out, rounded)
    again = read_back(out)
    proof: dict[str, Any] = {"ok": True, "tensors": prove(model, rounded, again), "rounded": len(rounded)}
    told: list[dict[str, Any]] = [{"step": show(step)} for step in plan.steps]
    if lesson:
        told[0] |= lesson.told
    if finer:
        told[-1] |= {"finer": {kind: sorted(name for name in finer if finer[name] == kind) for kind in set(finer.values())}}
    if plan.prune and walk.gone:
        shares = noughts(walk.gone, again)
        context.log(f"{out.name}: {shares['sparsity']:.1%} of what was pruned is nought in the file: as fast as without.")
        proof |= shares
        told[plan.steps.index(plan.prune)] |= shares
    found = foretell(again, subject.select, context.check)
    context.allow()
    if not math.isfinite(found.perplexity):
        raise Invalid(f"{' '.join(step['step'] for step in told)}: the model foretells nothing any more.")
    context.log(f"{out.name}: {proof['tensors']} tensors read back as they were meant; perplexity {found.perplexity:.3f}.")
    return Variant(out.name, out, card, None, verified=True, proof={**proof, "steps": told}), found


def weighed(
    plan: Plan, model: Any, blocks: Blocks, seed: int, check: Callable[[], None]
) -> tuple[dict[str, str], Mapping[str, Tensor]]:
    """The weights that have finer grids so that the mean one has as many bits as the plan says, and which; and how much errors
    at each token count. Raises `Invalid` where the grids take more bits already."""
    assert plan.quantize is not None
    matrices = Walk(model, lambda name: kind_of(plan, name, model)).matrices()
    kinds = {name: kind_of(plan, name, model) or "" for name in matrices}
    cheap = {name: kind for name, kind in kinds.items() if kind != "q8_0"}
    found = look(model, cheap, blocks, seed=seed, check=check)
    tokens = found.tokens if plan.prune is None else {}  # what is pruned is judged by all tokens alike, as its papers do
    if plan.quantize.bits is None:
        return {}, tokens
    sizes = {name: matrix.numel() for name, matrix in matrices.items()}
    return allot(found.costs, sizes, kinds, plan.quantize.bits), tokens


def noughts(gone: Mapping[str, Tensor], again: Any) -> dict[str, float]:
    """Of the matrices that were pruned the shares of weights that were (`pruned`), and that another reader finds nought in the
    file (`sparsity`: some more, for rounding leaves noughts too). Raises `Invalid`, naming one that holds a pruned weight."""
    there = {name: again.get_parameter(name) == 0 for name in gone}
    for name, which in gone.items():
        if not there[name][which].all():
            raise Invalid(f"'{FILE}' holds weights of '{name}' that were pruned: this is a defect of the rounding.")
    total = sum(which.numel() for which in gone.values())
    found = {"pruned": gone, "sparsity": there}
    return {what: round(sum(int(each.sum()) for each in masks.values()) / total, 6) for what, masks in found.items()}


def judge(
    subject: Subject, variants: list[Variant], chosen: str, config: OptimiseConfig, context: JobContext, lesson: Lesson | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The report split: figures of the original and the chosen one, of every variant the evidence, of a lesson its worth."""
    blocks, out = subject.report
    context.allow(_PATIENT)
    own = foretell(subject.fresh(), blocks, context.check)
    report: dict[str, Any] = {"rows": own.independent, "left_out": out, "metric": METRIC, "variant": chosen}
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
    of_lesson = worth(lesson, blocks, own, config, context.check) if lesson else {}
    context.allow()
    return report, evaluations, of_lesson


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
