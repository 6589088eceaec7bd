"""The job kind `optimise`: variants of a trained version are made, verified against it, measured through the engine that will
serve them, and the best within the accuracy budget is chosen.

Order matters: ranges come from the calibrate split, the choice from the select split; the report split is read last, for the
original and the chosen one alone, so that its figures were never chosen by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from modelyard.data.datasets import Dataset
from modelyard.engines.base import CARD, ENGINES, BatchEngine, ModelCard
from modelyard.engines.files import inside
from modelyard.engines.onnx import check, external_files
from modelyard.errors import Invalid
from modelyard.kinds import Input, JobContext, Outputs
from modelyard.optimisation import chain
from modelyard.optimisation.choose import ORIGINAL, Measured, choose, told
from modelyard.optimisation.comparison import by_label, compare
from modelyard.optimisation.config import OptimiseConfig, check_inputs
from modelyard.optimisation.evaluate import drop, mse, score
from modelyard.optimisation.evaluation import SPLIT, check_labels, classes_of, described, fresh
from modelyard.optimisation.examples import Answers, Examples, Source
from modelyard.optimisation.measure import MANY, ONE, UNKNOWN, measure, rows
from modelyard.optimisation.memory import memory
from modelyard.optimisation.publish import REPORT, Findings, machine, publish
from modelyard.optimisation.steps.config import epochs
from modelyard.optimisation.study import study
from modelyard.optimisation.variants import Subject, Variant, make
from modelyard.plugins import load
from modelyard.tensors import Array
from modelyard.training.gang import processors, repeatable

_STEPS = chain.BEYOND


def run(config: OptimiseConfig, inputs: Mapping[str, Input], outputs: Outputs, context: JobContext) -> None:
    """Publishes every verified variant under its name, the chosen one last, so that it is the newest version too, and with the
    alias 'best' if `config.alias`. Raises `Invalid` where the version is a variant, cannot be converted, too many rows of the
    report split are in calibrate or select as well, or no variant is within the budget."""
    check_inputs(inputs)
    context.report(environment=machine())
    if ModelCard.load(inputs["model"].view.local()).task == "text-generation":
        with repeatable(processors()):
            load("modelyard.optimisation.language.run:run")(config, inputs, outputs, context)
        return
    subject, ahead = read(inputs), epochs(config.steps)
    kept = fresh(subject.source, context)  # before anything is made that they could not judge
    context.progress(1, ahead + _STEPS)
    made = chain.make(subject, config, context) if config.steps else chain.Result(make(subject, config, context))
    variants = made.variants
    context.progress(ahead + 2, ahead + _STEPS)
    table = tabulate(subject, variants, config, context)
    for step, row in enumerate(table):
        context.metric(step, **{key: float(value) for key, value in row.to_json().items() if type(value) in (int, float)})
    context.report(  # stays, if none is chosen
        metric=subject.source.metric, goal=config.goal, table=told(table), **found_by(made, subject, config)
    )
    context.progress(ahead + 3, ahead + _STEPS)
    choice = choose([row for row in table if row.variant != ORIGINAL], config.goal, config.max_accuracy_drop)
    rows = told(table, choice)
    answered = answer(subject, variants, kept, context)
    report = judge(answered, choice.variant, subject, config)
    context.progress(ahead + 4, ahead + _STEPS)
    more = found_by(made, subject, config, answered)
    context.report(table=rows, chosen=choice.variant, report=report, **more)
    evaluations = evaluate(answered, subject, config, context)
    findings = Findings(config, inputs, subject.source.metric, rows, report, choice.variant, evaluations, more)
    for variant in sorted(variants, key=lambda variant: variant.name == choice.variant):
        if variant.verified:
            publish(findings, variant, outputs)
    context.progress(ahead + _STEPS, ahead + _STEPS)


def read(inputs: Mapping[str, Input]) -> Subject:
    """The version and the examples it is judged by. Raises `Invalid` where it takes no open batch or does not fit the data."""
    folder = inputs["model"].view.local()
    if (folder / REPORT).exists():
        raise Invalid(f"{inputs['model'].reference} is what an optimise job made; optimise the version it was made from.")
    card = ModelCard.load(folder)
    if card.module is None and "onnx" not in card.files:
        raise Invalid(
            f"Variants are made of a PyTorch module or an ONNX graph; this version has {', '.join(card.files)} alone."
        )
    source = Source(folder, card, Dataset.open(inputs["dataset"].view.local()))
    if source.writes:
        raise Invalid("The model answers texts as they are: there is nothing to quantise by; `evaluate` says how good it is.")
    if any(spec.shape is not None and spec.shape[0] != -1 for spec in card.inputs):
        raise Invalid("The model takes batches of one fixed size only; optimising needs an open batch (dim 0).")
    engine = cast(BatchEngine, ENGINES.get(card.engines[0])(folder, card))
    select = source.examples("select")
    return Subject(folder, card, engine, source, source.truth(select, lambda: source.predict(engine, select.inputs)))


def tabulate(subject: Subject, variants: list[Variant], config: OptimiseConfig, context: JobContext) -> list[Measured]:
    """The original and every variant on the select split; figures of one that does not run are NaN."""
    engines = {ORIGINAL: subject.engine, **{v.name: v.engine for v in variants if v.engine is not None}}
    source = subject.source
    typical = source.typical(subject.select.inputs, MANY)
    speeds = measure(engines, typical, config.seconds, context.check, source.cut)
    batches = [source.cut(rows(typical, size)) for size in (ONE, MANY)]
    folders = {ORIGINAL: subject.folder, **{v.name: v.folder for v in variants}}
    held = {name: memory(folders[name], batches, context.work, context.check) for name in engines}
    predictions = {name: source.predict(engine, subject.select.inputs, context.check) for name, engine in engines.items()}
    there = [(ORIGINAL, True, original_bytes(subject))]
    there += [(v.name, v.verified, variant_bytes(v.folder)) for v in variants]
    return [
        Measured(
            variant=name,
            verified=verified,
            size=size,
            memory=held.get(name, math.nan),
            **_judged(predictions, name, subject, config),
            **asdict(speeds.get(name, UNKNOWN)),
        )
        for name, verified, size in there
    ]


@dataclass(frozen=True, slots=True)
class Answered:
    """The report split, what the original and every verified variant answer to it, by name, and which rows count, BOOL [rows]:
    those that nothing was made or chosen by."""

    examples: Examples
    answers: Mapping[str, Answers]
    kept: Array


def answer(subject: Subject, variants: list[Variant], kept: Array, context: JobContext) -> Answered:
    """Raises `Invalid` where the split is empty."""
    source = subject.source
    examples = source.examples(SPLIT)
    engines = {ORIGINAL: subject.engine, **{v.name: v.engine for v in variants if v.verified and v.engine is not None}}
    answers = {name: source.answers(engine, examples.inputs, context.check) for name, engine in engines.items()}
    return Answered(source.truth(examples, lambda: answers[ORIGINAL].predicted), answers, kept)


def evaluate(answered: Answered, subject: Subject, config: OptimiseConfig, context: JobContext) -> dict[str, Any]:
    """Of every verified variant what the report split shows, which nothing was chosen by; none where it can show nothing."""
    source, found, rows = subject.source, dict[str, Any](), answered.examples
    try:
        check_labels(subject.card, source)
        classes = classes_of(source, (), context)
        slices = by_label(classes, rows.wanted)
        original = answered.answers[ORIGINAL]
        for name, answers in answered.answers.items():
            context.check()
            if name != ORIGINAL:
                how: dict[str, Any] = {"split": SPLIT, "slices": slices, "kept": answered.kept, "seed": config.seed}
                evidence = compare(original, answers, rows.wanted, source.metric, **how)
                found[name] = described(replace(evidence, by_class=classes is not None), "model")
    except Invalid as error:
        context.log(f"The variants were not evaluated on the report split: {error.message}")
    return found


def judge(answered: Answered, chosen: str, subject: Subject, config: OptimiseConfig) -> dict[str, Any]:
    """The rows of the report split that count: score and interval of the original and the chosen one, and what is lost between
    them in points."""
    kept, metric = answered.kept, subject.source.metric
    wanted, names = answered.examples.wanted[kept], {ORIGINAL: ORIGINAL, "chosen": chosen}
    predictions = {name: answered.answers[variant].predicted[kept] for name, variant in names.items()}
    report: dict[str, Any] = {"rows": len(wanted), "left_out": int((~kept).sum()), "metric": metric, "variant": chosen}
    for name, predicted in predictions.items():
        report[name] = _figures(predicted, wanted, metric, config)
    lost = drop(predictions[ORIGINAL], predictions["chosen"], wanted, metric, config.confidence, config.seed)
    return {**report, "drop": lost.to_json()}


def found_by(made: chain.Result, subject: Subject, config: OptimiseConfig, report: Answered | None = None) -> dict[str, Any]:
    """What steps have to tell beside the table: each of them, and of a lesson what it was worth on the splits seen so far."""
    if not config.steps:
        return {}
    told: dict[str, Any] = {"steps": list(made.told)}
    if made.lesson is None:
        return told
    lessons = {"select": study(subject, made.lesson, subject.select, config)}
    if report:
        lessons[SPLIT] = study(subject, made.lesson, report.examples, config, report.kept)
    return told | {"distillation": lessons}


def _figures(predicted: Array, wanted: Array, metric: str, config: OptimiseConfig) -> dict[str, float]:
    figures = score(predicted, wanted, metric, config.confidence, config.seed).to_json()
    return figures if metric != "r2" else {**figures, "mse": mse(predicted, wanted)}


def _judged(predictions: Mapping[str, Array], name: str, subject: Subject, config: OptimiseConfig) -> dict[str, Any]:
    """The score of a variant and what it loses, as `Measured` has them."""
    names = ("accuracy", "low", "high", "drop", "drop_low", "drop_high")
    if name not in predictions:
        return dict.fromkeys(names, math.nan)
    wanted, metric = subject.select.wanted, subject.source.metric
    own = score(predictions[name], wanted, metric, config.confidence, config.seed)
    lost = drop(predictions[ORIGINAL], predictions[name], wanted, metric, config.confidence, config.seed)
    return dict(zip(names, (own.value, own.low, own.high, lost.value, lost.low, lost.high), strict=True))


def variant_bytes(folder: Path) -> int:
    """Bytes of a variant's own files: those that are named as it is, but for its card."""
    return sum(path.stat().st_size for path in folder.glob("model.*") if path.name != CARD)


def original_bytes(subject: Subject) -> int:
    """Bytes of the original's file, and of those beside it that a graph keeps its weights in."""
    file = inside(subject.folder, subject.card.files["onnx" if subject.card.engines[0] == "onnx" else "weights"])
    beside = external_files(check(file)) if file.suffix == ".onnx" else set()
    return file.stat().st_size + sum(inside(file.parent, name).stat().st_size for name in beside)
