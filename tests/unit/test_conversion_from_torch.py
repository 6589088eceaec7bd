from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import SIMPLE, simple
from torch import nn

from modelyard.conversion.config import ImportModelConfig
from modelyard.conversion.from_torch import accepts, read, required
from modelyard.engines.base import ENGINES, ModelCard, TensorCard
from modelyard.errors import Invalid, Unsafe
from modelyard.kinds import FolderContext

MODULE = "model.py:SimpleModel"


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    simple(tmp_path / "in")
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    return tmp_path / "in"


def taken(upload: Path, **config: object) -> tuple[ModelCard, dict]:
    context = FolderContext(upload.parent / "work")
    return read(ImportModelConfig(**config), upload / "model.pth", upload, upload.parent / "out", context)


def answers(upload: Path, card: ModelCard, engine: str, x: np.ndarray) -> np.ndarray:
    return ENGINES.get(engine)(upload.parent / "out", card).forward({"x": x})["output"]


def test_without_stated_inputs_it_serves_on_torch(upload: Path) -> None:
    card, facts = taken(upload, module=MODULE)
    assert card.engines == ("torch",)
    assert card.inputs == (TensorCard(name="x", datatype="FP32"),)
    assert "unknown" in facts["notes"][0]
    assert "never run" in facts["notes"][0]
    assert answers(upload, card, "torch", np.ones((3, 10), np.float32)).shape == (3, 1)


def test_with_stated_inputs_it_serves_as_onnx_with_the_same_answers(upload: Path) -> None:
    card, facts = taken(upload, module=MODULE, inputs=("x:FP32[-1,10]",))
    assert card.engines == ("onnx", "torch")
    assert card.outputs[0].shape == (-1, 1)
    assert facts["verification"]["ok"]
    x = np.random.default_rng(0).standard_normal((5, 10)).astype(np.float32)
    np.testing.assert_allclose(answers(upload, card, "onnx", x), answers(upload, card, "torch", x), atol=1e-5)


def test_arguments_build_the_module(upload: Path) -> None:
    with pytest.raises(Invalid, match="another shape"):
        taken(upload, module=MODULE, arguments={"hidden": 7})


def test_what_cannot_be_exported_serves_on_torch_and_says_why(upload: Path) -> None:
    source = SIMPLE.replace("return self", "if x.sum() > 1e9:\n            return x[:, :1]\n        return self")
    (upload / "model.py").write_text(source)
    card, facts = taken(upload, module=MODULE, inputs=("x:FP32[-1,10]",))
    assert card.engines == ("torch",)
    assert facts["notes"][0].startswith("It runs on PyTorch alone: SimpleModel cannot be exported")


