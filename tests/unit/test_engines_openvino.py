"""What the engine `openvino` refuses at load, and what it answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelyard.conversion.base import CONVERTERS
from modelyard.engines.base import ENGINES, ModelCard, TensorCard
from modelyard.engines.openvino import OpenVinoEngine, read
from modelyard.errors import Invalid, NotFound, Unsafe

X = TensorCard(name="x", datatype="FP32", shape=(-1, 3))
Y = TensorCard(name="y", datatype="FP32", shape=(-1, 3))
N = TensorCard(name="n", datatype="INT64", shape=(-1,))
WHERE = np.random.default_rng(0)


def card(**fields) -> ModelCard:
    given = {"task": "tabular-regression", "engines": ("onnx",), "files": {"onnx": "m.onnx"}, "inputs": (X,), "outputs": (Y, N)}
    return ModelCard(**{**given, **fields})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """y = tanh(x w), and the place of each row's largest."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["z"]),
            helper.make_node("Tanh", ["z"], ["y"]),
            helper.make_node("ArgMax", ["y"], ["n"], axis=1, keepdims=0),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3]),
            helper.make_tensor_value_info("n", TensorProto.INT64, ["rows"]),
        ],
        [numpy_helper.from_array(WHERE.normal(size=(3, 3)).astype(np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    return tmp_path


@pytest.fixture
def made(folder: Path) -> ModelCard:
    return CONVERTERS.get("openvino").convert(folder, card(), folder, {})


def test_it_answers_as_onnxruntime_does_and_keeps_what_it_answered_before(folder, made):
    ours, theirs = OpenVinoEngine(folder, made, threads=2), ENGINES.get("onnx")(folder, card())
    x = WHERE.normal(size=(5, 3)).astype(np.float32)
    first = ours.forward({"x": x[::-1]})  # not in one piece of memory
    kept = {name: array.copy() for name, array in first.items()}
    assert set(first) == {"y", "n"}
    for rows in (x, x[:1], x[:0]):
        given, wanted = ours.forward({"x": rows}), theirs.forward({"x": rows})
        for name, array in wanted.items():
            np.testing.assert_allclose(given[name], array, atol=1e-6)
            assert given[name].dtype == array.dtype
    for name, array in kept.items():
        np.testing.assert_array_equal(first[name], array)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"inputs": (TensorCard(name="z", datatype="FP32", shape=(-1, 3)),)}, "states the input z:FP32"),
        ({"inputs": (TensorCard(name="x", datatype="FP64", shape=(-1, 3)),)}, "states the input x:FP64"),
        ({"inputs": (TensorCard(name="x", datatype="FP32", shape=(-1, 4)),)}, r"graph's inputs are x:FP32\[-1, 3\]"),
        ({"outputs": (TensorCard(name="n", datatype="INT32", shape=(-1,)),)}, "states the output n:INT32"),
        ({"files": {"onnx": "m.onnx"}}, r"files\.openvino"),
    ],
)
def test_a_card_that_is_wrong_is_refused_before_the_first_call(folder, made, fields, said):
    with pytest.raises(Invalid, match=said):
        OpenVinoEngine(folder, made.changed(**fields))


@pytest.mark.parametrize("text", ["", "<net", "<html></html>", '<?xml version="1.0"?><net name="g" version="11"></net>'])
def test_what_is_no_ir_is_refused_in_a_line(folder, made, text):
    (folder / "model.xml").write_text(text)
    with pytest.raises(Invalid) as caught:
        OpenVinoEngine(folder, made)
    assert str(folder) not in caught.value.message
    assert "\n" not in caught.value.message


def test_weights_that_are_missing_or_short_are_refused(folder, made):
    (folder / "model.bin").write_bytes((folder / "model.bin").read_bytes()[:5])
    with pytest.raises(Invalid):
        OpenVinoEngine(folder, made)
    (folder / "model.bin").unlink()
    with pytest.raises((Invalid, NotFound, Unsafe)):
        OpenVinoEngine(folder, made)


def test_an_operator_it_lacks_is_named(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Whirl", ["x"], ["y"], name="encoder/whirl", domain="com.example")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 3])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(Invalid, match="Whirl"):
        read(tmp_path / "m.onnx")
