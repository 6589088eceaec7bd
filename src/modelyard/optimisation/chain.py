"""Steps one after another, from a version to one variant: those that train or prune go on its torch module, then it is exported
to ONNX, then its graph may be unpadded, then quantised.

What was pruned or taught is another function than the original and is not compared with it number by number. What is proved is
that the ONNX graph computes what its own module does, and that eight bits answer as that does; what it is worth is measured
like any variant's, by `optimise`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from modelyard.conversion.base import first_line, verify
from modelyard.conversion.onnx import FILE, export
from modelyard.engines.base import BatchEngine
from modelyard.engines.onnx import ERRORS, OnnxEngine
from modelyard.engines.torch import TorchEngine, load_module
from modelyard.errors import Invalid
from modelyard.kinds import JobContext
from modelyard.optimisation.calibration import calibration
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.evaluate import agreement
from modelyard.optimisation.quantise import facts, prepared
from modelyard.optimisation.sensitive import leave_sensitive
from modelyard.optimisation.steps import qat
from modelyard.optimisation.steps.config import (
    Distil,
    Finetune,
    Prune,
    Qat,
    Quantize,
    Unpad,
    epochs,
    for_language,
    variant_name,
)
from modelyard.optimisation.steps.distil import Lesson, Served, anew, build_student, distil
from modelyard.optimisation.steps.learn import Learning
from modelyard.optimisation.steps.text import show
from modelyard.optimisation.unpad import MASK, unpad
from modelyard.optimisation.variants import Subject, Variant, few, make_float32, same_answers
from modelyard.plugins import load
from modelyard.tensors import Array
from modelyard.training.gang import processors, repeatable

ROWS = 256  # of calibration, unless the step says how many
_FINETUNED, _QUANTISED = 0.25, 0.1  # of the rate of the version's own training
_JUDGED = 2048  # rows of the train split that importance is judged by
_ALIKE = 0.99  # of the labels; with so many alike `sensitive=auto` leaves no more in float
BEYOND = 5  # what the job tells as progress beside epochs
_WATCHED = 512  # rows of the select split that a network is judged by after each epoch
_PATIENT = 10.0  # times as long as usual a job may be silent while it traces, exports or quantises


@dataclass(frozen=True, slots=True)
class Result:
    """The variants (of steps there is one), what there is to tell of each step, and what came of the last lesson."""

    variants: list[Variant]
    told: Sequence[Mapping[str, Any]] = ()
    lesson: Lesson | None = None


@dataclass(frozen=True, slots=True)
class Shaped:
    """What the steps that train or prune made of a version."""

    network: nn.Module
    told: Sequence[Mapping[str, Any]]
    lesson: Lesson | None


@dataclass(slots=True)
class Shaping:
    """A network on its way through the steps. `spent`: epochs since it was made smaller or anew."""

    subject: Subject
    learning: Learning
    network: nn.Module
    told: list[dict[str, Any]] = field(default_factory=list)
    lesson: Lesson | None = None
    spent: int = 0

    def take(self, step: Any) -> None:
        """Do one step."""
        learning, said = self.learning, {"step": show(step)}
        learning.context.check()
        match step:
            case Prune():
                learning.context.allow(_PATIENT)
                inputs, _ = learning.some(2)
                prune = load("modelyard.optimisation.steps.prune:prune")  # the one step that needs torch-pruning
                said |= prune(self.network, step, inputs, self._gradients)
                learning.context.allow()
                self.spent = 0
                learning.context.log(f"{show(step)}: parameters {said['parameters'][0]} → {said['parameters'][1]}.")
                self._train("prune", step.finetune, step.lr)
            case Finetune():
                self._train("finetune", step.epochs, step.lr)
            case Qat():
                qat.train(self.network, learning, step.epochs, step.lr or learning.training.lr * _QUANTISED)
                self.spent += step.epochs
            case Distil():
                self._teach(step)
        self.told.append(said | {"curves": learning.curves})
        learning.curves = {}

    def _train(self, what: str, several: int, lr: float | None) -> None:
        self.learning.fit(self.network, what, several, lr or self.learning.training.lr * _FINETUNED)
        self.spent += several

    def _teach(self, step: Distil) -> None:
        subject, seed = self.subject, self.learning.seed
        teacher = load_module(subject.folder, subject.card) if step.features else Served(subject.folder, subject.card)
        if step.student is None:
            student, control, spent = self.network, anew(self.network, seed), self.spent
        else:
            assert subject.card.module is not None
            given = (subject.folder, subject.card.module, subject.source, step.student, seed)
            student, control, spent = build_student(*given), build_student(*given), 0
        lesson = distil(teacher, student, control, step, self.learning, spent=spent)
        self.network, self.spent = student, spent + step.epochs
        self.lesson = Lesson(copy.deepcopy(lesson.distilled), lesson.control)

    def _gradients(self, network: nn.Module) -> None:
        """Add up the loss's gradients over rows of the train split."""
        for inputs, wanted in self.learning.drawn(_JUDGED):
            self.learning.context.check()
            loss, _ = self.learning.plainly(network, inputs, wanted)
            (loss * len(wanted)).backward()  # type: ignore[no-untyped-call]


