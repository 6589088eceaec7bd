"""Runs a model version's OpenVINO IR (`model.xml` and `model.bin`) on the processor. Made by replicas, by verification and by
measurement, so that what is measured is what serves. It knows no batching, no transform and no protocol.

Numbers are computed in float32: OpenVINO's own default takes bfloat16 where the processor has it, and answers otherwise there.
Libraries of custom operators are never registered.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov  # type: ignore[import-untyped]

from modelyard.engines.base import ModelCard
from modelyard.engines.files import inside
from modelyard.engines.tensors import agree
from modelyard.errors import Invalid
from modelyard.tensors import Array, Signature, TensorSpec

_DATATYPES = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "f32": "FP32",
    "f64": "FP64",
}


class OpenVinoEngine:
    """A `BatchEngine` over `card.files['openvino']`, the .xml; its weights lie beside it under the same name. Raises `Unsafe`
    for paths outside `folder`, `Invalid` where OpenVINO refuses it or where its tensors are not those of the card."""

    def __init__(self, folder: Path, card: ModelCard, *, threads: int = 1) -> None:
        if "openvino" not in card.files:
            raise Invalid("model.json names no file for the engine 'openvino': expected files.openvino.")
        path = inside(folder, card.files["openvino"])
        inside(folder, str(Path(card.files["openvino"]).with_suffix(".bin")))
        model = read(path)
        agree(card.signature, signature_of(model))
        self._signature = card.signature
        self._inputs = [spec.name for spec in card.inputs]
        self._outputs = [spec.name for spec in card.outputs]
        self._request = _compiled(model, threads).create_infer_request()

    @property
    def signature(self) -> Signature:
        return self._signature

    def forward(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        # Read where they lie, which takes memory in one piece; the answers are copied, for the next call writes over them.
        given = {name: np.ascontiguousarray(batch[name]) for name in self._inputs}
        found = self._request.infer(given, share_inputs=True, share_outputs=False)
        return {name: found[name] for name in self._outputs}

    def close(self) -> None:
        del self._request


def read(path: Path) -> Any:
    """The model in an .xml or .onnx file. Raises `Invalid` where OpenVINO refuses it, naming an operator that it lacks."""
    try:
        return ov.Core().read_model(path)
    except RuntimeError as error:
        raise Invalid(f"OpenVINO refuses '{path.name}': {reason(error, path)}") from error


def signature_of(model: Any) -> Signature:
    """The tensors of a model, -1 where a dim is open. Raises `Invalid` for an element type that the protocol has none for."""
    return Signature(tuple(map(_spec, model.inputs)), tuple(map(_spec, model.outputs)))


def reason(error: Exception, path: Path) -> str:
    """OpenVINO's reason in one line: it begins with places in its own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '"))] or lines or ["it says nothing more"]
    return " ".join(told).replace(str(path), path.name).replace(str(path.parent), "")[:400]


def _compiled(model: Any, threads: int) -> Any:
    core = ov.Core()
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # replicas share the machine's cores
    }
    try:
        return core.compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise Invalid(f"OpenVINO cannot run the model: {reason(error, Path('model.xml'))}") from error


def _spec(port: Any) -> TensorSpec:
    kind, name = port.get_element_type().get_type_name(), port.get_any_name()
    if kind not in _DATATYPES:
        raise Invalid(f"'{name}' is a tensor of {kind}; expected one of {', '.join(sorted(_DATATYPES.values()))}.")
    dims = port.get_partial_shape()
    if dims.rank.is_dynamic:
        return TensorSpec(name, _DATATYPES[kind], None)
    return TensorSpec(name, _DATATYPES[kind], tuple(-1 if dim.is_dynamic else dim.get_length() for dim in dims))
