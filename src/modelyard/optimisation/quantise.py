"""Eight-bit variants of an ONNX model by onnxruntime's quantiser. What they are worth is found by measuring, not here.

Activations are unsigned: onnxruntime's kernels for signed ones were slower than float on x86. Weights of the static variant
keep 7 of 8 bits, because processors without VNNI saturate otherwise and would answer differently from where it was measured.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from modelyard.conversion.base import count, first_line
from modelyard.engines.onnx import ERRORS
from modelyard.errors import Invalid
from modelyard.tensors import Array

_CHUNK = 32
Quantise = Callable[[Path, Path, Mapping[str, Array]], None]


def static_int8(source: Path, target: Path, calibration: Mapping[str, Array]) -> None:
    """Weights (per channel) and activations, whose ranges are those seen on the `calibration` rows; QDQ form."""
    with _prepared(source, target) as prepared:
        quantize_static(
            prepared,
            target,
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )


def dynamic_int8(source: Path, target: Path, calibration: Mapping[str, Array]) -> None:
    """Weights ahead, activations at each call. Convolutions need unsigned weights: with signed ones they are thrice as slow.
    Signed ones keep seven bits: with eight, sums saturate on processors without VNNI, and the answers are others there."""
    with _prepared(source, target) as prepared:
        convolves = any(node.op_type == "Conv" for node in onnx.load(prepared).graph.node)
        weights = QuantType.QUInt8 if convolves else QuantType.QInt8
        quantize_dynamic(prepared, target, weight_type=weights, reduce_range=not convolves)


QUANTISERS: Mapping[str, Quantise] = {"static-int8": static_int8, "dynamic-int8": dynamic_int8}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Rows in chunks, as onnxruntime's calibration asks for them."""

    def __init__(self, samples: Mapping[str, Array]) -> None:
        rows = count(samples)
        self._chunks = iter([{k: v[i : i + _CHUNK] for k, v in samples.items()} for i in range(0, rows, _CHUNK)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._chunks, None)


@contextmanager
def _prepared(source: Path, target: Path) -> Iterator[Path]:
    """The graph with shapes inferred and constants folded, as the quantiser wants it; gone afterwards. Raises `Invalid` where
    the quantiser gives up."""
    path = target.with_suffix(".prepared.onnx")
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the quantiser gives advice to its developers on the root logger
    try:
        quant_pre_process(source, path, skip_symbolic_shape=True)
        yield path
    except (ValueError, KeyError, AttributeError, NotImplementedError, *ERRORS) as error:
        raise Invalid(f"onnxruntime cannot quantise this model: {first_line(error)}") from error
    finally:
        logging.disable(disabled)
        path.unlink(missing_ok=True)
