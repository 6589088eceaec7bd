"""Programs of torch.export: what cannot be one is told in the user's words, and what is written loads anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import SIMPLE, matmul, simple

from modelyard.conversion.base import verify
from modelyard.conversion.pt2 import CONVERTER, FILE
from modelyard.conversion.readme import write as write_readme
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.pt2 import Pt2Engine
from modelyard.engines.torch import TorchEngine
from modelyard.errors import Invalid

SAMPLES = {"x": np.random.default_rng(0).standard_normal((9, 10)).astype(np.float32)}
FORWARD = "return self.second(torch.relu(self.first(x)))"


def converted(folder: Path, forward: str = FORWARD, more: str = "") -> tuple[ModelCard, ModelCard]:
    """Of SimpleModel with another forward: its card, and that of the program in `folder`/out."""
    card = simple(folder / "version")
    (folder / "version" / "model.py").write_text(SIMPLE.replace(FORWARD, forward) + more)
    (folder / "out").mkdir()
    return card, CONVERTER.convert(folder / "version", card, folder / "out", SAMPLES)


def test_it_is_verified_and_loads_without_us(tmp_path: Path) -> None:
    card, made = converted(tmp_path)
    assert (made.engines, made.files, made.module) == (("pt2",), {"pt2": FILE}, None)
    reference = TorchEngine(tmp_path / "version", card)
    found = verify(reference, Pt2Engine(tmp_path / "out", made), SAMPLES, keep=tmp_path)
    assert (found.ok, found.batches) == (True, (1, 2, 7, 9))
    x = torch.from_numpy(SAMPLES["x"])
    given = torch.export.load(tmp_path / "out" / FILE).module()({"x": x})
    np.testing.assert_allclose(given["output"].detach(), reference.forward(SAMPLES)["output"], atol=1e-6)


def test_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    card = simple(tmp_path / "version").changed(inputs=(TensorCard(name="x", datatype="FP32", shape=(4, 10)),))
    (tmp_path / "out").mkdir()
    made = CONVERTER.convert(tmp_path / "version", card, tmp_path / "out", SAMPLES)
    assert made.inputs[0].shape == (4, 10)


def test_the_code_by_hand_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, made = converted(tmp_path)
    write_readme(tmp_path / "out", made, "simple", "")
    monkeypatch.chdir(tmp_path / "out")
    names = {"x": torch.ones(2, 10)}
    exec((tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0], names)
    assert names["outputs"]["output"].shape == (2, 1)


INNER = """

class Inner(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x
"""
DECIDES = "return self.second(Inner()(self.first(x)))"


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        ("return x[:, :1] if x.sum() > 0 else -x[:, :1]", r"forward decides by .*\(model\.py:12, `return x\[:, :1\] if .*`\)"),
        ("return x[:, : int(x.max())]", r"decides by the values of its input \(model\.py:12"),
        (DECIDES, r"decides by .* \(model\.py:17, `if x\.sum\(\) > 0:`\)"),
        (
            "return self.second(torch.relu(self.first(x))).reshape(3, 1)",
            "dim 0 of input 'x' is open, but forward holds it at 3",
        ),
        ("return self.second(self.first(x)) * (1 if x.shape[0] > 2 else 2)", "'x' takes at least 3 rows alone"),
        ("return x.numpy()", r"\.numpy\(\) is not supported .*\(model\.py:12, `return x\.numpy\(\)`\)"),
        ("self.first.bias.add_(1)\n        " + FORWARD, r"writes into its own first\.bias"),
        ("return torch.cond(x.sum() > 0, lambda x: x[:, :1] + 1, lambda x: x[:, 1:2] - 1, (x,))", "graph inside the graph"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_exported_is_refused_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], forward: str, said: str
) -> None:
    with pytest.raises(Invalid, match=said) as caught:
        converted(tmp_path, forward, INNER)
    assert len(caught.value.message) < 600
    assert "\n" not in caught.value.message
    assert "".join(capfd.readouterr()) == ""


def test_the_layer_is_named(tmp_path: Path) -> None:
    card = simple(tmp_path / "version")
    source = SIMPLE.replace("self.second =", "self.inner = nn.ModuleList([Inner()])\n        self.second =")
    source = source.replace("torch.relu(self.first(x))", "self.inner[0](self.first(x))")
    (tmp_path / "version" / "model.py").write_text(source + INNER)
    with pytest.raises(Invalid, match=r"`if x\.sum\(\) > 0:`, in layer 'inner\.0' \(Inner\)\); use torch\.where"):
        CONVERTER.convert(tmp_path / "version", card, tmp_path, SAMPLES)


def test_a_graph_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="made of a PyTorch module"):
        CONVERTER.convert(tmp_path, matmul(tmp_path / "m.onnx"), tmp_path, SAMPLES)
