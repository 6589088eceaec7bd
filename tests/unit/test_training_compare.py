"""Weights side by side: bit for bit, by how much, and what else was not the same."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modelyard.engines.base import ModelCard, TensorCard
from modelyard.errors import Invalid
from modelyard.training.compare import Difference, compare, compare_folders, differing

ONES = torch.ones(2, 3)


def test_equal_weights_have_no_difference() -> None:
    nan = torch.tensor([float("nan")])
    assert compare({"a": ONES, "n": nan}, {"a": ONES.clone(), "n": nan.clone()}) == []


def test_the_largest_difference_of_each_tensor_is_told() -> None:
    other = ONES.clone()
    other[1, 2] += 0.25
    assert compare({"a": ONES, "b": ONES}, {"a": other, "b": ONES}) == [Difference("a", 0.25)]


def test_zero_is_not_minus_zero() -> None:
    assert compare({"a": torch.zeros(1)}, {"a": -torch.zeros(1)}) == [Difference("a", 0.0)]


def test_scalars_and_integers_are_compared_too() -> None:
    assert compare({"n": torch.tensor(3)}, {"n": torch.tensor(5)}) == [Difference("n", 2.0)]


def test_what_cannot_be_subtracted_is_told_in_words() -> None:
    found = compare({"a": ONES, "b": ONES, "c": ONES}, {"a": ONES.double(), "b": ONES.T, "d": ONES})
    assert [(one.tensor, one.largest, one.why) for one in found] == [
        ("a", None, "float32[2, 3] and float64[2, 3]"),
        ("b", None, "float32[2, 3] and float32[3, 2]"),
        ("c", None, "only in the first"),
        ("d", None, "only in the second"),
    ]


def test_records_differ_by_dotted_name() -> None:
    first = {"versions": {"torch": "2.0", "numpy": "1"}, "ranks": 2}
    second = {"versions": {"torch": "2.1", "numpy": "1"}, "ranks": 2, "mesh": "data=2"}
    assert differing(first, second) == [
        {"name": "versions.torch", "first": "2.0", "second": "2.1"},
        {"name": "mesh", "first": None, "second": "data=2"},
    ]


def model(folder: Path, weight: float, torch_version: str, files: dict[str, str] | None = None) -> Path:
    folder.mkdir()
    tensor = TensorCard(name="x", datatype="FP32", shape=(-1, 1))
    files = {"weights": "w.safetensors"} if files is None else files
    card = ModelCard(task="tabular-regression", engines=("torch",), files=files, inputs=(tensor,), outputs=(tensor,))
    card.save(folder)
    save_file({"w": torch.tensor([weight])}, folder / "w.safetensors")
    (folder / "training.json").write_text(json.dumps({"versions": {"torch": torch_version}, "metrics": {"loss": weight}}))
    return folder


def test_folders_are_compared_whole(tmp_path: Path) -> None:
    first, second = model(tmp_path / "a", 1.0, "2.0"), model(tmp_path / "b", 1.5, "2.1")
    found = compare_folders(first, second)
    assert (found["identical"], found["tensors"], found["largest"]) == (False, 1, 0.5)
    assert found["differences"] == [{"tensor": "w", "largest": 0.5, "why": None}]
    assert found["environment"] == [{"name": "versions.torch", "first": "2.0", "second": "2.1"}]
    assert compare_folders(first, first)["identical"]


def test_a_model_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"no weights for torch to compare; its files are onnx"):
        compare_folders(model(tmp_path / "a", 1.0, "2", {"onnx": "m.onnx"}), tmp_path)
