"""Gangs of real processes that meet over a file: n ranks do what one does, twice the same, also when cut off in between."""

import json
import math
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forked_ranks import serve
from safetensors.torch import load_file

from modelyard.data.config import ImportDatasetConfig
from modelyard.data.datasets import Dataset
from modelyard.data.importing import run as import_dataset
from modelyard.errors import Invalid
from modelyard.jobs.lines import encode
from modelyard.jobs.types import Gang, GangInput
from modelyard.kinds import Cancelled, FolderContext, FolderOutputs, FolderView, Input
from modelyard.training.config import TrainConfig
from modelyard.training.feed import Feed
from modelyard.training.loop import run

EXAMPLE = Path(__file__).parents[2] / "examples" / "simple_model"
TEN = [f"x{i}" for i in range(10)]
MODULE = {"name": "SimpleModel", "inputs": TEN, "weights": "simple_model.pth"}
EXACT = {
    "recipe": "module",
    "dtype": "float64",
    "epochs": 3,
    "batch_size": 32,
    "lr": 0.02,
    "optimiser": "sgd",
    "module": MODULE,
}
IMAGES = {"epochs": 3, "image_classifier": {"width": 16}}


def keep_journal(path: Path, limit: int = 0) -> None:
    """Have the feed write what rows it hands to this rank: a line a step. After so many steps, if any, the rank is cut off."""
    batches, left = Feed.batches, iter(range(limit - 1, -1, -1))

    def journalled(self, seed, epoch, *wanted):
        with path.open("a") as journal:
            for made in batches(self, seed, epoch, *wanted):
                journal.write(json.dumps([epoch, made.step, made.positions.tolist()]) + "\n")
                journal.flush()
                yield made
                if next(left, None) == 0:
                    raise Cancelled

    Feed.batches = journalled


def stream(held: int) -> None:
    """Have the feed hold no more than so many bytes of a split, and keep nothing that it made."""
    read = Feed.read.__func__
    Feed.read = classmethod(lambda cls, *given, **named: read(cls, *given, kept=0, held=held, **named))


def rank_main(job: dict, rank: int) -> int:
    """One rank; returns its exit code: 0, 3 with the error on stdout, or 4 where it was cut off."""
    folder = Path(job["folder"])
    keep_journal(folder / f"journal-{job['ranks']}-{rank}.txt", job["limit"] if rank == job["victim"] else 0)
    if job["held"]:
        stream(job["held"])
    context = FolderContext(folder / "work", rank=rank, world_size=job["ranks"])
    inputs = {role: Input(role, {}, FolderView(Path(path), role)) for role, path in job["inputs"].items()}
    try:
        run(TrainConfig.model_validate(job["config"]), inputs, FolderOutputs(folder), context)
    except Invalid as error:
        print(error.message)
        return 3
    except Cancelled:
        os._exit(4)  # as a killed rank: the others get no goodbye
    print(json.dumps({**context.facts, "metrics": context.metrics}))
    return 0


@pytest.fixture(scope="module")
def launch():
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def gang(
        folder: Path, config: dict, inputs: dict[str, Path], ranks: int, limit: int = 0, victim: int = 0, held: int = 0
    ) -> list[tuple[int, str]]:
        """Run a gang to its end, or until rank `victim` is cut off after `limit` steps: exit code and output by rank."""
        (folder / "work").mkdir(parents=True, exist_ok=True)
        (folder / "work" / "rendezvous").unlink(missing_ok=True)
        given = {role: str(path) for role, path in inputs.items()}
        job = {"folder": str(folder), "config": config, "inputs": given, "ranks": ranks, "limit": limit, "victim": victim}
        job |= {"held": held}
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        codes = json.loads(process.stdout.readline())
        return [(code, (folder / f"rank-{rank}.txt").read_text()) for rank, code in enumerate(codes)]

    yield gang
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    process.stdout.close()


def facts(results: list[tuple[int, str]]) -> list[dict]:
    assert [code for code, _ in results] == [0] * len(results), results
    return [json.loads(out.splitlines()[-1]) for _, out in results]


def imported(folder: Path, inputs: dict[str, Input], **config) -> Path:
    folder.mkdir()
    outputs = FolderOutputs(folder)
    import_dataset(ImportDatasetConfig(**config), inputs, outputs, FolderContext(folder))
    return outputs.published["dataset"]["folder"]


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """A number to predict from ten; 331 rows, so that no batch divides evenly."""
    files, draw = tmp_path_factory.mktemp("numbers"), torch.Generator().manual_seed(0)
    x = torch.randn(331, 10, generator=draw)
    lines = [",".join(map(str, [*row, sum(row)])) for row in x.tolist()]
    (files / "data.csv").write_text("\n".join([",".join([*TEN, "y"]), *lines]))
    view = Input("artefact:f", {}, FolderView(files, "f"))
    return {"dataset": imported(tmp_path_factory.mktemp("table") / "d", {"files": view}, target="y"), "code": EXAMPLE}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return {"dataset": imported(tmp_path_factory.mktemp("digits") / "d", {}, source="sklearn:digits")}


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_gang_ends_with_the_parameters_of_a_single_process(launch, numbers, tmp_path, ranks):
    alone = facts(launch(tmp_path / "alone", EXACT, numbers, 1))
    together = facts(launch(tmp_path / "gang", EXACT, numbers, ranks))
    one, many = (torch.load(tmp_path / name / "model" / "simple_model.pth") for name in ("alone", "gang"))
    assert all(tensor.dtype == torch.float64 for tensor in one.values())
    assert max(float((one[name] - many[name]).abs().max()) for name in one) <= 1e-12
    assert together[0]["metrics"][-1]["loss"] == pytest.approx(alone[0]["metrics"][-1]["loss"], abs=1e-12)
    assert sum(rank["samples"] for rank in together) == alone[0]["samples"]
    assert len({rank["pid"] for rank in together}) == ranks
    assert not any(rank["metrics"] for rank in together[1:])


