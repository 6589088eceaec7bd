"""Parameters, not losses: what a gang on any mesh has trained after ten steps is what one process has, to 1e-12 in float64.

One long-lived process (`mesh_gang.py`) forks the ranks of every case, so that torch is imported once. A part that covers every
axis runs always, the whole matrix in `make soak`.
"""

import json
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch
from mesh_models import MODELS
from safetensors.torch import load_file

HERE = Path(__file__).parent
AXES = ("data", "shard", "tensor", "pipe")
PAIRS = [f"{a}=2,{b}=2" for a, b in combinations(AXES, 2)]
MATRIX = [*(f"{axis}=2" for axis in AXES), "data=3", "shard=4", *PAIRS, "data=2,shard=2,tensor=2", "shard=2,tensor=2,pipe=2"]
COVER = [
    ("mlp", "data=2,shard=2"),
    ("mlp", "tensor=2,pipe=2"),
    ("cnn", "shard=2"),
    ("cnn", "tensor=2"),
    ("cnn", "data=2,pipe=2"),
    ("llama", "data=2"),
    ("llama", "shard=2,tensor=2"),
    ("llama", "pipe=2"),
]


class Launcher:
    """Runs jobs one after another, and keeps what a process alone made of the same."""

    def __init__(self, process, root):
        self._process, self._root = process, root
        self._alone = {}
        self._jobs = 0

    def __call__(self, model, mesh, **more):
        """What each rank said, and the state rank 0 has of the whole network."""
        self._jobs += 1
        folder = self._root / f"job-{self._jobs}"
        folder.mkdir()
        ranks = 1
        for part in mesh.split(",") if mesh != "alone" else ():
            ranks *= int(part.split("=")[1])
        job = {"model": model, "mesh": mesh, "ranks": ranks, "folder": str(folder), **more}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        codes = json.loads(self._process.stdout.readline())
        printed = "\n".join(path.read_text() for path in sorted(folder.glob("rank-*.txt")))
        assert set(codes) <= {0, 3}, printed
        said = [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(ranks)]
        state = folder / "state.safetensors"
        return said, load_file(state) if state.exists() else None

    def alone(self, model, **more):
        key = json.dumps([model, more], sort_keys=True)
        if key not in self._alone:
            (said,), state = self(model, "alone", **more)
            self._alone[key] = said, state
        return self._alone[key]


@pytest.fixture(scope="module")
def gang(tmp_path_factory):
    command = [sys.executable, str(HERE / "mesh_gang.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE) as process:
        yield Launcher(process, tmp_path_factory.mktemp("mesh"))
        process.stdin.close()


def apart(state, other):
    """The largest difference of any parameter."""
    assert list(state) == list(other)
    return max(float((state[name] - other[name]).abs().max()) for name in state)


def agrees(gang, model, mesh, **more):
    said, state = gang(model, mesh, **more)
    assert "message" not in said[0], said[0]
    given = {name: more[name] for name in ("clip", "arguments") if name in more}
    alone, expected = gang.alone(model, **given)
    assert apart(state, expected) <= 1e-12
    assert said[0]["losses"] == pytest.approx(alone["losses"], abs=1e-9)
    assert said[0]["lengths"] == pytest.approx(alone["lengths"], rel=1e-9)
    assert len({json.dumps(one["losses"]) for one in said}) == 1, "every rank knows the loss of all"


@pytest.mark.parametrize(("model", "mesh"), COVER)
def test_a_mesh_trains_what_one_process_trains(gang, model, mesh):
    agrees(gang, model, mesh)


@pytest.mark.soak
@pytest.mark.parametrize("mesh", MATRIX)
@pytest.mark.parametrize("model", MODELS)
def test_every_mesh_trains_what_one_process_trains(gang, model, mesh):
    agrees(gang, model, mesh)


def test_an_axis_that_a_model_says_nothing_of_is_refused(gang):
    said, _ = gang("cnn", "tensor=2", declared={"tensor": {}})
    assert all(one["error"] == "invalid_request" and "tensor" in one["message"] for one in said), said


SMALL = {"width": 64, "hidden": 96, "depth": 4}


@pytest.mark.parametrize("mesh", ["tensor=2", "pipe=2"])
def test_clipping_measures_the_whole_gradient(gang, mesh):
    agrees(gang, "llama", mesh, clip=0.5, arguments=SMALL)


@pytest.mark.parametrize("mesh", [f"{axis}=2" for axis in AXES])
def test_bf16_computes_in_half_of_float32_and_learns_the_same(gang, mesh):
    job = {"dtype": "float32", "arguments": SMALL, "batches": 2, "lr": 3e-3}
    said, state = gang("llama", mesh, options={"precision": "bf16"}, **job)
    assert "message" not in said[0], said[0]
    alone, _ = gang.alone("llama", **job)
    off = [abs(a - b) for a, b in zip(said[0]["losses"], alone["losses"], strict=True)]
    assert 1e-6 < max(off) <= 1e-2, off
    assert alone["losses"][0] - alone["losses"][-1] > 0.5, "it learns, so that losses may differ at all"
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler: there is no c++")
def test_compiled_blocks_learn_the_same(gang, tmp_path):
    agrees(gang, "mlp", "shard=2", options={"compile": True})


@pytest.mark.parametrize("mesh", ["data=2,shard=2", pytest.param("shard=2,tensor=2,pipe=2", marks=pytest.mark.soak)])
@pytest.mark.parametrize("options", [{"pieces": 2}, pytest.param({"recompute": True}, marks=pytest.mark.soak)])
def test_clipping_and_pieces_change_nothing(gang, mesh, options):
    if "pipe" in mesh and "pieces" in options:
        options = {"pieces": 4}
    agrees(gang, "llama", mesh, clip=0.5, options=options, arguments=SMALL)


@pytest.mark.parametrize("schedule", ["gpipe", "interleaved"])
def test_every_schedule_of_a_pipe_agrees(gang, schedule):
    agrees(gang, "mlp", "pipe=2", options={"schedule": schedule, "pieces": 4})


@pytest.mark.parametrize("mesh", ["data=2", "data=2,shard=2"])
def test_the_comparison_sees_gradients_that_are_not_exchanged(gang, mesh):
    """The control: what it would miss, no other test here would find."""
    misses_nothing(gang, "mlp", mesh)


def misses_nothing(gang, model, mesh, **more):
    """Every parameter took its steps, by gradients that were not added up, and ended elsewhere, far beyond what is allowed."""
    said, state = gang(model, mesh, broken=True, **more)
    assert "message" not in said[0], said[0]
    _, expected = gang.alone(model, **more)
    _, start = gang(model, "alone", steps=0, **more)
    moved = {name: float((state[name] - start[name]).abs().max()) for name in state}
    assert min(moved.values()) > 1e-4, moved
    assert apart(state, expected) > 1e-6


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"tensor": {"0": "columns", "2": "columns"}}, "cannot be computed"),
        ({"tensor": {"0": "rows", "2": "columns"}}, "cannot be computed|gradient"),
        ({"tensor": {"9": "columns"}}, "9"),
        ({"tensor": {"1": "columns"}}, "1"),
    ],
)
def test_a_wrong_plan_is_an_error_and_never_a_wrong_number(gang, declared, told):
    said, state = gang("mlp", "tensor=2", declared=declared)
    if state is not None:  # a plan may be clumsy and right
        assert apart(state, gang.alone("mlp")[1]) <= 1e-12
        return
    assert all(one["error"] == "invalid_request" for one in said), said
    assert re.search(told, said[0]["message"])


