"""What the points of a search cost, before any is trained: the network is cut as it is, exported, rounded and run by the engine
that would serve it. How fast and how large a network is does not depend on what it has learned.

Called by `run`, for versions that are torch modules. What is made here is measured and thrown away: nothing is proved of it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from modelyard.conversion.onnx import FILE, export
from modelyard.engines.base import BatchEngine, ModelCard
from modelyard.engines.onnx import OnnxEngine
from modelyard.engines.torch import load_module
from modelyard.errors import Invalid
from modelyard.kinds import Input, JobContext
from modelyard.optimisation.calibration import calibration
from modelyard.optimisation.chain import ROWS
from modelyard.optimisation.choose import ORIGINAL
from modelyard.optimisation.measure import MANY, measure
from modelyard.optimisation.optimise import original_bytes, read, variant_bytes
from modelyard.optimisation.quantise import prepared
from modelyard.optimisation.search.point import Shape, named
from modelyard.optimisation.steps.config import Prune, Quantize
from modelyard.optimisation.steps.prune import prune
from modelyard.optimisation.variants import Subject, few
from modelyard.tensors import Array

_MOST = 64  # shapes that are made; of more a search learns the others from its trials
_SECONDS = 0.3  # of measuring each: to choose by, it need not be exact


class Costs(NamedTuple):
    """Logarithms (base 2) of what a shape takes of the original's: a call's time, a row's time in batches, bytes."""

    latency: float
    throughput: float
    size: float


def estimate(
    inputs: Mapping[str, Input], shapes: Sequence[Shape], seed: int, context: JobContext, more: Callable[[], bool]
) -> dict[str, Costs]:
    """The costs, by name, of as many shapes as there is time for, which `more` says; without those that cannot be made."""
    subject = read(inputs)
    found: dict[str, Costs] = {}
    with tempfile.TemporaryDirectory(dir=context.work) as folder:
        made = list(_made(subject, shapes[:_MOST], Path(folder), seed, context, more))
        engines = {ORIGINAL: subject.engine, **{name: engine for name, engine, _ in made}}
        samples = subject.source.typical(subject.select.inputs, MANY)
        speeds = measure(engines, samples, _SECONDS, context.check, subject.source.cut)
        own, own_size = speeds[ORIGINAL], original_bytes(subject)
        for name, _, size in made:
            latency, throughput = speeds[name].p50_ms / own.p50_ms, own.items_per_s / speeds[name].items_per_s
            found[name] = Costs(*map(math.log2, (latency, throughput, size / own_size)))
    return found


def _made(
    subject: Subject, shapes: Sequence[Shape], folder: Path, seed: int, context: JobContext, more: Callable[[], bool]
) -> Iterator[tuple[str, BatchEngine, int]]:
    """Each by name with its engine and its bytes; what is cut alike is exported once."""
    samples = few(subject.select.inputs)
    rows: Mapping[str, Array] = {}
    floats: dict[str, tuple[Path, ModelCard] | None] = {}
    for number, shape in enumerate(sorted(shapes, key=named)):
        if not more():
            return
        context.check()
        cut = tuple(step for step in shape if isinstance(step, Prune))
        try:
            if (name := named(cut)) not in floats:
                floats[name] = None
                floats[name] = _cut(subject, cut, samples, folder / f"float{number}")
            if (source := floats[name]) is None:
                continue
            path, card = source
            if quantise := next((step for step in shape if isinstance(step, Quantize)), None):
                rows = rows or calibration(subject.source, ROWS, seed)
                path = _rounded(quantise, path, card, rows, folder / f"rounded{number}")
            yield named(shape), OnnxEngine(path, card), variant_bytes(path)
        except Invalid as error:
            context.log(f"{named(shape)}: not estimated. {error.message}")


def _cut(subject: Subject, cut: Shape, samples: Mapping[str, Array], out: Path) -> tuple[Path, ModelCard]:
    """The network without what is cut away, as ONNX."""
    network = load_module(subject.folder, subject.card)
    for step in cut:
        assert isinstance(step, Prune)
        two = torch.from_numpy(samples[subject.card.inputs[0].name][:2])
        prune(network, step, two, _unasked)
    out.mkdir()
    return out, export(network.eval(), subject.card, out, samples)


def _rounded(step: Quantize, source: Path, card: ModelCard, rows: Mapping[str, Array], out: Path) -> Path:
    out.mkdir()
    card.save(out)
    with prepared(source / FILE, out / FILE, rows, step) as graph:
        graph.write(out / FILE)
    return out


def _unasked(_: torch.nn.Module) -> None:
    """The gradients that no importance by norms needs."""
