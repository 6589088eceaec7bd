"""A training that makes room for one of higher priority, on a real platform: it is sent back to its checkpoint, waits, goes on
and ends with the weights of a run that nobody disturbed, bit for bit. What `modelyard ps` says meanwhile is looked at.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attack_tools import eventually
from typer.testing import CliRunner

from modelyard.cli.edge import assemble
from modelyard.client import Yard
from modelyard.testing import yard

CODE = """
import time
from torch import nn

class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, x):
        time.sleep(0.06 * self.training)
        return self.layers(x)
"""
CONFIG = {"epochs": 5, "batch_size": 24, "checkpoint_steps": 2, "module": {"name": "Line", "inputs": ["x"], "target": "y"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("platform") / "yard"


@pytest.fixture(scope="module")
def platform(data: Path) -> Iterator[Yard]:
    data.mkdir()
    (data.parent / "model.py").write_text(CODE)
    (data.parent / "numbers.csv").write_text("x,y\n" + "".join(f"{n / 100},{n / 50 + 1}\n" for n in range(200)))
    with yard(data, MODELYARD_JOB_CPUS="2") as client:
        client.import_dataset("numbers", data.parent / "numbers.csv", target="y")
        yield client


def train(platform: Yard, data: Path, name: str, **more: Any) -> str:
    code = data.parent / "model.py"
    return str(platform.train(name, "numbers", "module", code=code, ranks=2, wait=False, **{**CONFIG, **more})["id"])


def ps(data: Path) -> dict[str, str]:
    """What a person reads, by job."""
    text = CliRunner().invoke(assemble(), ["ps", "--data", str(data)], env={"COLUMNS": None}, catch_exceptions=False).stdout
    return {line.split()[0]: " ".join(line.split()[2:]) for line in text.split("\n\n")[0].splitlines()}


def kept(data: Path, job: str) -> bool:
    return (data / "store" / "projects" / "default" / "checkpoints" / job / "latest.json").exists()


def used(platform: Yard, job: str, what: str) -> int:
    return sum(row[what] for row in platform.usage() if row["subject"] == job)


def test_a_training_makes_room_and_ends_as_if_nobody_had_come(platform: Yard, data: Path) -> None:
    quiet = platform.result(train(platform, data, "m"))
    low = train(platform, data, "m", priority=-1)
    eventually(lambda: kept(data, low) and platform.job(low)["state"] == "running", 60)
    pids = platform.job(low)["pids"]
    for pid in pids:  # so that what is said while room is made can be read at leisure
        os.kill(pid, signal.SIGSTOP)
    high = train(platform, data, "h", priority=5, epochs=1)
    eventually(lambda: platform.job(low)["why"], 20)
    said = ps(data)
    assert said[low].startswith("m running -1 ")
    assert said[low].endswith("makes room for a job of higher priority")
    assert said[high] == "h queued 1 5 waits for 2 CPUs, 0 of 2 are free; 1st; room is being made for it"
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: (platform.job(low)["why"] or "").startswith("waits"), 40)
    said = ps(data)
    assert said[low].startswith("m queued 1 -1 ")
    back = "1st; it made room for a job of higher priority and goes on from its checkpoint"
    assert said[low].endswith(f"waits for 2 CPUs, 0 of 2 are free; {back}")
    assert said[high].startswith(("h starting 5", "h running 5"))
    platform.wait(high)
    again = platform.result(low)
    assert again["artefact"] == quiet["artefact"]
    job = platform.job(low)
    assert (job["attempt"], job["preempted"]) == (2, 1)
    assert platform.job(high)["finished"] < job["finished"]
    lines = list(platform.logs(low))
    assert lines[0] == "attempt 1 made room for a job of higher priority; it goes on from its checkpoint"
    assert lines[1].startswith("resumed after")
    assert (used(platform, low, "calls"), used(platform, low, "errors")) == (1, 0)
    assert abs(used(platform, low, "cpu_us") / 1e6 - job["cpu_seconds"]) < 0.01


@pytest.mark.soak
def test_one_that_does_not_hear_is_ended_and_goes_back_all_the_same(platform: Yard, data: Path) -> None:
    low = train(platform, data, "m", priority=-1)
    eventually(lambda: kept(data, low) and platform.job(low)["state"] == "running", 60)
    os.kill(platform.job(low)["pids"][1], signal.SIGSTOP)
    platform.wait(train(platform, data, "h", priority=5, epochs=1))
    platform.wait(low)
    assert (platform.job(low)["attempt"], platform.job(low)["preempted"]) == (2, 1)
    assert "not stopped within 10 s of being asked, and killed: rank 0, rank 1" in list(platform.logs(low))
