"""Models small enough to be made anew in every test, by hand: a torch artefact as training writes it, and ONNX graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from modelyard.engines.base import ModelCard, ModuleCard, TensorCard
from modelyard.engines.torch import load_class

SIMPLE = """\
import torch
from torch import nn


class SimpleModel(nn.Module):
    def __init__(self, hidden: int = 20):
        super().__init__()
        self.first = nn.Linear(10, hidden)
        self.second = nn.Linear(hidden, 1)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))
"""
MATRIX = np.arange(6, dtype=np.float32).reshape(3, 2)


def simple(folder: Path, seed: int = 0, weights: str = "model.pth") -> ModelCard:
    """`folder` becomes a torch artefact of SimpleModel, x FP32[-1,10] → output FP32[-1,1]."""
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(SIMPLE)
    torch.manual_seed(seed)
    torch.save(load_class(folder / "model.py", "SimpleModel")().state_dict(), folder / weights)
    card = ModelCard(
        task="tabular-regression",
        engines=("torch",),
        files={"weights": weights},
        module=ModuleCard(file="model.py", name="SimpleModel"),
        inputs=(TensorCard(name="x", datatype="FP32", shape=(-1, 10)),),
        outputs=(TensorCard(name="output", datatype="FP32", shape=(-1, 1)),),
    )
    card.save(folder)
    return card


def matmul(path: Path, *, batch: int | str = "batch", external: str | None = None) -> ModelCard:
    """`path` becomes an ONNX graph y[batch, 2] = x[batch, 3] @ MATRIX, its matrix in the file `external` if given."""
    weights = numpy_helper.from_array(MATRIX, "w")
    if external is not None:
        onnx.external_data_helper.set_external_data(weights, external, offset=0, length=MATRIX.nbytes)
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2])],
        [weights],
    )
    save(graph, path)
    size = batch if isinstance(batch, int) else -1
    return ModelCard(
        task="tabular-regression",
        engines=("onnx",),
        files={"onnx": path.name},
        inputs=(TensorCard(name="x", datatype="FP32", shape=(size, 3)),),
        outputs=(TensorCard(name="y", datatype="FP32", shape=(size, 2)),),
    )


def phrases(folder: Path, known: Mapping[str, str]) -> Path:
    """An ONNX version that answers a text by the one that `known` has for it, and by none where it has none."""
    folder.mkdir()
    look = helper.make_node(
        "LabelEncoder",
        ["text"],
        ["said"],
        domain="ai.onnx.ml",
        keys_strings=list(known),
        values_strings=list(known.values()),
        default_string="",
    )
    inputs, outputs = (helper.make_tensor_value_info(name, TensorProto.STRING, ["n"]) for name in ("text", "said"))
    graph = helper.make_graph([look], "phrases", [inputs], [outputs])
    save(graph, folder / "model.onnx", helper.make_opsetid("ai.onnx.ml", 4))
    ModelCard(
        task="translation",
        engines=("onnx",),
        files={"onnx": "model.onnx"},
        inputs=(TensorCard(name="text", datatype="BYTES", shape=(-1,)),),
        outputs=(TensorCard(name="said", datatype="BYTES", shape=(-1,)),),
    ).save(folder)
    return folder


def save(graph: onnx.GraphProto, path: Path, *more: onnx.OperatorSetIdProto) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), *more], ir_version=10)
    path.write_bytes(model.SerializeToString())
