"""The models the benchmarks serve and train, made from a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TINY = ("x", 10, 20, 1)


def tiny(path: Path) -> Path:
    """The model 10 → 20 → 1 with ReLU as an ONNX file at `path`."""
    name, inputs, hidden, outputs = TINY
    generator = np.random.default_rng(0)
    weights = {
        "w1": generator.normal(size=(inputs, hidden)),
        "b1": generator.normal(size=hidden),
        "w2": generator.normal(size=(hidden, outputs)),
        "b2": generator.normal(size=outputs),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", [name, "w1", "b1"], ["a"]),
            helper.make_node("Relu", ["a"], ["h"]),
            helper.make_node("Gemm", ["h", "w2", "b2"], ["y"]),
        ],
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", outputs])],
        [numpy_helper.from_array(array.astype(np.float32), key) for key, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
