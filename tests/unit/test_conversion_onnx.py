from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import SIMPLE, simple

from modelyard.conversion.onnx import CONVERTER, FILE
from modelyard.engines.onnx import OnnxEngine
from modelyard.engines.torch import TorchEngine
from modelyard.errors import Invalid

SAMPLES = {"x": np.random.default_rng(0).standard_normal((1, 10)).astype(np.float32)}


def test_one_sample_is_enough_for_an_open_batch(tmp_path: Path) -> None:
    card = simple(tmp_path / "version")
    (tmp_path / "out").mkdir()
    made = CONVERTER.convert(tmp_path / "version", card, tmp_path / "out", SAMPLES)
    assert (made.engines, made.files, made.module) == (("onnx",), {"onnx": FILE}, None)
    x = np.random.default_rng(1).standard_normal((5, 10)).astype(np.float32)
    np.testing.assert_allclose(
        OnnxEngine(tmp_path / "out", made).forward({"x": x})["output"],
        TorchEngine(tmp_path / "version", card).forward({"x": x})["output"],
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "forward",
    [
        "return x if x.sum() > 0 else -x",  # decides by data
        "return self.second(torch.relu(self.first(x))).reshape(3, 1)",  # knows its batch
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(tmp_path: Path, forward: str) -> None:
    card = simple(tmp_path / "version")
    source = SIMPLE.replace("return self.second(torch.relu(self.first(x)))", forward)
    (tmp_path / "version" / "model.py").write_text(source)
    (tmp_path / "out").mkdir()
    with pytest.raises(Invalid, match=r"exported") as caught:
        CONVERTER.convert(tmp_path / "version", card, tmp_path / "out", SAMPLES)
    assert len(caught.value.message) < 600
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        ("return self.second(self.first(x)) * (1 if x.shape[0] > 8 else 2)", "dim 0 of input 'x', .* for 0 to 8 alone"),
        ("return self.second(self.first(x)) * (1 if x.shape[0] > 2 else 2)", "dim 0 of input 'x', .* for 3 or more alone"),
        ("return (x if x.shape[1] <= 16 else x[:, -16:]).sum(1, keepdim=True)", "dim 1 of input 'x', .* for 0 to 16 alone"),
        ("return (x if x.shape[1] < 5 else -x).sum(1, keepdim=True)", "dim 1 of input 'x', .* for 5 or more alone"),
        ("return x[:, :5000].sum(1, keepdim=True) if x.shape[1] < 5000 else x[:, :1]", "dim 1 .* for 0 to 4999 alone"),
    ],
)
def test_a_branch_on_a_size_is_refused(tmp_path: Path, forward: str, said: str) -> None:
    card = simple(tmp_path / "version")
    if "first" not in forward:
        card = card.changed(inputs=(card.inputs[0].changed(shape=(-1, -1)),))
    (tmp_path / "version" / "model.py").write_text(SIMPLE.replace("return self.second(torch.relu(self.first(x)))", forward))
    (tmp_path / "out").mkdir()
    with pytest.raises(Invalid, match=said):
        CONVERTER.convert(tmp_path / "version", card, tmp_path / "out", SAMPLES)


@pytest.mark.parametrize("forward", ["x[:, ::2]", "x[:, :1, None] + x[:, None, 1:]", "x if x.shape[1] > 1 else x + 0"])
def test_sizes_that_only_have_to_be_there_are_no_branch(tmp_path: Path, forward: str) -> None:
    card = simple(tmp_path / "version")
    card = card.changed(inputs=(card.inputs[0].changed(shape=(-1, -1)),))
    source = SIMPLE.replace("self.second(torch.relu(self.first(x)))", f"({forward}).flatten(1).sum(1, keepdim=True)")
    (tmp_path / "version" / "model.py").write_text(source)
    (tmp_path / "out").mkdir()
    assert CONVERTER.convert(tmp_path / "version", card, tmp_path / "out", SAMPLES).inputs[0].shape == (-1, -1)


@pytest.mark.parametrize(
    ("forward", "shape", "least"),
    [
        ("nn.functional.conv1d(x, torch.ones(8, 1, 5))", (-1, 1, -1), 5),
        ("nn.functional.max_pool2d(nn.functional.max_pool2d(x, 2), 2)", (-1, 1, -1, -1), 4),
        ("x + torch.arange(16.0)[: x.shape[2]] if x.shape[2] <= 16 else [][0]", (-1, 1, -1), 1),
    ],
)
def test_a_size_that_the_module_does_not_take_is_no_branch(
    tmp_path: Path, forward: str, shape: tuple[int, ...], least: int
) -> None:
    card = simple(tmp_path / "version")
    card = card.changed(inputs=(card.inputs[0].changed(shape=shape),))
    source = SIMPLE.replace("self.second(torch.relu(self.first(x)))", f"({forward}).flatten(1).sum(1, keepdim=True)")
    (tmp_path / "version" / "model.py").write_text(source)
    (tmp_path / "out").mkdir()
    random = np.random.default_rng(0)
    samples = {"x": random.standard_normal((3, 1, *(8 for _ in shape[2:]))).astype(np.float32)}
    made = CONVERTER.convert(tmp_path / "version", card, tmp_path / "out", samples)
    assert made.inputs[0].shape == shape
    graph, module = OnnxEngine(tmp_path / "out", made), TorchEngine(tmp_path / "version", card)
    for size in (least, 13):
        x = random.standard_normal((2, 1, *(size for _ in shape[2:]))).astype(np.float32)
        np.testing.assert_allclose(graph.forward({"x": x})["output"], module.forward({"x": x})["output"], atol=1e-4)
    wrong = 17 if least == 1 else least - 1
    x = np.ones((2, 1, *(wrong for _ in shape[2:])), np.float32)
    for engine in (graph, module):
        with pytest.raises(Exception):  # noqa: B017  a library's own
            engine.forward({"x": x})


CURVED = """

class Curve(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)
"""


@pytest.mark.parametrize(
    ("inside", "named"), [(True, r"layer 'curves\.0' \(Curve\) uses"), (False, "'SimpleModel' itself uses")]
)
def test_an_operator_that_onnx_lacks_is_named_with_its_layer(tmp_path: Path, inside: bool, named: str) -> None:
    card = simple(tmp_path / "version")
    curve = "self.curves[0](self.first(x))" if inside else "torch.special.bessel_j0(self.first(x))"
    source = SIMPLE.replace("torch.relu(self.first(x))", curve)
    source = source.replace("        self.second =", "        self.curves = nn.ModuleList([Curve()])\n        self.second =")
    (tmp_path / "version" / "model.py").write_text(source + CURVED)
    (tmp_path / "out").mkdir()
    with pytest.raises(Invalid, match=rf"ONNX has no operator for aten\.special_bessel_j0, which .*{named}"):
        CONVERTER.convert(tmp_path / "version", card, tmp_path / "out", SAMPLES)
