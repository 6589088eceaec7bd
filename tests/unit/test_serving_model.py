"""A model as a replica loads it: in the threads that it was given."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from tiny_models import matmul

from modelyard.engines.base import ModelCard
from modelyard.serving.model import Spec, load


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