@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}])
def test_a_wrong_plan_of_what_counts_little_is_an_error_in_bf16_too(gang, options):
    """What is whole and applied to parts has a part of its gradient alone, which is a thousandth of the whole gradient."""
    wrong = {"tensor": {"2": "columns", "4": "rows"}}
    job = {"dtype": "float32", "options": options}
    said, _ = gang("heads", "tensor=2", declared=wrong, **job)
    assert [one.get("error") for one in said] == ["invalid_request"] * 2, said
    assert "the gradient of '3.weight' is off" in said[0]["message"]
    said, _ = gang("heads", "tensor=2", **job)
    assert "message" not in said[0], said[0]


def test_a_checkpoint_goes_on_on_another_mesh(gang, tmp_path):
    """Saved at 4 ranks, for the second time, and resumed at 2 and at 1, in parts of other axes."""
    _, expected = gang.alone("llama", arguments=SMALL)
    saved = tmp_path / "at-4"
    gang("llama", "data=2,shard=2", last=5, save=str(saved), save_at=3, arguments=SMALL)
    for mesh in ("tensor=2", "pipe=2", "data=1"):
        said, state = gang("llama", mesh, first=5, resume=str(saved), arguments=SMALL)
        assert "message" not in said[0], said[0]
        assert apart(state, expected) <= 1e-12
    whole = tmp_path / "at-1"
    gang("llama", "data=1", last=5, save=str(whole), arguments=SMALL)
    _, state = gang("llama", "shard=2", first=5, resume=str(whole), arguments=SMALL)
    assert apart(state, expected) <= 1e-12


def test_a_checkpoint_that_is_not_whole_or_of_another_model_is_refused(gang, tmp_path):
    saved = tmp_path / "saved"
    gang("mlp", "shard=2", last=2, save=str(saved))
    said, _ = gang("mlp", "shard=2", first=2, resume=str(saved), arguments={"width": 28})
    assert all(one["error"] == "invalid_request" and "another model" in one["message"] for one in said), said
    part = next(saved.glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-8])
    said, _ = gang("mlp", "shard=2", first=2, resume=str(saved))
    assert all(one["error"] == "damaged" and part.name in one["message"] for one in said), said
    (saved / "progress.json").unlink()
    said, _ = gang("mlp", "data=2", first=2, resume=str(saved))
    assert all(one["error"] == "damaged" for one in said), said


@pytest.mark.parametrize("mesh", ["data=2", "shard=2", "pipe=2"])
def test_a_checkpoint_that_cannot_be_written_costs_itself_alone(gang, tmp_path, mesh):
    (tmp_path / "file").write_text("no folder")
    said, state = gang("mlp", mesh, stage=str(tmp_path / "file" / "checkpoint"))
    assert "Not a directory" in said[0]["kept"]
    assert apart(state, gang.alone("mlp")[1]) <= 1e-12
    full = 0 if mesh == "data=2" else 1
    said, state = gang("mlp", mesh, stage=str(tmp_path / "checkpoint"), full=full, size=2000)
    assert "File too large" in said[0]["kept"]
    assert not (tmp_path / "checkpoint" / "progress.json").exists()
    assert apart(state, gang.alone("mlp")[1]) <= 1e-12
