"""Meshes through the whole platform: asked for at submission, run by a gang in its sandbox, published as one whole model."""

import csv
import re
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from modelyard.client import Yard
from modelyard.errors import Invalid
from modelyard.testing import yard

HERE = Path(__file__).parent
COLUMNS = [f"x{at}" for at in range(12)]
CONFIG = {
    "epochs": 2,
    "batch_size": 16,
    "lr": 0.01,
    "dtype": "float64",
    "clip": 1.0,
    "checkpoint_steps": 3,
    "module": {"file": "mesh_models.py", "name": "MLP", "arguments": {"outputs": 1}, "inputs": COLUMNS, "target": "y"},
}


@pytest.fixture(scope="module")
def owner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mesh")
    draw = np.random.default_rng(0)
    x = draw.normal(size=(120, len(COLUMNS)))
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "y"])
        writer.writerows([*row, sum(row[:3])] for row in x.tolist())
    with yard(folder / "yard") as client:
        client.import_dataset("rows", folder / "rows.csv", target="y")
        yield client


def train(owner: Yard, folder: Path, ranks: int, **more):
    code = folder.with_name("code")
    code.mkdir(exist_ok=True)
    (code / "mesh_models.py").write_text((HERE / "mesh_models.py").read_text() + "\nPARALLEL = MLP_PARALLEL\n")
    version = owner.train("mlp", "rows", "module", ranks=ranks, code=code, **{**CONFIG, **more})
    weights = torch.load(owner.fetch(version["reference"], folder) / "model.pth", weights_only=True)
    return owner.job(version["job"]), weights


@pytest.fixture(scope="module")
def alone(owner, tmp_path_factory):
    return train(owner, tmp_path_factory.mktemp("alone") / "m", 1)[1]


@pytest.mark.parametrize("mesh", ["shard=2", "tensor=2", "pipe=2"])
def test_a_gang_on_a_mesh_publishes_what_one_process_does(owner, alone, tmp_path, mesh):
    job, weights = train(owner, tmp_path / "m", 2, mesh=mesh)
    assert job["facts"]["0"]["mesh"] == mesh
    waited = [job["facts"][rank]["step_ms"]["communication"] for rank in ("0", "1")]
    assert min(waited) >= 0 < max(waited)  # who always comes last waits for nobody
    assert list(weights) == list(alone)
    assert max(float((weights[name] - alone[name]).abs().max()) for name in alone) <= 1e-12


def test_auto_says_why(owner, tmp_path):
    job, _ = train(owner, tmp_path / "m", 2, mesh="auto", epochs=1)
    facts = job["facts"]["0"]
    assert facts["mesh"] == "data=2"
    assert "parameters take" in facts["mesh_because"]


def test_a_mesh_of_other_ranks_is_refused_before_a_gang_starts(owner, tmp_path):
    before = len(owner.jobs())
    with pytest.raises(Invalid, match=r"of 4 ranks \(data 2 × shard 2\); the job has 2: give --ranks 4"):
        train(owner, tmp_path / "m", 2, mesh="data=2,shard=2")
    with pytest.raises(Invalid, match="axis 'depth'"):
        train(owner, tmp_path / "m", 2, mesh="depth=2")
    assert len(owner.jobs()) == before


FRAGILE = """
import torch

PARALLEL = MLP_PARALLEL


class Fragile(MLP):
    \"\"\"Says which rows it learns from. Among others it fails after some steps.\"\"\"

    steps = 0

    def forward(self, x):
        if self.training:
            self.steps += 1
            if torch.distributed.is_initialized() and self.steps > 15:
                raise RuntimeError("the machine was needed for something else")
            print("learns", *(repr(float(number)) for number in x[:, 0]), flush=True)
        return super().forward(x)
"""


def learned(owner: Yard, job: str) -> list[list[str]]:
    """The rows of each step that a job computed, of all ranks: by their first number."""
    by_rank: dict[int, list[list[str]]] = {}
    for event in owner.events(job):
        if event["type"] == "log" and event["text"].startswith("learns"):
            by_rank.setdefault(event["rank"], []).append(event["text"].split()[1:])
    return [list(chain(*parts)) for parts in zip(*by_rank.values(), strict=False)]


def test_a_job_that_failed_is_resumed_by_another_on_other_ranks(owner, tmp_path):
    (tmp_path / "mesh_models.py").write_text((HERE / "mesh_models.py").read_text() + FRAGILE)
    module = {**CONFIG["module"], "name": "Fragile"}
    config = {**CONFIG, "module": module, "code": tmp_path / "mesh_models.py", "epochs": 6, "checkpoint_steps": 2}
    alone = owner.train("fragile", "rows", "module", **config)
    failed = owner.train("fragile", "rows", "module", ranks=2, wait=False, **config)["id"]
    with pytest.raises(Invalid, match="needed for something else"):
        owner.wait(failed)
    with pytest.raises(Invalid, match=f"of job {failed} is of other work: option batch_size is 8, there 16"):
        owner.train("fragile", "rows", "module", resume=failed, **{**config, "batch_size": 8})
    with pytest.raises(Invalid, match="is succeeded; one that failed or was cancelled is resumed"):
        owner.train("fragile", "rows", "module", resume=alone["job"], **config)
    version = owner.train("fragile", "rows", "module", resume=failed, **config)
    job = owner.job(version["job"])
    assert (job["resume"], job["facts"]["0"]["resumed_from"], job["ranks"], job["attempt"]) == (failed, failed, 1, 1)
    assert owner.lineage(version["reference"])["resumed"] == failed
    kept = [tmp_path / name for name in ("alone", "resumed")]
    one, other = (
        torch.load(owner.fetch(made["reference"], folder) / "model.pth", weights_only=True)
        for made, folder in zip((alone, version), kept, strict=True)
    )
    assert max(float((one[name] - other[name]).abs().max()) for name in one) <= 1e-12
    (line,) = [line for line in owner.logs(job["id"]) if line.startswith("resumed after epoch")]
    whole = learned(owner, alone["job"])
    steps = len(whole) // 6
    epoch, step = re.findall(r"epoch (\d+) of 6(?:, step (\d+))?", line)[0]
    done = int(epoch) * steps + int(step or 0)
    assert 0 < done <= 15
    rows = [*learned(owner, failed)[:done], *learned(owner, job["id"])]
    assert len(rows) == 6 * steps
    for at in range(6):
        assert sorted(chain(*rows[at * steps : (at + 1) * steps])) == sorted(chain(*whole[:steps]))
