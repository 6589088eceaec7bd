"""Every `BatchEngine`: the real ones over the same matrix, and the published double."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from modelyard.conversion.base import CONVERTERS
from modelyard.engines.base import ENGINES, BatchEngine, ModelCard, ModuleCard, TensorCard
from modelyard.testing import FAKE_CARD, FakeEngine

INPUT = TensorCard(name="x", datatype="FP32", shape=(-1, 2))
OUTPUT = TensorCard(name="y", datatype="FP32", shape=(-1, 1))


def matrix(folder: Path) -> ModelCard:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.ones((2, 1), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "m.onnx")
    return ModelCard(task="tabular-regression", engines=("onnx",), files={"onnx": "m.onnx"}, inputs=(INPUT,), outputs=(OUTPUT,))


def onnx_engine(folder: Path) -> BatchEngine:
    return ENGINES.get("onnx")(folder, matrix(folder))  # type: ignore[return-value]


def openvino_engine(folder: Path) -> BatchEngine:
    card = CONVERTERS.get("openvino").convert(folder, matrix(folder), folder, {})
    return ENGINES.get("openvino")(folder, card)  # type: ignore[return-value]


def litert_engine(folder: Path) -> BatchEngine:
    card = CONVERTERS.get("litert").convert(folder, module(folder), folder, {"x": np.ones((1, 2), np.float32)})
    return ENGINES.get("litert")(folder, card)  # type: ignore[return-value]


def pt2_engine(folder: Path) -> BatchEngine:
    card = CONVERTERS.get("pt2").convert(folder, module(folder), folder, {"x": np.ones((1, 2), np.float32)})
    return ENGINES.get("pt2")(folder, card)  # type: ignore[return-value]


def torch_engine(folder: Path) -> BatchEngine:
    return ENGINES.get("torch")(folder, module(folder))  # type: ignore[return-value]


def module(folder: Path) -> ModelCard:
    (folder / "model.py").write_text(
        "from torch import nn\n\n\nclass Sum(nn.Linear):\n    def __init__(self):\n        super().__init__(2, 1, bias=False)\n"
    )
    torch.save({"weight": torch.ones(1, 2)}, folder / "model.pth")
    return ModelCard(
        task="tabular-regression",
        engines=("torch",),
        files={"weights": "model.pth"},
        module=ModuleCard(file="model.py", name="Sum"),
        inputs=(INPUT,),
        outputs=(OUTPUT,),
    )


def fake_engine(folder: Path) -> BatchEngine:
    return FakeEngine(folder, FAKE_CARD)


@pytest.fixture(params=[litert_engine, onnx_engine, openvino_engine, pt2_engine, torch_engine, fake_engine])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> BatchEngine:
    make: Callable[[Path], BatchEngine] = request.param
    return make(tmp_path)


def test_the_signature_is_the_cards(engine: BatchEngine) -> None:
    assert engine.signature.inputs == (INPUT.spec(),)
    assert engine.signature.outputs == (OUTPUT.spec(),)


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_rows_in_rows_out_in_order(engine: BatchEngine, rows: int) -> None:
    x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    (name, y), *rest = engine.forward({"x": x}).items()
    assert (name, rest) == ("y", [])
    assert (y.shape, y.dtype) == ((rows, 1), np.float32)
    np.testing.assert_allclose(y[:, 0], x.sum(axis=1), rtol=1e-6)


def test_a_row_s_answer_does_not_depend_on_its_batch(engine: BatchEngine) -> None:
    x = np.random.default_rng(0).standard_normal((9, 2)).astype(np.float32)
    together = engine.forward({"x": x})["y"]
    alone = np.concatenate([engine.forward({"x": row[None]})["y"] for row in x])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_the_batch_may_be_read_only_and_is_not_changed(engine: BatchEngine) -> None:
    x = np.frombuffer(np.array([[1, 2]], np.float32).tobytes(), np.float32).reshape(1, 2)
    assert engine.forward({"x": x})["y"].item() == 3
    assert x.tolist() == [[1, 2]]


def test_answers_are_not_overwritten_by_the_next_call(engine: BatchEngine) -> None:
    first = engine.forward({"x": np.array([[1, 2]], np.float32)})["y"]
    engine.forward({"x": np.array([[5, 6]], np.float32)})
    assert first.item() == 3


def test_close_ends_it(engine: BatchEngine) -> None:
    engine.close()


def test_the_double_fails_on_demand_and_notes_its_batches() -> None:
    fake = FakeEngine(failure=ValueError("as asked"))
    with pytest.raises(ValueError, match="as asked"):
        fake.forward({"x": np.ones((3, 2), np.float32)})
    assert fake.batches == [3]
    fake.close()
    assert fake.closed
