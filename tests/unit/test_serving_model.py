"""A model as a replica loads it: in the threads that it was given, with a transform that goes with it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from tiny_models import matmul, save

from modelyard.data.transforms import build
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.onnx import OnnxEngine
from modelyard.errors import Internal, Invalid
from modelyard.serving.batching import Waiting, compute
from modelyard.serving.model import Model, Spec, load


@pytest.mark.parametrize("threads", [1, 3])
def test_an_onnx_graph_is_computed_in_as_many_threads_as_were_given_which_never_spin(tmp_path: Path, threads: int) -> None:
    matmul(tmp_path / "m.onnx").save(tmp_path)
    model = load(Spec("r", "onnx", str(tmp_path), "", threads=threads))
    options = model.engine._session.get_session_options()  # type: ignore[attr-defined]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


MODULE = "from torch import nn\n\n\nclass Model(nn.Linear):\n    pass\n"


def test_a_module_is_computed_in_as_many_threads_as_were_given(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODULE)
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "w.pth")
    tensors = [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}], [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]
    module = {"file": "model.py", "name": "Model", "arguments": {"in_features": 3, "out_features": 2}}
    card = {"task": "tabular-regression", "engines": ["torch"], "files": {"weights": "w.pth"}, "module": module}
    msgspec.convert({**card, "inputs": tensors[0], "outputs": tensors[1]}, type=ModelCard).save(tmp_path)
    before = torch.get_num_threads()
    try:
        load(Spec("r", "torch", str(tmp_path), "", threads=before + 2))
        assert torch.get_num_threads() == before + 2
    finally:
        torch.set_num_threads(before)


def test_a_model_that_does_not_answer_a_logit_a_label_fails_by_its_own_fault(tmp_path: Path) -> None:
    """How many it gives is open in the graph, so that nothing shows it before."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["pixels"], ["logits"])],
        "open",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 1, "h", "w"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "m"])],
    )
    save(graph, tmp_path / "m.onnx")
    transform = {"name": "image", "height": 2, "width": 2, "channels": 1, "labels": ["a", "b", "c"]}
    card = ModelCard(
        task="image-classification",
        engines=("onnx",),
        files={"onnx": "m.onnx"},
        inputs=(TensorCard(name="pixels", datatype="FP32", shape=(-1, 1, -1, -1)),),
        outputs=(TensorCard(name="logits", datatype="FP32", shape=(-1, -1)),),
        transform=transform,
    )
    model = Model(OnnxEngine(tmp_path, card), build(transform), card.task, "modelyard_onnx")
    item = Waiting({"pixels": np.ones((1, 1, 2, 2), np.float32)}, 1, 0.0, {})
    [answer], failed = compute(model.forward, [item])
    assert isinstance(answer, Internal)
    assert "[1, 4] where [n, 3]" in answer.message
    assert failed == 1


def test_a_transform_that_the_engines_tensors_do_not_go_with_is_refused_at_load(tmp_path: Path) -> None:
    engine = OnnxEngine(tmp_path, matmul(tmp_path / "m.onnx"))
    for columns, said in (("ab", r"makes x:FP32\[-1, 2\]; the model takes x:FP32\[-1, 3\]"), ("abc", "for each of 1 labels")):
        transform = {"name": "columns", "columns": [{"name": name} for name in columns], "labels": ["a"], "output": "y"}
        with pytest.raises(Invalid, match=said):
            Model(engine, build(transform), "tabular-classification", "modelyard_onnx")
