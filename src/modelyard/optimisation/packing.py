"""Weights in eight bits that are floats again when a graph is loaded: the file is a quarter as large, and the layers compute as
fast as in float, where a processor has no instructions for eight bits or a layer is too small to gain by them.

Each weight becomes `Cast(INT8) * scale`, which onnxruntime folds into a constant at load before it lays weights out for its
kernels. It does not fold `DequantizeLinear`, the standard's own word for it: such a layer would be slower at every call.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelyard.tensors import Array

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})  # operators that have weights
_LARGEST = 127


def pack(source: Path, target: Path, nodes: Collection[str], *, per_channel: bool) -> None:
    """Write `source` with the weights of `nodes` in eight bits: symmetric, with a scale for each output channel or one."""
    model = onnx.load(source)
    graph, added, packed = model.graph, [], set()
    weights = {initial.name: initial for initial in graph.initializer}
    for node in graph.node:
        name = next((name for name in node.input[:2] if name in weights), None)
        asked = node.name in nodes and node.op_type in LAYERS
        if not asked or name is None or name in packed or weights[name].data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(weights[name])
        whole, scale = _rounded(values, channel_axis(node, values.ndim) if per_channel else None)
        graph.initializer.remove(weights[name])
        graph.initializer.extend(
            [numpy_helper.from_array(whole, f"{name}_int8"), numpy_helper.from_array(scale, f"{name}_scale")]
        )
        added += [
            helper.make_node("Cast", [f"{name}_int8"], [f"{name}_whole"], f"{name}_cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}_whole", f"{name}_scale"], [name], f"{name}_mul"),
        ]
        packed.add(name)
    there = list(graph.node)
    del graph.node[:]
    graph.node.extend([*added, *there])
    target.write_bytes(model.SerializeToString(deterministic=True))


def channel_axis(node: Any, dims: int) -> int:
    """The axis of a layer's weight that counts its outputs."""
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) else 1
    return 0 if node.op_type == "Conv" else dims - 1


def _rounded(values: Array, axis: int | None) -> tuple[Array, Array]:
    """INT8 and FP32 scales that broadcast over it."""
    others = None if axis is None else tuple(at for at in range(values.ndim) if at != axis)
    largest = np.abs(values).max(axis=others, keepdims=True)
    scale = np.where(largest > 0, largest / _LARGEST, 1.0).astype(np.float32)
    return np.rint(values / scale).astype(np.int8), scale
