from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import matmul, save

from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.onnx import OnnxEngine
from modelyard.errors import Invalid
from modelyard.optimisation.quantise import QUANTISERS

RANDOM = np.random.default_rng(0)


def network(path: Path, *, convolve: bool) -> tuple[ModelCard, dict[str, np.ndarray]]:
    """A layer large enough for eight bits to make it smaller, x → y FP32 [-1, 8, …]."""
    if convolve:
        node, shape = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]), ["n", 4, 6, 6]
        weights, out = RANDOM.standard_normal((8, 4, 3, 3)), ["n", 8, 6, 6]
    else:
        node, shape = helper.make_node("MatMul", ["x", "w"], ["y"]), ["n", 64]
        weights, out = RANDOM.standard_normal((64, 8)), ["n", 8]
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    save(graph, path)
    x, y = (TensorCard(name=name, datatype="FP32", shape=(-1, *dims[1:])) for name, dims in (("x", shape), ("y", out)))
    card = ModelCard(task="feature-extraction", engines=("onnx",), files={"onnx": path.name}, inputs=(x,), outputs=(y,))
    return card, {"x": RANDOM.standard_normal((50, *shape[1:])).astype(np.float32)}


@pytest.mark.parametrize("convolve", [True, False])
@pytest.mark.parametrize("name", QUANTISERS)
def test_eight_bits_answer_nearly_the_same(tmp_path: Path, name: str, convolve: bool) -> None:
    card, samples = network(tmp_path / "model.onnx", convolve=convolve)
    QUANTISERS[name](tmp_path / "model.onnx", tmp_path / "small.onnx", samples)
    wanted = OnnxEngine(tmp_path, card).forward(samples)["y"]
    given = OnnxEngine(tmp_path, card.model_copy(update={"files": {"onnx": "small.onnx"}})).forward(samples)["y"]
    assert 0 < np.abs(given - wanted).max() < 0.1 * np.abs(wanted).max()
    kinds = {initial.data_type for initial in onnx.load(tmp_path / "small.onnx").graph.initializer if len(initial.dims) > 1}
    assert kinds <= {TensorProto.INT8, TensorProto.UINT8}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "small.onnx"]


def test_ranges_come_from_the_calibration_rows(tmp_path: Path) -> None:
    card, samples = network(tmp_path / "model.onnx", convolve=False)
    QUANTISERS["static-int8"](tmp_path / "model.onnx", tmp_path / "small.onnx", {"x": samples["x"] / 100})
    given = OnnxEngine(tmp_path, card.model_copy(update={"files": {"onnx": "small.onnx"}})).forward(samples)["y"]
    assert np.abs(given).max() < 0.1 * np.abs(OnnxEngine(tmp_path, card).forward(samples)["y"]).max()


def test_static_weights_leave_a_bit_for_older_processors(tmp_path: Path) -> None:
    _, samples = network(tmp_path / "model.onnx", convolve=False)
    QUANTISERS["static-int8"](tmp_path / "model.onnx", tmp_path / "small.onnx", samples)
    initials = onnx.load(tmp_path / "small.onnx").graph.initializer
    (weights,) = (numpy_helper.to_array(i) for i in initials if i.data_type == TensorProto.INT8 and len(i.dims) == 2)
    assert np.abs(weights.astype(int)).max() <= 64


def test_failures_are_told_and_logging_is_as_it_was(tmp_path: Path) -> None:
    matmul(tmp_path / "model.onnx")
    with pytest.raises(Invalid, match="cannot quantise this model: Required inputs"):
        QUANTISERS["static-int8"](tmp_path / "model.onnx", tmp_path / "small.onnx", {"z": np.ones((1, 3), np.float32)})
    assert logging.root.manager.disable == logging.NOTSET
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
