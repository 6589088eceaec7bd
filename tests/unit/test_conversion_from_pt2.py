"""Programs from elsewhere become versions and run nothing on the way: neither here, nor where torch opens the version."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_programs import BATCH, MATRIX, entries, node, size, tensor, write
from torch import nn
from torch.export import Dim

from modelyard.conversion.config import ImportModelConfig
from modelyard.conversion.from_pt2 import read
from modelyard.conversion.pt2 import FILE
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.pt2 import Pt2Engine
from modelyard.errors import Invalid, Unsafe
from modelyard.kinds import FolderContext

Entries = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("in", "out", "work"):
        (tmp_path / name).mkdir()
    return tmp_path


def taken(folder: Path, **config: object) -> tuple[ModelCard, dict[str, Any]]:
    upload = folder / "in"
    return read(ImportModelConfig(**config), upload / "m.pt2", upload, folder / "out", FolderContext(folder / "work"))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tell = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tell(x), x.sum(1, keepdim=True) * mask.double().mean(1, keepdim=True)


def exported(folder: Path, module: nn.Module, *rows: torch.Tensor, **options: Any) -> None:
    options = {"dynamic_shapes": tuple({0: Dim.DYNAMIC} for _ in rows), **options}
    torch.export.save(torch.export.export(module, rows, **options), folder / "in" / "m.pt2")


def test_one_from_elsewhere_is_read_tried_and_verified(folder: Path) -> None:
    module = Pair().eval()
    exported(
        folder, module, torch.randn(3, 3), torch.ones(3, 5, dtype=torch.int64),
        dynamic_shapes=({0: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim("length", min=3, max=9)}),
    )  # fmt: skip
    card, facts = taken(folder)
    assert card.inputs == (
        TensorCard(name="x", datatype="FP32", shape=(-1, 3)),
        TensorCard(name="mask", datatype="INT64", shape=(-1, -1)),
    )
    assert [(spec.name, spec.datatype, spec.shape) for spec in card.outputs] == [
        ("output_0", "FP32", (-1, 2)),
        ("output_1", "FP64", (-1, 1)),
    ]
    assert (card.engines, facts["format"], facts["verification"]["batches"]) == (("pt2",), "pt2", [1, 2, 7])
    x, mask = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32), np.ones((4, 6), np.int64)
    answers = Pt2Engine(folder / "out", card).forward({"x": x, "mask": mask})
    for one, other in zip(answers.values(), module(torch.from_numpy(x), torch.from_numpy(mask)), strict=True):
        np.testing.assert_allclose(one, other.detach(), rtol=1e-6)
    whole = (folder / "out" / FILE).read_bytes()
    assert str(Path(__file__).parent).encode() not in (whole + (folder / "out" / FILE).read_bytes())


def test_a_fixed_batch_is_allowed_and_kept(folder: Path) -> None:
    exported(folder, nn.Linear(3, 2), torch.randn(4, 3), dynamic_shapes=None)
    card, _ = taken(folder, labels=("a", "b"))
    assert (card.inputs[0].shape, card.task) == ((4, 3), "tabular-classification")


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.BatchNorm1d(3), "writes into its own running_mean, running_var, num_batches_tracked"),
        (nn.Dropout(), "was it exported in eval mode"),
        (nn.Flatten(0), "dim 0 must be the batch"),
    ],
)
def test_what_answers_otherwise_each_time_is_refused(folder: Path, module: nn.Module, said: str) -> None:
    exported(folder, module, torch.randn(3, 3))
    with pytest.raises(Invalid, match=said):
        taken(folder)


def test_it_states_its_own_inputs(folder: Path) -> None:
    write(folder / "in" / "m.pt2", entries())
    with pytest.raises(Invalid, match="leave out module"):
        taken(folder, inputs=("x:FP32[-1,3]",))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04.", b"nothing of the kind"])
def test_what_is_no_archive_is_refused(folder: Path, content: bytes) -> None:
    (folder / "in" / "m.pt2").write_bytes(content)
    with pytest.raises(Invalid, match=r"'m\.pt2' was refused unread"):
        taken(folder)


# Programs that are more. Each would leave a canary.


class Canary:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"open({str(self.target)!r}, 'w').close()",)


def pickled(target: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": Canary(target)}, buffer)
    return buffer.getvalue()


def module(content: Entries) -> Any:
    return content["models/model.json"]["graph_module"]


def in_weights(content: Entries, target: Path) -> None:
    content["data/weights/model_weights_config.json"]["config"]["w"]["use_pickle"] = True
    content["data/weights/weight_0"] = pickled(target)


def in_constants(content: Entries, target: Path, name: str = "tensor_0") -> None:
    meta = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}
    content["data/constants/model_constants_config.json"]["config"]["k"] = meta
    content[f"data/constants/{name}"] = pickled(target) if name == "tensor_0" else pickle.dumps(Canary(target))


def in_examples(content: Entries, target: Path) -> None:
    content["data/sample_inputs/model.pt"] = pickled(target)


def in_a_size(content: Entries, target: Path) -> None:
    text = f"open({str(target)!r}, 'w').close() or 3"
    module(content)["graph"]["tensor_values"]["x"]["sizes"][1] = size(text)


def in_a_name(content: Entries, target: Path) -> None:
    name = f"x):\n    open({str(target)!r}, 'w').close()\n    #"
    content["models/model.json"] = json.loads(json.dumps(content["models/model.json"]).replace('"x"', json.dumps(name)))


def in_a_node(content: Entries, target: Path) -> None:
    call = node("torch.os.system", "z", command={"as_string": f"touch {target}"})
    module(content)["graph"]["nodes"].insert(0, call | {"outputs": [{"as_sym_int": {"as_name": "z"}}]})
    module(content)["graph"]["sym_int_values"]["z"] = size(3)


def in_a_call(content: Entries, target: Path) -> None:
    (target.parent / "canary_module.py").write_text(f"open({str(target)!r}, 'w').close()\nfactory = list\n")
    context = json.dumps([{"__enum__": True, "fqn": "canary_module:factory", "name": "x"}])
    tree = {
        "type": "builtins.dict",
        "context": context,
        "children_spec": [{"type": None, "context": None, "children_spec": []}],
    }
    module(content)["module_call_graph"][0]["signature"]["out_spec"] = json.dumps([1, tree])


PLANTS: dict[str, Callable[[Entries, Path], None]] = {
    "weights": in_weights,
    "constants": in_constants,
    "opaque object": lambda content, target: in_constants(content, target, "opaque_obj_0"),
    "script object": lambda content, target: in_constants(content, target, "custom_obj_0"),
    "examples": in_examples,
    "size": in_a_size,
    "name": in_a_name,
    "node": in_a_node,
    "call": in_a_call,
    "weights of old": lambda content, target: content.update({"data/weights/model.pt": pickled(target)}),
    "constants of old": lambda content, target: content.update({"data/constants/model.pt": pickled(target)}),
}


@pytest.mark.parametrize("where", PLANTS)
def test_code_is_refused_and_never_runs(folder: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    content = entries()
    PLANTS[where](content, folder / "canary")
    write(folder / "in" / "m.pt2", content)
    with pytest.raises(Invalid if where in ("name", "call") else Unsafe):
        taken(folder)
    assert not (folder / "canary").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("where", ["weights", "constants", "opaque object", "examples", "size", "call"])
def test_torchs_own_loader_would_have_run_it(folder: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dud would prove nothing."""
    monkeypatch.syspath_prepend(folder)
    content = entries()
    PLANTS[where](content, folder / "canary")
    write(folder / "in" / "m.pt2", content)
    with contextlib.suppress(Exception):
        torch.export.load(folder / "in" / "m.pt2").module()(torch.ones(3, 3))
    assert (folder / "canary").exists()