def make(subject: Subject, config: OptimiseConfig, context: JobContext) -> Result:
    """Raises `Invalid` where a step cannot be done, or what came of it does not answer in ONNX as it does in torch."""
    steps, name = config.steps, variant_name(config.steps)
    shaping = [step for step in steps if not isinstance(step, Unpad | Quantize)]
    last = steps[len(shaping) :]  # of the graph
    encoder = "transformers" in subject.card.engines and (subject.card.transform or {}).get("name") == "text"
    if other := next((step for step in steps if for_language(step) and not (encoder and isinstance(step, Distil))), None):
        more = " and encoders of texts that come with their Hugging Face folder" if isinstance(other, Distil) else ""
        raise Invalid(f"'{show(other)}' is for language models{more}; this one is for {subject.card.task}.")
    out = context.work / ("float" if last else name)
    shape = _teach_encoder if encoder else _shape
    shaped = shape(subject, shaping, config, context) if shaping else None
    context.allow(_PATIENT)
    found = _exported(shaped, subject, out, context) if shaped else make_float32(subject, out, context.work)
    told: list[Mapping[str, Any]] = list(shaped.told) if shaped else []
    for place, step in enumerate(last, start=1):
        out = context.work / (name if place == len(last) else f"graph-{place}")
        found, said = (
            _quantised(step, subject, found, out, config, context)
            if isinstance(step, Quantize)
            else _unpadded(subject, found, out, context)
        )
        told.append({"step": show(step), **said})
    context.allow()
    variant = Variant(name, found.folder, found.card, found.engine, verified=True, proof=found.proof)
    return Result([variant], told, shaped.lesson if shaped else None)


def _teach_encoder(subject: Subject, steps: Sequence[Any], config: OptimiseConfig, context: JobContext) -> Shaped:
    """A student of an encoder of texts, whose module is transformers'."""
    step, *others = steps
    if others or not for_language(step):
        which = next((other for other in steps if not for_language(other)), step)
        raise Invalid(
            f"'{show(which)}' is not for encoders of texts; they are distilled once (distil:layers=3), unpadded, quantised."
        )
    total, done = epochs(steps), count(1)

    def say(text: str) -> None:
        context.log(text)
        context.progress(next(done), total + BEYOND)

    context.allow(_PATIENT)
    teach = load("modelyard.optimisation.steps.encoders:teach")  # needs transformers
    with repeatable(processors()):
        lesson, told = teach(subject, step, config.seed, context.check, say)
    context.allow()
    return Shaped(lesson.distilled, [{"step": show(step), **told}], lesson)


def _shape(subject: Subject, steps: Sequence[Any], config: OptimiseConfig, context: JobContext) -> Shaped:
    card = subject.card
    if card.module is None:
        names = ", ".join(dict.fromkeys(step.step for step in steps))
        raise Invalid(
            f"{names}: this version is a graph ({', '.join(card.files)}) and no torch module; it can be unpadded and quantised."
        )
    context.allow(_PATIENT)
    learning = Learning.of(subject.folder, card, subject.source, context, seed=config.seed, total=epochs(steps), beyond=BEYOND)
    learning.watch = _watch(subject, epochs(steps, controls=False), config, context)
    context.allow()
    shaping = Shaping(subject, learning, load_module(subject.folder, card))
    learning.check(shaping.network)
    with repeatable(processors()):
        for step in steps:
            shaping.take(step)
    return Shaped(shaping.network, shaping.told, shaping.lesson)


