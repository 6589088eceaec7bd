"""Eight-bit variants of an ONNX model by onnxruntime's quantiser. What they are worth is found by measuring, not here.

Of `weights-int8` onnxruntime makes floats again when it loads the graph, and computes as fast as in float; the file alone is
smaller. Activations are unsigned: onnxruntime's kernels for signed ones were slower than float on x86. Weights keep
7 of 8 bits, because processors without VNNI saturate otherwise and would answer differently from where it was
measured.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.calibrate import HistogramCollector, create_calibrator, save_tensors_data
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

from modelyard.conversion.base import count, first_line
from modelyard.engines.onnx import ERRORS
from modelyard.errors import Invalid
from modelyard.optimisation.packing import LAYERS, pack
from modelyard.optimisation.steps.config import Quantize
from modelyard.tensors import Array

_CHUNK = 32
# Of a tensor's histogram; and of entropy the fewest that a range is made of: of the 128 that onnxruntime takes that is all.
_BINS, _KEPT_BINS = {"entropy": 512, "percentile": 2048}, 128
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_WEIGHT = re.compile(r"(?:ConvBnFusion_W_)?(?P<layer>.+)\.weight")
_ROUNDED = (TensorProto.FLOAT, TensorProto.FLOAT16)  # types of weights that a quantiser takes
_EIGHT_BITS = (TensorProto.INT8, TensorProto.UINT8)
Quantise = Callable[[Path, Path, Mapping[str, Array]], None]


def static_int8(source: Path, target: Path, calibration: Mapping[str, Array]) -> None:
    """Weights (per channel) and activations, whose ranges are those seen on the `calibration` rows; QDQ form."""
    with prepared(source, target, calibration, Quantize()) as graph:
        graph.write(target)


def dynamic_int8(source: Path, target: Path, calibration: Mapping[str, Array]) -> None:
    """Weights ahead, activations at each call. Convolutions need unsigned weights: with signed ones they are thrice as slow."""
    with prepared(source, target, calibration, Quantize(method="dynamic-int8")) as graph:
        graph.write(target)


QUANTISERS: Mapping[str, Quantise] = {"static-int8": static_int8, "dynamic-int8": dynamic_int8}


@dataclass(frozen=True, slots=True)
class Graph:
    """A float graph ready to be quantised. `layers`: those that have weights, by the name of the module they were exported
    from (of their node, where it was no module), to their node. Ranges are found once and kept beside it."""

    path: Path
    calibration: Mapping[str, Array]
    step: Quantize
    layers: Mapping[str, str] = field(default_factory=dict)

    @property
    def ranges(self) -> Path:
        return self.path.with_suffix(".ranges.json")

    def write(self, target: Path, *, leave: Collection[str] = (), only: Collection[str] | None = None) -> None:
        """Quantise all but the layers `leave`, or `only` some. Raises `Invalid` where there is no such layer, the quantiser
        gives up, or, unless `only` some were meant, no weight has eight bits then."""
        nodes = [self.layers[name] for name in only] if only is not None else None
        excluded = [self.layers[self.known(name)] for name in leave]
        try:
            if self.step.method == "static-int8":
                self._static(target, nodes, excluded)
            elif self.step.method == "dynamic-int8":
                self._dynamic(target, nodes, excluded)
            else:
                chosen = set(self.layers.values() if nodes is None else nodes) - set(excluded)
                pack(self.path, target, chosen, per_channel=self.step.per_channel)
        except (ValueError, KeyError, AttributeError, NotImplementedError, *ERRORS) as error:
            raise Invalid(f"onnxruntime cannot quantise this model: {first_line(error)}") from error
        if only is None and not _eight_bits(target) - _eight_bits(self.path):
            raise Invalid(
                f"{self.step.method} changes no weight of this model, which has {_weights(self.path)}; weights in float32 of "
                f"{', '.join(sorted(LAYERS))} were expected. Leave it in float."
            )

    def known(self, name: str) -> str:
        """Raises `Invalid`, naming what there is, where that is no layer."""
        if name in self.layers:
            return name
        near = difflib.get_close_matches(name, self.layers, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(list(self.layers)[:20]) or 'none'}"
        raise Invalid(f"'{name}' is no layer that eight bits change; {hint}.")

    def _static(self, target: Path, nodes: list[str] | None, excluded: list[str]) -> None:
        if self.step.calibration in _BINS and not self.ranges.exists():
            self._find_by_histograms()
        quantize_static(
            self.path,
            target,
            _Reader(self.calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=self.step.per_channel,
            reduce_range=True,
            calibrate_method=_METHODS[self.step.calibration],
            calibration_cache_path=self.ranges,
            nodes_to_quantize=nodes,
            nodes_to_exclude=excluded,
        )

    def _find_by_histograms(self) -> None:
        """As `quantize_static` would, but that it holds what all tensors of all rows come to."""
        method, augmented = self.step.calibration, self.path.with_suffix(".augmented.onnx")
        own = {"num_quantized_bins": _KEPT_BINS} if method == "entropy" else {"percentile": self.step.percentile}
        try:
            operators, options = sorted({*QDQRegistry, *QLinearOpsRegistry}), {"num_bins": _BINS[method], **own}
            calibrator = create_calibrator(self.path, operators, augmented, _METHODS[method], extra_options=options)
            settings = ("method", "symmetric", "num_bins", "num_quantized_bins", "percentile", "scenario")
            calibrator.collector = HistogramCollector(*(getattr(calibrator, name) for name in settings))
            calibrator.collector.histogram_dict = _histograms(calibrator, self.calibration)
            save_tensors_data(calibrator.compute_data(), self.ranges)
        finally:
            augmented.unlink(missing_ok=True)

    def _dynamic(self, target: Path, nodes: list[str] | None, excluded: list[str]) -> None:
        there = list(onnx.load(self.path, load_external_data=False).graph.node)
        convolves = any(node.op_type == "Conv" for node in there)
        gemms = {node.name for node in there if node.op_type == "Gemm"}
        quantize_dynamic(
            self.path,
            target,
            weight_type=QuantType.QUInt8 if convolves else QuantType.QInt8,
            per_channel=self.step.per_channel and not convolves,  # onnxruntime's ConvInteger knows one zero point
            reduce_range=True,
            nodes_to_quantize=nodes and _as_matrices(nodes, gemms),
            nodes_to_exclude=_as_matrices(excluded, gemms),
        )


def _as_matrices(nodes: Sequence[str], gemms: Collection[str]) -> list[str]:
    """Names as the quantiser looks for them, which makes a MatMul and an Add of each Gemm first."""
    return [*nodes, *(f"{name}_MatMul" for name in nodes if name in gemms)]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Rows in chunks, as onnxruntime's calibration asks for them."""

    def __init__(self, samples: Mapping[str, Array]) -> None:
        starts = range(0, count(samples), _CHUNK)
        self._chunks = iter([{k: v[i : i + _CHUNK] for k, v in samples.items()} for i in starts])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._chunks, None)


