from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from tiny_models import simple

from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.torch import TorchEngine, build_module, fill, in_order, load_class, read_weights
from modelyard.errors import Internal, Invalid, Unsafe


def test_answers_as_the_module_does(tmp_path: Path) -> None:
    card = simple(tmp_path)
    module = load_class(tmp_path / "model.py", "SimpleModel")()
    module.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    x = torch.randn(5, 10)
    answer = TorchEngine(tmp_path, card).forward({"x": x.numpy()})
    np.testing.assert_array_equal(answer["output"], module(x).detach().numpy())


def test_safetensors_serve_as_well(tmp_path: Path) -> None:
    card = simple(tmp_path)
    save_file(torch.load(tmp_path / "model.pth", weights_only=True), tmp_path / "model.safetensors")
    same = TorchEngine(tmp_path, card.changed(files={"weights": "model.safetensors"}))
    x = np.ones((2, 10), np.float32)
    np.testing.assert_array_equal(same.forward({"x": x})["output"], TorchEngine(tmp_path, card).forward({"x": x})["output"])


def test_a_shape_that_only_the_module_can_refuse_is_the_callers_fault(tmp_path: Path) -> None:
    card = simple(tmp_path)
    wrong = {"x": np.ones((2, 3), np.float32)}
    with pytest.raises(RuntimeError):
        TorchEngine(tmp_path, card).forward(wrong)
    unknown = card.changed(inputs=(TensorCard(name="x", datatype="FP32"),))
    with pytest.raises(Invalid, match=r"does not take x \[2, 3\]: mat1 and mat2 shapes cannot be multiplied"):
        TorchEngine(tmp_path, unknown).forward(wrong)


def test_the_batch_is_left_alone_and_may_be_read_only(tmp_path: Path) -> None:
    card = simple(tmp_path)
    source = (tmp_path / "model.py").read_text().replace("return self", "x.mul_(0)\n        return self")
    (tmp_path / "model.py").write_text(source)
    x = np.ones((2, 10), np.float32)
    x.setflags(write=False)
    TorchEngine(tmp_path, card).forward({"x": x})
    assert (x == 1).all()


def test_an_answer_is_not_what_the_module_writes_into_again(tmp_path: Path) -> None:
    card = simple(tmp_path)
    source = (tmp_path / "model.py").read_text().replace("return self.second(torch.relu(self.first(x)))", "return self.out(x)")
    source += "\n    def out(self, x):\n        self.kept = vars(self).get('kept', torch.empty(9, 1))\n"
    source += "        torch.sum(x, 1, keepdim=True, out=self.kept[: len(x)])\n        return self.kept[: len(x)]\n"
    (tmp_path / "model.py").write_text(source)
    engine = TorchEngine(tmp_path, card)
    first = engine.forward({"x": np.ones((2, 10), np.float32)})["output"]
    engine.forward({"x": np.zeros((3, 10), np.float32)})
    assert first.tolist() == [[10.0], [10.0]]


def test_loading_leaves_nothing_in_the_artefact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = simple(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*")}
    TorchEngine(tmp_path, card)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*")} == before


def test_two_versions_of_a_file_do_not_mix(tmp_path: Path) -> None:
    for name, value in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}").mkdir()
        (tmp_path / name / "model.py").write_text(f"from torch import nn\nclass M(nn.Module):\n    value = {value}\n")
    one, two = (load_class(tmp_path / name / "model.py", "M") for name in ("one", "two"))
    assert (one.value, two.value) == (1, 2)


def test_weights_of_another_module_are_refused_by_name(tmp_path: Path) -> None:
    card = simple(tmp_path)
    weights = torch.load(tmp_path / "model.pth", weights_only=True)
    weights["third.bias"] = weights.pop("second.bias")
    weights["first.bias"] = torch.zeros(7)
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(
        Invalid, match=r"missing: second\.bias; unexpected: third\.bias; of another shape: first\.bias \(7,\) for \(20,\)"
    ):
        TorchEngine(tmp_path, card)


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5)
        self.head.weight = self.embedding.weight


def test_of_tied_weights_one_is_enough(tmp_path: Path) -> None:
    saved, loaded = Tied(), Tied()
    save_model(saved, str(tmp_path / "m.safetensors"))
    weights = read_weights(tmp_path / "m.safetensors")
    assert "embedding.weight" not in weights or "head.weight" not in weights
    fill(loaded, weights)
    assert loaded.head.weight is loaded.embedding.weight
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in loaded.state_dict().items())
    for name in weights:
        with pytest.raises(Invalid, match=f"missing: .*{name}"):
            fill(loaded, {other: value for other, value in weights.items() if other != name})


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("class SimpleModel: pass", "defines no torch.nn.Module 'SimpleModel'; it defines none"),
        ("from torch import nn\nclass Simple(nn.Module): pass", "it defines Simple"),
        ("def", "cannot be run: "),
        ("import no_such_library", "no_such_library"),
    ],
)
def test_source_without_the_class_is_refused(tmp_path: Path, source: str, said: str) -> None:
    card = simple(tmp_path)
    (tmp_path / "model.py").write_text(source)
    with pytest.raises(Invalid, match=said):
        TorchEngine(tmp_path, card)


def test_wrong_constructor_arguments_are_named(tmp_path: Path) -> None:
    card = simple(tmp_path)
    assert card.module is not None
    with pytest.raises(Invalid, match="width"):
        build_module(tmp_path, card.module.changed(arguments={"width": 3}))


def test_a_whole_pickled_model_is_refused_as_more_than_weights(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "m.pth")
    with pytest.raises(Unsafe, match=r"state_dict\(\)"):
        read_weights(tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("content", "said"), [([torch.ones(1)], "holds list"), ({"state_dict": {"w": torch.ones(1)}}, "a dict with state_dict")]
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(Invalid, match=said):
        read_weights(tmp_path / "m.pth")


@pytest.mark.parametrize("name", ["m.safetensors", "m.pth"])
@pytest.mark.parametrize("content", [b"", b"nonsense", bytes(8) + b"{}", b"\xff" * 64])
def test_nonsense_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Invalid):
        read_weights(tmp_path / name)


def test_results_are_mapped_in_order_or_by_name() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    assert in_order(a, ["y"]) == [a]
    assert in_order((a, b), ["p", "q"]) == [a, b]
    assert in_order({"q": b, "p": a}, ["p", "q"]) == [a, b]
    assert in_order({"u": a, "v": b}, ["p", "q"]) == [a, b]
    assert in_order((a, None, (a, a), b), ["p", "q"]) == [a, b]
    assert in_order({"u": None, "v": b}, ["q"]) == [b]
    with pytest.raises(Internal, match=r"gives 2 outputs; model\.json states 1: y"):
        in_order((a, b), ["y"])


def test_a_version_without_a_module_is_not_for_torch(tmp_path: Path) -> None:
    tensor = TensorCard(name="x", datatype="FP32")
    card = ModelCard(task="feature-extraction", engines=("onnx",), files={"onnx": "m"}, inputs=(tensor,), outputs=(tensor,))
    with pytest.raises(Invalid, match="no module and weights"):
        TorchEngine(tmp_path, card)
