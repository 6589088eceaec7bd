"""Makes the variants of a version and proves each to be the same model: float ones, in whatever format, number by number,
eight-bit ones by how often they answer alike. Called by `optimise`; what a variant is worth is not decided here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx

from modelyard.conversion.base import CONVERTERS, compare, verify
from modelyard.conversion.onnx import FILE
from modelyard.engines.base import ENGINES, BatchEngine, ModelCard
from modelyard.engines.files import inside
from modelyard.engines.onnx import OnnxEngine, check
from modelyard.errors import Invalid
from modelyard.kinds import JobContext
from modelyard.optimisation.calibration import calibration
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.evaluate import agreement
from modelyard.optimisation.examples import Examples, Source
from modelyard.optimisation.quantise import QUANTISERS
from modelyard.tensors import Array

AGREEMENT = 0.95  # of an eight-bit variant's predictions with the original's, below which it is another model
_QUANTISED = {"ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QuantizeLinear"}
_OF_MODULES = {"litert", "pt2"}  # formats that are made of a PyTorch module rather than of its graph
_ROWS = 256  # of calibration, and of numeric comparison


@dataclass(frozen=True, slots=True)
class Subject:
    """The version that is optimised: its folder, its card, its own engine, and the examples it is judged by."""

    folder: Path
    card: ModelCard
    engine: BatchEngine
    source: Source
    select: Examples


@dataclass(frozen=True, slots=True)
class Variant:
    """One candidate. `engine` is None where it could not be made or loaded; `proof` says how it compares, or why it doesn't."""

    name: str
    folder: Path
    card: ModelCard
    engine: BatchEngine | None
    verified: bool
    proof: Mapping[str, Any]


def make(subject: Subject, config: OptimiseConfig, context: JobContext) -> list[Variant]:
    """The variants asked for, in that order. Raises `Invalid` where the version cannot be expressed in ONNX or, as floats,
    answers otherwise there; the worst input is then kept in the job's folder."""
    float32 = make_float32(subject, context.work / "fp32", context.work)
    context.log(f"fp32: verified, greatest relative error {float32.proof['max_rel']:.2g}.")
    rows = calibration(subject.source, _ROWS, config.seed) if "static-int8" in config.variants else {}
    made = []
    for name in config.variants:
        context.check()
        variant = float32 if name == "fp32" else _made(name, subject, float32, rows)
        if not variant.verified:
            context.log(f"{name}: not verified. {variant.proof['reason']}")
        made.append(variant)
    return made


def make_float32(subject: Subject, out: Path, work: Path) -> Variant:
    """The version as a float graph in `out`, which answers as it does; where not, the worst input is kept in `work`."""
    out.mkdir()
    rows = few(subject.select.inputs)
    card = _to_onnx(subject, out, rows)
    engine = OnnxEngine(out, card)
    found = verify(subject.engine, engine, rows, keep=work)
    return Variant("fp32", out, card, engine, verified=True, proof=found.to_json())


def _to_onnx(subject: Subject, out: Path, rows: Mapping[str, Array]) -> ModelCard:
    """From the module where there is one; an imported graph is its own float variant."""
    card = subject.card
    if card.module is not None:
        return CONVERTERS.get("onnx").convert(subject.folder, card, out, rows)
    path = inside(subject.folder, card.files["onnx"])
    if found := sorted({node.op_type for node in check(path).graph.node} & _QUANTISED):
        raise Invalid(f"The model is quantised already (its graph has {found[0]}); optimise the float model it was made from.")
    onnx.save(onnx.load(path), out / FILE)
    made = card.changed(files={"onnx": FILE}, engines=("onnx",))
    made.save(out)
    return made


def _made(name: str, subject: Subject, float32: Variant, rows: Mapping[str, Array]) -> Variant:
    """A failed try is a result as well: the variant is kept, unverified, with the reason."""
    out = float32.folder.with_name(name)
    out.mkdir()
    card = float32.card
    engine: BatchEngine | None = None
    try:
        if name in QUANTISERS:
            QUANTISERS[name](float32.folder / FILE, out / FILE, rows)
            card.save(out)
            engine = OnnxEngine(out, card)
            proof = same_answers(subject, subject.engine, engine)
        else:  # another format, which must answer number by number
            folder, card = (subject.folder, subject.card) if name in _OF_MODULES else (float32.folder, card)
            card = CONVERTERS.get(name).convert(folder, card, out, few(subject.select.inputs))
            engine = cast(BatchEngine, ENGINES.get(card.engines[0])(out, card))
            proof = verify(subject.engine, engine, few(subject.select.inputs), keep=out.parent).to_json()
    except Invalid as error:
        proof = {"ok": False, "reason": error.message}
    return Variant(name, out, card, engine, verified=bool(proof["ok"]), proof=proof)


def same_answers(subject: Subject, reference: BatchEngine, engine: BatchEngine) -> dict[str, Any]:
    """Same shapes in every batch size, finite numbers, and at least `AGREEMENT` of the predictions alike."""
    found = compare(reference, engine, few(subject.select.inputs), tolerance=None)
    inputs, source = subject.select.inputs, subject.source
    alike = agreement(source.predict(reference, inputs), source.predict(engine, inputs), source.metric)
    ok = math.isfinite(found.max_abs) and alike >= AGREEMENT
    reason = "" if ok else f"It predicts {alike:.3f} like the original (its outputs differ by up to {found.max_abs:.3g})."
    return {**found.to_json(), "agreement": round(alike, 6), "required": AGREEMENT, "ok": ok, "reason": reason}


def few(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The first rows: as many as are compared number by number."""
    return {name: array[:_ROWS] for name, array in inputs.items()}