def test_what_torch_runs_of_a_harmless_one_is_left_out(folder: Path) -> None:
    canary = folder / "canary"
    content = entries()
    content["models/model.json"]["guards_code"] = [f"open({str(canary)!r}, 'w').close() is None"]
    module(content)["graph"]["nodes"][0]["metadata"] = {"stack_trace": "File /home/someone/model.py", "custom": "{}"}
    content["extra/notes.txt"] = b"of someone's"
    write(folder / "in" / "m.pt2", content)
    card, _ = taken(folder)
    x = np.ones((2, 3), np.float32)
    np.testing.assert_allclose(Pt2Engine(folder / "out", card).forward({"x": x})["output"], x @ MATRIX)
    torch.export.load(folder / "out" / FILE).module()({"x": torch.from_numpy(x)})
    assert not canary.exists()
    with zipfile.ZipFile(folder / "out" / FILE) as archive:
        assert sorted(archive.namelist()) == sorted(f"model/{name}" for name in [
            "models/model.json", "data/weights/model_weights_config.json", "data/weights/weight_0", ".data/version",
            "data/sample_inputs/model.pt",
            "data/constants/model_constants_config.json", "archive_format", "archive_version", "byteorder",
        ])  # fmt: skip
        assert archive.read("model/data/sample_inputs/model.pt") == b""
        assert all(word not in archive.read("model/models/model.json") for word in (b"canary", b"someone"))


def test_an_operator_of_someone_s_own_is_named(folder: Path) -> None:
    content = entries()
    module(content)["graph"]["nodes"][0]["target"] = "torch.ops.theirs.matmul.default"
    write(folder / "in" / "m.pt2", content)
    with pytest.raises(Unsafe, match=r"calls torch\.ops\.theirs\.matmul\.default; only ATen's operators"):
        taken(folder)


def test_one_that_fails_on_its_own_shapes_is_refused(folder: Path) -> None:
    content = entries()
    module(content)["graph"]["nodes"][0]["inputs"][0]["arg"] = tensor("p_w")
    module(content)["graph"]["tensor_values"]["y"]["sizes"] = [size(BATCH), size(2)]
    write(folder / "in" / "m.pt2", content)
    with pytest.raises(Invalid, match="does not run on inputs of the shapes it states"):
        taken(folder)
