"""Meshes through the whole platform: asked for at submission, run by a gang in its sandbox, published as one whole model."""

import csv
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
    assert all(job["facts"][rank]["step_ms"]["communication"] > 0 for rank in ("0", "1"))
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