@pytest.mark.parametrize("ranks", [2, 3])  # three: there the order of a sum matters
def test_a_gang_twice_gives_the_same_bytes_also_when_cut_off(launch, digits, tmp_path, ranks):
    facts(launch(tmp_path / "first", IMAGES, digits, ranks))
    facts(launch(tmp_path / "again", IMAGES, digits, ranks))
    cut = launch(tmp_path / "cut", IMAGES, digits, ranks, limit=25)  # 17 steps an epoch: in the second
    assert any(code == 4 for code, _ in cut)
    resumed = facts(launch(tmp_path / "cut", IMAGES, digits, ranks))
    assert [metric["step"] for metric in resumed[0]["metrics"]] == [2, 3]
    first = {path.name: path.read_bytes() for path in (tmp_path / "first" / "model").iterdir()}
    for other in ("again", "cut"):
        assert first == {path.name: path.read_bytes() for path in (tmp_path / other / "model").iterdir()}
    assert all(torch.isfinite(value).all() for value in load_file(tmp_path / "first" / "model" / "model.safetensors").values())


def seen(folder: Path, attempts: list[int]) -> dict[tuple[int, int], list[int]]:
    """Rows by epoch and step, as the journals of gangs of so many ranks have them; what was done again counts once."""
    found = {}
    for ranks in attempts:
        mine = {}
        for rank in range(ranks):
            for line in (folder / f"journal-{ranks}-{rank}.txt").read_text().splitlines():
                epoch, step, rows = json.loads(line)
                mine.setdefault((epoch, step), []).extend(rows)
        found |= mine
    return found