def _histograms(calibrator: Any, samples: Mapping[str, Array]) -> dict[str, tuple[Any, ...]]:
    """Of each tensor the counts, their edges, its least and its greatest value, as onnxruntime's collector keeps them of all
    rows at once. They run twice, a chunk at a time: bins lie where they should once the ends are known."""
    ends: dict[str, Array] = {}
    for name, array in _seen(calibrator, samples):
        here = np.array([np.nanmin(array), np.nanmax(array)])
        before = ends.get(name, here)
        ends[name] = np.array([min(before[0], here[0]), max(before[1], here[1])])
    found: dict[str, tuple[Any, ...]] = {}
    for name, array in _seen(calibrator, samples):
        far = np.abs(ends[name]).max()
        values, span = (np.abs(array), (0, far)) if calibrator.symmetric else (array, (-far, far))
        counts, edges = np.histogram(values, calibrator.num_bins, range=span)
        counts += found[name][0] if name in found else 0
        found[name] = (counts, edges.astype(array.dtype), *ends[name])
    return found


def _seen(calibrator: Any, samples: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """The tensors whose ranges are looked for, chunk by chunk."""
    session = calibrator.infer_session
    names = [given.name for given in session.get_outputs()]
    for chunk in iter(_Reader(samples).get_next, None):
        for name, array in zip(names, session.run(None, chunk), strict=True):
            if name in calibrator.tensors_to_calibrate:
                yield name, array


@contextmanager
def prepared(source: Path, target: Path, calibration: Mapping[str, Array], step: Quantize) -> Iterator[Graph]:
    """The graph with shapes inferred and constants folded, as the quantiser wants it; gone afterwards. Raises `Invalid` where
    `calibration` has not the graph's inputs, or the quantiser gives up."""
    path = target.with_suffix(".prepared.onnx")
    if step.method == "static-int8":
        _check_rows(source, calibration)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the quantiser gives advice to its developers on the root logger
    try:
        quant_pre_process(source, path, skip_symbolic_shape=True)
        _tidy(path)
        graph = Graph(path, calibration, step, layers_of(path))
        yield graph
    except (ValueError, KeyError, AttributeError, NotImplementedError, *ERRORS) as error:
        raise Invalid(f"onnxruntime cannot quantise this model: {first_line(error)}") from error
    finally:
        logging.disable(disabled)
        path.unlink(missing_ok=True)
        path.with_suffix(".ranges.json").unlink(missing_ok=True)


def _tidy(path: Path) -> None:
    """Give every node a name of its own, by which layers are left out, and no weight the place of an input."""
    model = onnx.load(path)
    graph, seen, before = model.graph, set[str](), model.SerializeToString(deterministic=True)
    for place, node in enumerate(graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{place}"
        seen.add(node.name)
    weights = {initial.name for initial in graph.initializer}
    fed = [given for given in graph.input if given.name not in weights]
    del graph.input[:]
    graph.input.extend(fed)
    if (after := model.SerializeToString(deterministic=True)) != before:
        path.write_bytes(after)


def layers_of(path: Path) -> dict[str, str]:
    """The layers of a graph that have weights which eight bits can change, by name, in order."""
    graph = onnx.load(path, load_external_data=False).graph
    weights = {initial.name for initial in graph.initializer if initial.data_type in _ROUNDED}
    found = {}
    for node in graph.node:
        held = [name for name in node.input[:2] if name in weights]
        if node.op_type in LAYERS and held:
            named = next((match["layer"] for name in held if (match := _WEIGHT.match(name))), node.name)
            found[named if named not in found else node.name] = node.name
    return found


def _eight_bits(path: Path) -> set[str]:
    """The weights of eight bits in a graph, by name; what has no dim is a zero point."""
    graph = onnx.load(path, load_external_data=False).graph
    return {initial.name for initial in graph.initializer if initial.dims and initial.data_type in _EIGHT_BITS}


def _weights(path: Path) -> str:
    """The operators that take weights, with their types, in words."""
    graph = onnx.load(path, load_external_data=False).graph
    types = {initial.name: TensorProto.DataType.Name(initial.data_type) for initial in graph.initializer if initial.dims}
    found = {f"{types[name]} of {node.op_type}" for node in graph.node for name in node.input if name in types}
    return ", ".join(sorted(found)) or "none"


def _check_rows(source: Path, calibration: Mapping[str, Array]) -> None:
    """Raises `Invalid` where the rows of calibration are no input of the graph."""
    graph = onnx.load(source, load_external_data=False).graph
    weights = {initial.name for initial in graph.initializer}  # in older graphs they are inputs, too
    wanted = {
        given.name: [dim.dim_value or -1 for dim in given.type.tensor_type.shape.dim]
        for given in graph.input
        if given.name not in weights
    }
    for name, shape in wanted.items():
        array = calibration.get(name)
        if array is None or not _fits(shape, array.shape):
            given = ", ".join(f"{key} {list(value.shape)}" for key, value in calibration.items()) or "nothing"
            raise Invalid(f"The model takes '{name}' {shape}; the rows of calibration are {given}.")


def _fits(wanted: Sequence[int], given: Sequence[int]) -> bool:
    """Whether dims past the batch are as wanted, where -1 is any."""
    return len(wanted) == len(given) and all(dim in (-1, own) for dim, own in zip(wanted[1:], given[1:], strict=True))


def facts(step: Quantize, left: Collection[str], effects: Mapping[str, float]) -> dict[str, Any]:
    """What is told of a quantisation: what stayed in float, and what each layer does alone."""
    return {"method": step.method, "float_layers": list(left)} | ({"effects": dict(effects)} if effects else {})
