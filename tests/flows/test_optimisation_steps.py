"""Steps of optimisation through the whole platform: a command as people type it, a version that serves, and jobs that fail as
jobs and nothing more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modelyard.cli.edge import assemble
from modelyard.client import Yard
from modelyard.errors import Invalid
from modelyard.testing import yard

DIES = """\
import os
import torch
from torch import nn


class Dies(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        if torch.compiler.is_exporting():
            os._exit(7)
        return self.layer(x)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("yard")


@pytest.fixture(scope="module")
def platform(data: Path) -> Iterator[Yard]:
    with yard(data) as platform:
        platform.import_dataset("digits", "sklearn:digits")
        small = {"width": 8, "blocks": 2}
        platform.train("digits-cnn", "digits@1", "image-classifier", epochs=4, image_classifier=small)
        yield platform


def test_steps_are_one_version_that_says_how_it_was_made(platform: Yard) -> None:
    said: list[str] = []
    steps = ("prune:channels=0.5", "distil:epochs=3", "qat:epochs=1", "quantize:static-int8,float_layers=head")

    def hear(event) -> None:
        said.append(str(event.get("text", "")))

    version = platform.optimize("digits-cnn@1", steps=steps, max_accuracy_drop=90, seconds=0.2, on_event=hear)
    told = version["metadata"]
    assert told["variant"] == "prune50+distil+qat+static-int8"
    assert [step["step"] for step in told["steps"]] == list(steps)
    assert told["steps"][0]["parameters"][1] < 0.35 * told["steps"][0]["parameters"][0]
    assert told["distillation"].keys() == {"select", "report"}
    assert told["distillation"]["report"].keys() == {"rows", "teacher", "distilled", "control", "gain", "against"}
    assert told["select"]["size"] * 4 < 64_000
    original, made = platform.job(version["job"])["facts"]["0"]["table"]
    assert original["memory"] > 2 * made["memory"] > 2 << 20  # measured inside the sandbox; torch takes more than a graph
    assert any(line.startswith("control: epoch 3 of 3") for line in said)
    assert platform.deploy("digits", version["reference"])["state"] == "ready"
    with pytest.raises(Invalid, match="already the variant"):
        platform.optimize(version["reference"], dataset="digits@1", steps=["finetune:epochs=1"])


def test_the_command_says_the_same(platform: Yard, data: Path) -> None:
    words = ["optimize", "digits-cnn@1", "--on", "digits@1", "--max-accuracy-drop", "90", "--set", "seconds=0.2", "--follow"]
    words += ["--with", "prune:channels=0.5,finetune=1", "--with", "quantize:weights-int8", "--json", "--data", str(data)]
    ran = CliRunner().invoke(assemble(), words)
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert found["metadata"]["variant"] == "prune50+weights-int8"
    assert [row["variant"] for row in found["facts"]["table"]] == ["original", "prune50+weights-int8"]


def test_a_step_that_is_none_is_refused_at_submission(platform: Yard) -> None:
    with pytest.raises(Invalid, match="'prunes' is no step of optimisation; did you mean 'prune'"):
        platform.optimize("digits-cnn@1", steps=["prunes:channels=0.5"])
    with pytest.raises(Invalid, match="'qat' comes after 'quantize'"):
        platform.optimize("digits-cnn@1", steps=["quantize", "qat"])


def test_a_converter_that_dies_is_a_failed_job(platform: Yard, tmp_path: Path) -> None:
    import torch

    (tmp_path / "model.py").write_text(DIES)
    torch.save({"layer.weight": torch.eye(2), "layer.bias": torch.zeros(2)}, tmp_path / "dies.pth")
    (tmp_path / "rows.csv").write_text("a,b,kind\n" + "".join(f"{i},{i * i},{'xy'[i % 2]}\n" for i in range(200)))
    platform.import_dataset("rows", tmp_path / "rows.csv", target="kind")
    config = {"name": "Dies", "inputs": ["a", "b"], "loss": "cross-entropy"}
    platform.train("dies", "rows@1", "module", code=tmp_path, epochs=1, module=config)
    with pytest.raises(Invalid, match="exit status 7"):
        platform.optimize("dies@1", steps=["finetune:epochs=1"])
    assert platform.jobs()[0]["state"] == "failed"


def test_a_search_makes_its_best_trial_a_version_that_says_how(platform: Yard, data: Path, tmp_path: Path) -> None:
    space = "channels=[0,0.5],epochs=[1],quantize=[weights-int8]"
    words = ["optimize", "digits-cnn@1", "--max-accuracy-drop", "90", "--goal", "size", "--space", space, "--trials", "2"]
    ran = CliRunner().invoke(assemble(), [*words, "--set", "seconds=0.2", "--follow", "--data", str(data)])
    assert ran.exit_code == 0, ran.output
    best = platform.version("digits-cnn@best")
    told = best["metadata"]["search"]
    assert best["metadata"]["variant"] == "prune50+weights-int8"
    assert told["command"] in ran.stdout
    assert "--with prune:channels=0.5,finetune=1 --with quantize:weights-int8" in told["command"]
    assert platform.job(best["job"])["parent"] == told["job"]
    saved = CliRunner().invoke(assemble(), ["search", told["job"], "--save", str(tmp_path / "report"), "--data", str(data)])
    assert saved.exit_code == 0, saved.output
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["pareto.png", "pareto.svg", "search.json"]
    again = platform.optimize("digits-cnn@1", max_accuracy_drop=80, goal="size", space=space, trials=2, seconds=0.2)
    assert again["job"] == best["job"], "the same on the same machine with the same libraries is not made again"


def test_a_search_stops_a_trial_that_gets_nowhere(platform: Yard) -> None:
    """One channel in eight does not tell ten digits apart."""
    space = "channels=[0,0.87],epochs=[60],quantize=[none]"
    best = platform.optimize("digits-cnn@1", max_accuracy_drop=1.0, space=space, trials=2, seconds=0.2)
    facts = platform.job(best["metadata"]["search"]["job"])["facts"]["0"]
    whole, cut = facts["trial 000"], facts["trial 001"]
    assert (whole["state"], cut["state"]) == ("succeeded", "stopped")
    assert cut["verdict"].startswith("stopped: loses ")
    assert cut["verdict"].endswith(" of 60 epochs")
    assert platform.job(cut["job"])["state"] == "cancelled"