def _watch(subject: Subject, total: int, config: OptimiseConfig, context: JobContext) -> Callable[[nn.Module], None]:
    """Tells after each of `total` epochs what the network loses on some rows of the select split, in points: as metrics of
    steps from 2 on, for 0 and 1 are the original and the variant."""
    source, card, rows = subject.source, subject.card, len(subject.select.wanted)
    some = np.sort(np.random.default_rng([config.seed, 3]).choice(rows, min(_WATCHED, rows), replace=False))
    inputs, wanted = {name: array[some] for name, array in subject.select.inputs.items()}, subject.select.wanted[some]

    def worth(engine: BatchEngine) -> float:
        return agreement(wanted, source.predict(engine, inputs, context.check), source.metric)

    own, done = worth(subject.engine), count(1)

    def watch(network: nn.Module) -> None:
        # A copy: what a network keeps of a forward in inference mode could not be trained on.
        lost, at = 100 * (own - worth(TorchEngine.of(copy.deepcopy(network), card))), next(done)
        context.metric(at + 1, epoch_drop=round(lost, 9), epochs_left=total - at)

    return watch


def _exported(shaped: Shaped, subject: Subject, out: Path, context: JobContext) -> Variant:
    """The network as ONNX, which equals itself number by number."""
    out.mkdir()
    rows = few(subject.select.inputs)
    card = export(shaped.network.eval(), subject.card, out, rows)
    engine = OnnxEngine(out, card)
    found = verify(TorchEngine.of(shaped.network, subject.card), engine, rows, keep=context.work)
    context.log(f"exported to ONNX: verified, greatest relative error {found.max_rel:.2g}.")
    proof = {**found.to_json(), "agreement_with_original": _alike(subject, subject.engine, engine, subject.select.inputs)}
    return Variant(out.name, out, card, engine, verified=True, proof=proof)


def _unpadded(subject: Subject, source: Variant, out: Path, context: JobContext) -> tuple[Variant, dict[str, Any]]:
    """The graph that computes no padding, which equals what it was made of number by number."""
    out.mkdir()
    source.card.save(out)
    own = source.engine
    assert own is not None
    try:
        said = unpad(source.folder / FILE, out / FILE)
        engine = OnnxEngine(out, source.card)
        found = verify(own, engine, _with_padding(few(subject.select.inputs)), keep=context.work)
    except (Invalid, *ERRORS) as error:
        raise Invalid(f"unpad: {error.message if isinstance(error, Invalid) else first_line(error)}") from error
    context.log(f"unpad: {said['unpadded']} of {said['layers']} layers. Verified, greatest relative error {found.max_rel:.2g}.")
    proof = max(source.proof, {**source.proof, **found.to_json()}, key=lambda one: one["max_rel"])  # the weaker of two links
    return Variant(out.name, out, source.card, engine, verified=True, proof=proof), dict(said)


def _with_padding(rows: Mapping[str, Array]) -> dict[str, Array]:
    """Texts with padding; where they have none, every other one ends earlier."""
    mask = rows[MASK].copy()
    if not mask.all():
        return dict(rows)
    lengths = mask.sum(axis=1)
    ends = np.where(np.arange(len(mask)) % 2 == 0, 1 + np.arange(len(mask)) % np.maximum(lengths, 1), lengths)
    mask[np.cumsum(mask, axis=1) > ends[:, None]] = 0
    return {**rows, MASK: mask}


def _quantised(
    step: Quantize, subject: Subject, source: Variant, out: Path, config: OptimiseConfig, context: JobContext
) -> tuple[Variant, dict[str, Any]]:
    """Eight bits of a float graph, proved against that."""
    looked_at = step.method == "static-int8" or step.sensitive
    rows = calibration(subject.source, step.rows or ROWS, config.seed) if looked_at else {}
    out.mkdir()
    source.card.save(out)
    own = source.engine
    assert own is not None

    def alike(_: Path) -> bool:
        return _alike(subject, own, OnnxEngine(out, source.card), rows) >= _ALIKE

    with prepared(source.folder / FILE, out / FILE, rows, step) as graph:
        left, effects = leave_sensitive(graph, out / FILE, alike, context.check)
        graph.write(out / FILE, leave=left)
    if left:
        context.log(f"{show(step)}: in float stay {', '.join(left)}.")
    engine = OnnxEngine(out, source.card)
    proof = same_answers(subject, own, engine)
    if not proof["ok"]:
        raise Invalid(f"{show(step)}: not verified. {proof['reason']}")
    more = {name: source.proof[name] for name in ("agreement_with_original",) if name in source.proof}
    return Variant(out.name, out, source.card, engine, verified=True, proof={**proof, **more}), facts(step, left, effects)


def _alike(subject: Subject, one: BatchEngine, other: BatchEngine, inputs: Mapping[str, Array]) -> float:
    source = subject.source
    return round(agreement(source.predict(one, inputs), source.predict(other, inputs), source.metric), 6)