def test_every_row_is_read_once_an_epoch_whatever_is_cut_off_and_however_many_go_on(launch, numbers, tmp_path):
    config = EXACT | {"checkpoint_steps": 3, "checkpoint_keep": 2}  # 7 steps an epoch
    (quiet,) = facts(launch(tmp_path / "quiet", config, numbers, 1))
    for ranks, limit in ((3, 5), (2, 6)):
        cut = launch(tmp_path / "cut", config, numbers, ranks, limit=limit)
        assert any(code == 4 for code, _ in cut), cut
    facts(launch(tmp_path / "cut", config, numbers, 1))
    journal = seen(tmp_path / "cut", [3, 2, 1])
    assert len(journal) == 3 * 7
    for epoch in range(3):
        rows = [row for step in range(7) for row in journal[epoch, step]]
        assert sorted(rows) == list(range(quiet["samples"] // 3))
    assert min(seen(tmp_path / "cut", [2])) == (0, 3)  # not from the start: from the checkpoint within the epoch
    one, many = (torch.load(tmp_path / name / "model" / "simple_model.pth") for name in ("quiet", "cut"))
    assert max(float((one[name] - many[name]).abs().max()) for name in one) <= 1e-12


def test_cut_off_within_an_epoch_the_same_gang_goes_on_bit_for_bit(launch, digits, tmp_path):
    config = IMAGES | {"checkpoint_steps": 5}
    facts(launch(tmp_path / "quiet", config, digits, 2))
    for limit in (8, 14):  # 17 steps an epoch
        assert any(code == 4 for code, _ in launch(tmp_path / "cut", config, digits, 2, limit=limit))
    facts(launch(tmp_path / "cut", config, digits, 2))
    ours, theirs = (tmp_path / name / "model" for name in ("quiet", "cut"))
    assert {path.name: path.read_bytes() for path in ours.iterdir()} == {
        path.name: path.read_bytes() for path in theirs.iterdir()
    }


@pytest.mark.parametrize("held", [0, 15_000], ids=["in memory", "streamed"])
def test_every_row_is_read_once_an_epoch_whichever_rank_is_cut_off_at_whatever_step(launch, numbers, tmp_path, held):
    seed = random.SystemRandom().randrange(1 << 31)
    print(f"seed {seed}")
    draw = random.Random(seed)
    config = EXACT | {"checkpoint_steps": 2, "checkpoint_keep": 2}  # 7 steps an epoch, 21 in all
    (quiet,) = facts(launch(tmp_path / "quiet", config, numbers, 1, held=held))
    for ranks in (3, 2):
        limit, victim = draw.randint(1, 9), draw.randrange(ranks)
        cut = launch(tmp_path / "cut", config, numbers, ranks, limit=limit, victim=victim, held=held)
        assert cut[victim][0] == 4, cut
    facts(launch(tmp_path / "cut", config, numbers, 1, held=held))
    journal = seen(tmp_path / "cut", [3, 2, 1])
    orders = [[row for step in range(7) for row in journal[epoch, step]] for epoch in range(3)]
    assert all(sorted(order) == list(range(quiet["samples"] // 3)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    one, many = (torch.load(tmp_path / name / "model" / "simple_model.pth") for name in ("quiet", "cut"))
    assert max(float((one[name] - many[name]).abs().max()) for name in one) <= 1e-12


@pytest.mark.parametrize("mesh", ["data=2,shard=2", "tensor=2", "pipe=2"])
def test_cut_off_within_an_epoch_any_mesh_goes_on_bit_for_bit(launch, numbers, tmp_path, mesh):
    ranks = math.prod(int(part.partition("=")[2]) for part in mesh.split(","))
    (tmp_path / "code").mkdir()
    declared = (Path(__file__).parent / "mesh_models.py").read_text() + "\nPARALLEL = MLP_PARALLEL\n"
    (tmp_path / "code" / "model.py").write_text(declared)
    module = MODULE | {"name": "MLP", "arguments": {"inputs": 10, "outputs": 1}}
    config = EXACT | {"dtype": "float32", "optimiser": "adamw", "checkpoint_steps": 3, "mesh": mesh, "module": module}
    given = {"dataset": numbers["dataset"], "code": tmp_path / "code"}
    quiet = facts(launch(tmp_path / "quiet", config, given, ranks))
    cut = launch(tmp_path / "cut", config, given, ranks, limit=12, victim=ranks - 1)  # 7 steps an epoch: in the second
    assert cut[ranks - 1][0] == 4, cut
    resumed = facts(launch(tmp_path / "cut", config, given, ranks))
    # not from the start, nor from the epoch's
    assert 0 < sum(rank["samples"] for rank in resumed) < 2 * sum(rank["samples"] for rank in quiet) // 3
    ours, theirs = (tmp_path / name / "model" for name in ("quiet", "cut"))
    assert {path.name: path.read_bytes() for path in ours.iterdir()} == {
        path.name: path.read_bytes() for path in theirs.iterdir()
    }


SPOILED = """
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self, limit):
        super().__init__()
        self.limit, self.linear = limit, nn.Linear(10, 1)

    def forward(self, x):
        return self.linear(x) + torch.where(x[:, :1] < self.limit, 0.0, torch.nan)
"""


def test_a_loss_that_one_rank_alone_sees_spoiled_is_what_the_gang_failed_of(numbers, tmp_path):
    second, first = np.sort(Dataset.open(numbers["dataset"]).column("train", "x0"))[-2:]
    code, work = tmp_path / "code", tmp_path / "work"
    code.mkdir()
    work.mkdir()
    (code / "model.py").write_text(SPOILED)
    part = {"name": "Network", "arguments": {"limit": float(first + second) / 2}, "inputs": TEN}
    folders = {"dataset": numbers["dataset"], "code": code}
    said = gang_of_the_platform(
        Gang(
            token="t", job="j", run="modelyard.training.loop:run", config_path="modelyard.training.config:TrainConfig",
            config={**EXACT, "epochs": 1, "batch_size": 8, "module": part}, ranks=2, work=work,
            inputs={role: GangInput(reference=role, metadata={}, folder=path, hash="") for role, path in folders.items()},
        )
    )  # fmt: skip
    assert (said[-1]["type"], said[-1]["ok"], said[-1]["cancelled"]) == ("ended", False, False)
    assert said[-1]["error"]["code"] == "invalid_request"
    assert re.match(r"The loss became nan in step \d+ of epoch 1; training stopped", said[-1]["error"]["message"])
    assert all(message["facts"].get("samples", 0) < 331 for message in said if message["type"] == "report")


def gang_of_the_platform(gang: Gang) -> list[dict]:
    """Run a gang under the platform's own launcher, this process being control, which answers nothing: all that it says."""
    near, far = socket.socketpair()
    with near, far, subprocess.Popen(
        [sys.executable, "-m", "modelyard.jobs.worker", str(far.fileno())], pass_fds=[far.fileno()]
    ) as process:  # fmt: skip
        far.close()
        near.sendall(encode(gang.to_wire()))
        with near.makefile("rb") as lines:
            said = [json.loads(line) for line in lines]
        assert process.wait(timeout=30) == 0
    return said


def test_a_gang_larger_than_its_batches_is_refused_by_all(launch, numbers, tmp_path):
    results = launch(tmp_path, {**EXACT, "batch_size": 1}, numbers, 2)
    assert {code for code, _ in results} == {3}
    assert "use a larger batch_size or fewer ranks" in results[0][1]


if __name__ == "__main__":
    serve(rank_main)
