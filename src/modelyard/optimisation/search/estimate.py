"""What the points of a search cost, before any is trained: the network is cut as it is, exported, rounded and run by the engine
that would serve it. How fast and how large a network is does not depend on what it has learned.

Called by `run`, for versions that are torch modules. What is made here is measured and thrown away: nothing is proved of it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from modelyard.conversion.base import first_line
from modelyard.conversion.onnx import FILE, export
from modelyard.engines.base import ModelCard
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
_SHAPE = "shape"
_SECONDS = 0.2  # of measuring each: to choose by, it need not be exact


class Costs(NamedTuple):
    """Logarithms (base 2) of what a shape takes of the original's: a call's time, a row's time in batches, bytes."""

    latency: float
    throughput: float
    size: float


def estimate(
    inputs: Mapping[str, Input], shapes: Sequence[Shape], seed: int, context: JobContext, more: Callable[[], bool]
) -> dict[str, Costs]:
    """The costs, by name, of as many shapes as there is time for, which `more` says; without those that cannot be made or do
    not run: each is this search's first look at it, and a trial will say why."""
    maker = _Maker(read(inputs), seed)
    found: dict[str, Costs] = {}
    with tempfile.TemporaryDirectory(dir=context.work) as folder:
        for number, shape in enumerate(sorted(shapes[:_MOST], key=named)):
            context.check()
            if not more():
                break
            try:
                found[named(shape)] = maker.costs(shape, Path(folder) / str(number))
            except Exception as error:  # noqa: BLE001 - the edge of a shape: users' code runs on less than it was written for
                context.log(f"{named(shape)}: not estimated. {first_line(error)}")
    return found


class _Maker:
    """Makes shapes of one version and times each by turns with the original; what is cut alike is exported once."""

    def __init__(self, subject: Subject, seed: int) -> None:
        self._subject, self._samples = subject, few(subject.select.inputs)
        self._typical = subject.source.typical(subject.select.inputs, MANY)
        self._rows: Mapping[str, Array] = {}
        self._seed = seed
        self._floats: dict[str, tuple[Path, ModelCard] | None] = {}

    def costs(self, shape: Shape, out: Path) -> Costs:
        """`out`: a folder for it, that is not there."""
        cut = tuple(step for step in shape if isinstance(step, Prune))
        if (name := named(cut)) not in self._floats:
            self._floats[name] = None
            self._floats[name] = _cut(self._subject, cut, self._samples, out.with_suffix(".float"))
        if (found := self._floats[name]) is None:
            raise Invalid(f"It cannot be made with {name}.")
        folder, card = found
        if quantise := next((step for step in shape if isinstance(step, Quantize)), None):
            self._rows = self._rows or calibration(self._subject.source, ROWS, self._seed)
            folder = _rounded(quantise, folder, card, self._rows, out)
        engine = OnnxEngine(folder, card)
        try:
            engines = {ORIGINAL: self._subject.engine, _SHAPE: engine}
            speeds = measure(engines, self._typical, _SECONDS, cut=self._subject.source.cut)
        finally:
            engine.close()
        own, its = speeds[ORIGINAL], speeds[_SHAPE]
        size = variant_bytes(folder) / original_bytes(self._subject)
        return Costs(*map(math.log2, (its.p50_ms / own.p50_ms, own.items_per_s / its.items_per_s, size)))


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
