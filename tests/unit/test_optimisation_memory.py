"""What a process of its own tells of the memory that a version takes: its weights are in it; what fails is no figure."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import matmul, save, simple

from modelyard.optimisation.memory import memory


def version(folder: Path, wide: int) -> Path:
    """y[n, wide] = x[n, 3] · ones, whose weights are of 12 · `wide` bytes."""
    folder.mkdir()
    card = matmul(folder / "model.onnx")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", wide])],
        [numpy_helper.from_array(np.ones((3, wide), np.float32), "w")],
    )
    save(graph, folder / "model.onnx")
    card.changed(outputs=(card.outputs[0].changed(shape=(-1, wide)),)).save(folder)
    return folder


def taken(folder: Path, work: Path, batch: object = None) -> float:
    rows = np.ones((32, 3), np.float32) if batch is None else batch
    return memory(folder, [{"x": rows[:1]}, {"x": rows}], work, lambda: None)  # type: ignore[index]


def test_weights_are_in_it_and_the_same_comes_to_the_same(tmp_path: Path) -> None:
    small, large = version(tmp_path / "small", 2), version(tmp_path / "large", 1 << 20)
    first, again, more = taken(small, tmp_path), taken(small, tmp_path), taken(large, tmp_path)
    assert 1 << 20 < first < 100 << 20
    assert abs(first - again) <= 2 << 20
    assert first % (1 << 16) == 0
    assert first + (12 << 20) <= more <= first + (400 << 20)  # and what it answers 32 rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "small"]


def test_what_cannot_be_run_has_no_figure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = version(tmp_path / "broken", 2)
    (folder / "model.onnx").write_bytes(b"nothing")
    assert math.isnan(taken(folder, tmp_path))
    assert "onnxruntime refuses 'model.onnx'" in capfd.readouterr().err  # which the job's log then has
    assert math.isnan(taken(version(tmp_path / "text", 2), tmp_path, np.array([[b"a"]] * 32, object)))
    simple(tmp_path / "dies")
    (tmp_path / "dies" / "model.py").write_text("import os\nos._exit(0)\n")
    assert math.isnan(memory(tmp_path / "dies", [{"x": np.ones((1, 10), np.float32)}], tmp_path, lambda: None))