def given(upload: Path, forward: str) -> None:
    (upload / "model.py").write_text(SIMPLE.replace("return self.second(torch.relu(self.first(x)))", forward))


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        ("return self.second(torch.relu(self.first(x))) * (1 if x.shape[0] > 8 else 2)", "would hold for 0 to 8 alone"),
        ("return torch.log(-1 - x * x).sum(1)", "'output' has no finite number"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_proved_serves_on_torch(upload: Path, forward: str, said: str) -> None:
    given(upload, forward)
    card, facts = taken(upload, module=MODULE, inputs=("x:FP32[-1,10]",))
    assert card.engines == ("torch",)
    assert said in facts["notes"][0]


def test_a_module_of_positive_numbers_is_proved_with_them(upload: Path) -> None:
    given(upload, "return torch.log(x).sum(1)")
    card, facts = taken(upload, module=MODULE, inputs=("x:FP32[-1,10]",))
    assert (card.engines, facts["verification"]["batches"]) == (("onnx", "torch"), [1, 2, 7])
    assert facts["verification"]["max_abs"] > 0


@pytest.mark.parametrize("rows", [1, 4])
def test_a_fixed_batch_stays_what_was_stated(upload: Path, rows: int) -> None:
    card, facts = taken(upload, module=MODULE, inputs=(f"x:FP32[{rows},10]",))
    assert (card.engines, card.inputs[0].shape) == (("onnx", "torch"), (rows, 10))
    assert (card.outputs[0].shape, facts["verification"]["batches"]) == ((rows, 1), [rows])


@pytest.mark.parametrize(
    ("forward", "names"),
    [
        ("return self.second(self.first(x)), None", ("output_0",)),
        ("return None, self.second(self.first(x))", ("output_1",)),
        ("y = self.first(x)\n        return (y[None], y[None]), self.second(y)", ("output_1",)),
        ("y = self.first(x)\n        return {'state': (y[None], None), 'answer': self.second(y)}", ("answer",)),
    ],
)
def test_what_is_no_tensor_is_left_out_of_the_answer(upload: Path, forward: str, names: tuple[str, ...]) -> None:
    given(upload, forward)
    card, _ = taken(upload, module=MODULE, inputs=("x:FP32[-1,10]",))
    assert card.engines == ("onnx", "torch")
    assert tuple(spec.name for spec in card.outputs) == names
    x = np.random.default_rng(0).standard_normal((5, 10)).astype(np.float32)
    one, other = (ENGINES.get(engine)(upload.parent / "out", card).forward({"x": x}) for engine in card.engines)
    np.testing.assert_allclose(one[names[0]], other[names[0]], atol=1e-5)


def test_a_module_that_mixes_rows_is_refused(upload: Path) -> None:
    given(upload, "return self.second(torch.relu(self.first(x))).softmax(0)")
    with pytest.raises(Invalid, match="follows from the rows beside it"):
        taken(upload, module=MODULE, inputs=("x:FP32[-1,10]",))


def test_inputs_it_does_not_run_on_are_refused(upload: Path) -> None:
    with pytest.raises(Invalid, match=r"does not run on inputs of the shapes it states: mat1 and mat2"):
        taken(upload, module=MODULE, inputs=("x:FP32[-1,11]",))
    with pytest.raises(Invalid, match="none of the sizes tried"):
        taken(upload, module=MODULE, inputs=("x:FP32[-1,-1]",))


def test_weights_are_judged_before_the_source_runs(upload: Path) -> None:
    class Canary:
        def __reduce__(self):
            return (exec, (f"open({str(upload / 'canary')!r}, 'w').close()",))

    torch.save({"w": Canary()}, upload / "model.pth")
    (upload / "model.py").write_text(f"open({str(upload / 'ran')!r}, 'w').close()\n{SIMPLE}")
    with pytest.raises(Unsafe, match="refused"):
        taken(upload, module=MODULE)
    assert not (upload / "canary").exists()
    assert not (upload / "ran").exists()


def test_weights_alone_are_not_enough(upload: Path) -> None:
    with pytest.raises(Invalid, match=r"say whose with module, for example model\.py:SimpleModel"):
        taken(upload)
    with pytest.raises(Invalid, match=r"no file 'other\.py'"):
        taken(upload, module="other.py:SimpleModel")


class Two(nn.Module):
    def forward(self, ids, mask, scale=None):
        return ids


class Any(nn.Module):
    def forward(self, *tensors):
        return tensors


def test_forward_names_the_inputs() -> None:
    assert required(Two()) == ("ids", "mask")
    with pytest.raises(Invalid, match="does not name its parameters"):
        required(Any())


def test_stated_inputs_are_forwards_first_parameters() -> None:
    accepts(Two(), ("ids", "mask"))
    accepts(Two(), ("ids", "mask", "scale"))
    accepts(Any(), ("whatever",))
    for wrong in (("ids",), ("mask", "ids"), ("x",), ("ids", "mask", "scale", "more")):
        with pytest.raises(Invalid, match="forward takes ids, mask, scale"):
            accepts(Two(), wrong)
