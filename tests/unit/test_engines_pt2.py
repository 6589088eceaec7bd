"""What the engine `pt2` answers, beside the modules its programs were exported from, and what it refuses at load."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_programs import BATCH, MATRIX, entries, meta, node, size, tensor, write
from torch import nn
from torch.export import Dim

from modelyard.conversion.cards import tensor_cards
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.pt2 import Pt2Engine, signature_of
from modelyard.errors import Invalid, Unsafe

ROWS = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
OPEN = {0: Dim.DYNAMIC}


def card(path: Path) -> ModelCard:
    signature = signature_of(path)
    return ModelCard(
        task="feature-extraction",
        engines=("pt2",),
        files={"pt2": path.name},
        inputs=tensor_cards(signature.inputs),
        outputs=tensor_cards(signature.outputs),
    )


def made(folder: Path, change: Callable[[dict], object] = lambda content: None) -> Pt2Engine:
    content = entries()
    change(content)
    path = write(folder / "m.pt2", content)
    return Pt2Engine(folder, card(path))


class Texts(nn.Module):
    """Attention under a mask, over texts of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.tell = nn.Embedding(50, 16)
        self.read = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.read(self.tell(ids), src_key_padding_mask=(ids == 0) & (ids < 1)).mean(1)


class Pictures(nn.Module):
    """Channels beside each other, buffers, several outputs, sizes computed with."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8), nn.GELU(), nn.MaxPool2d(2))
        self.see.to(memory_format=torch.channels_last)
        self.register_buffer("scale", torch.arange(2.0).expand(8, 2), persistent=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        seen = self.see(x)
        first, second = seen.mean((2, 3)).split(4, 1)
        flat = seen.reshape(x.shape[0] * 2, -1).sum(1).reshape(x.shape[0], 2)
        big = nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear").amax((2, 3))
        return {
            "told": torch.cat([second, first], 1) @ self.scale,
            "flat": flat.to(torch.float64),
            "top": seen.flatten(1).topk(3).indices,
            "big": torch.where(big > 0, big, float("inf")),
        }


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen, (last, _) = self.steps(x.cumsum_(1))
        return torch.einsum("bsd,b->bd", seen, scale), last[0].half()


CASES: list[tuple[nn.Module, tuple[Any, ...], tuple[Any, ...]]] = [
    (Texts(), (torch.randint(0, 50, (3, 7)),), ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)),
    (Pictures(), (torch.randn(3, 3, 8, 8),), ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},)),
    (Steps(), (torch.randn(3, 6, 3), torch.rand(3)), (OPEN, OPEN)),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("module", "arguments", "dims"), CASES, ids=[type(case[0]).__name__ for case in CASES])
def test_it_answers_as_the_module_does(tmp_path: Path, module: nn.Module, arguments: tuple, dims: tuple) -> None:
    exported = torch.export.export(module.eval(), arguments, dynamic_shapes=dims)
    torch.export.save(exported, tmp_path / "m.pt2")
    stated = card(tmp_path / "m.pt2")
    engine = Pt2Engine(tmp_path, stated, threads=2)
    for rows in (1, 2, 7):
        given = [torch.cat([each] * 3)[:rows] for each in arguments]
        batch = {spec.name: each.numpy().copy() for spec, each in zip(stated.inputs, given, strict=True)}
        found = engine.forward(batch)
        assert all(np.array_equal(batch[spec.name], each) for spec, each in zip(stated.inputs, given, strict=True))
        with torch.inference_mode():
            wanted = module(*[each.clone() for each in given])
        wanted = wanted if isinstance(wanted, dict) else {"output": wanted} if isinstance(wanted, torch.Tensor) else wanted
        values = list(wanted.values()) if isinstance(wanted, dict) else list(wanted)
        assert list(found) == list(wanted if isinstance(wanted, dict) else ("output_0", "output_1"))
        for one, other in zip(found.values(), values, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-5, atol=1e-6)
            assert one.dtype == other.numpy().dtype
    assert not engine.changes(batch)


def test_a_program_written_by_hand_runs(tmp_path: Path) -> None:
    np.testing.assert_allclose(made(tmp_path).forward({"x": ROWS})["output"], ROWS @ MATRIX, rtol=1e-6)


def test_what_no_step_needs_any_more_is_let_go(tmp_path: Path) -> None:
    def longer(content: dict) -> None:
        graph = content["models/model.json"]["graph_module"]["graph"]
        names = [f"v{number}" for number in range(20)]
        for before, after in zip(["x", *names], [*names, "z"], strict=True):
            graph["nodes"].insert(-1, node("torch.ops.aten.neg.default", after, self=tensor(before)))
            graph["tensor_values"][after] = meta(BATCH, 3)
        graph["nodes"][-1]["inputs"][0]["arg"] = tensor("z")

    engine = made(tmp_path, longer)
    np.testing.assert_allclose(engine.forward({"x": ROWS})["output"], -ROWS @ MATRIX, rtol=1e-6)
    assert sum(len(step.done) for step in engine._steps) == 22  # x and all that is made of it but the answer


def test_a_dim_past_what_it_was_exported_for_is_refused(tmp_path: Path) -> None:
    def bounded(content: dict) -> None:
        content["models/model.json"]["range_constraints"]["s1"] = {"min_val": 3, "max_val": 9}
        content["models/model.json"]["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][1] = size("s1")

    engine = made(tmp_path, bounded)
    assert engine.forward({"x": ROWS})["output"].shape == (5, 2)
    with pytest.raises(Invalid, match="Dim 1 of 'x' may be 3 to 9"):
        engine.forward({"x": np.ones((1, 2), np.float32)})


def test_writing_into_its_own_weights_is_seen(tmp_path: Path) -> None:
    def writing(content: dict) -> None:
        nodes = content["models/model.json"]["graph_module"]["graph"]["nodes"]
        nodes.append(node("torch.ops.aten.add_.Scalar", "z", self=tensor("p_w"), other={"as_int": 1}))

    engine = made(tmp_path, writing)
    assert engine.changes({"x": ROWS}) == ["w"]


@pytest.mark.parametrize("name", ["save", "manual_seed", "set_grad_enabled", "warn"])
def test_what_tensors_do_not_choose_the_kernel_of_is_not_run(tmp_path: Path, name: str) -> None:
    def calling(content: dict) -> None:
        nodes = content["models/model.json"]["graph_module"]["graph"]["nodes"]
        nodes.append(node(f"torch.ops.aten.{name}.default", "z", item={"as_int": 1}))

    with pytest.raises((Invalid, Unsafe)):
        made(tmp_path, calling)


def graph(content: dict) -> Any:
    return content["models/model.json"]["graph_module"]["graph"]


def weight(content: dict) -> Any:
    return content["data/weights/model_weights_config.json"]["config"]["w"]["tensor_meta"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: graph(c)["nodes"][0].update(target="torch.ops.aten.evil.default"), r"no operator torch\.ops\.aten\.evil"),
        (lambda c: graph(c)["nodes"][0].update(target="torch.ops.aten.__class__.mro"), "no operator"),
        (lambda c: graph(c)["nodes"][0].update(target="torch.ops.aten.matmul.evil"), "no operator"),
        (
            lambda c: graph(c)["nodes"][0].update(target="torch.ops.aten._cufft_clear_plan_cache.default"),
            "not run here|no operator",
        ),
        (lambda c: graph(c)["nodes"][0].update(target="torch.ops.aten._test_string_default.default"), "not run here"),
        (lambda c: graph(c)["nodes"][0]["inputs"][0].update(arg=tensor("later")), "nothing gives before"),
        (lambda c: graph(c)["nodes"][0].update(outputs=[tensor("x")]), "not one new value"),
        (lambda c: graph(c)["nodes"][0]["inputs"][0]["arg"].update(as_int=3), "expected one of"),
        (lambda c: graph(c)["nodes"].clear(), "gives what it never made"),
        (lambda c: graph(c)["nodes"][0]["inputs"][0].update(arg={"as_device": {"type": "cuda"}}), "exported on cuda"),
        (lambda c: graph(c)["nodes"][0]["inputs"][0].update(arg={"as_layout": 1}), "sparse"),
        (lambda c: graph(c)["nodes"][0]["inputs"][0].update(arg={"as_scalar_type": 99}), "type 99"),
        (lambda c: c.update({"data/weights/weight_0": b"123"}), "does not fit"),
        (lambda c: c.update({"data/weights/weight_0": b""}), "does not fit"),
        (lambda c: weight(c)["sizes"].__setitem__(0, {"as_int": 1 << 60}), "does not fit"),
        (lambda c: weight(c).update(storage_offset={"as_int": 1}), "does not fit"),
        (lambda c: weight(c).update(device={"type": "cuda"}), "exported on cuda"),
        (lambda c: weight(c)["sizes"].__setitem__(0, size(BATCH)), "open dim"),
    ],
)
def test_what_cannot_run_is_refused_at_load(tmp_path: Path, change: Callable[[dict], object], said: str) -> None:
    with pytest.raises(Invalid, match=said):
        made(tmp_path, change)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"files": {"onnx": "m.pt2"}}, r"files\.pt2"),
        ({"files": {"pt2": "missing.pt2"}}, "no file"),
        ({"inputs": (TensorCard(name="z", datatype="FP32", shape=(-1, 3)),)}, r"z:FP32\[-1, 3\]"),
        ({"inputs": (TensorCard(name="x", datatype="FP64", shape=(-1, 3)),)}, r"x:FP64"),
    ],
)
def test_a_card_that_is_wrong_is_refused_before_the_first_call(tmp_path: Path, fields: dict, said: str) -> None:
    path = write(tmp_path / "m.pt2", entries())
    with pytest.raises(Invalid, match=said):
        Pt2Engine(tmp_path, card(path).changed(**fields))


def test_a_file_outside_is_refused(tmp_path: Path) -> None:
    stated = card(write(tmp_path / "m.pt2", entries()))
    (tmp_path / "in").mkdir()
    with pytest.raises(Unsafe):
        Pt2Engine(tmp_path / "in", stated.changed(files={"pt2": "../m.pt2"}))


def test_a_replica_loads_neither_torchs_exporter_nor_its_loader(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pt2", entries())
    card(path).save(tmp_path)
    code = (
        "import sys, numpy; from pathlib import Path; from modelyard.engines.base import ModelCard; "
        "from modelyard.engines.pt2 import Pt2Engine; folder = Path(sys.argv[1]); "
        "Pt2Engine(folder, ModelCard.load(folder)).forward({'x': numpy.ones((1, 3), numpy.float32)}); print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert not loaded & {"torch._export.serde.serialize", "torch.export.pt2_archive._package", "torch._inductor", "picklescan"}
