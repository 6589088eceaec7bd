"""The README's promises run: its Python block and its bash blocks, as a reader would paste them, against a real platform."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import helper
from safetensors.torch import load_file

from modelyard.client import Yard
from modelyard.testing import yard

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [body for found, body in BLOCKS if found == language]


def soon_done(body: str) -> str:
    """A block, its training and its measuring cut short."""
    for written, run in (
        ("--ranks 2 --follow", "--ranks 2 --epochs 4 --follow"),
        ("--max-accuracy-drop 1.0 --follow", "--max-accuracy-drop 1.0 --set seconds=0.2 --follow"),
    ):
        assert body.count(written) == 1, written
        body = body.replace(written, run)
    return body


def files_of_the_reader(here: Path) -> None:
    """What the blocks take for granted: a picture of a digit, and two models that were made elsewhere."""
    shutil.copy(ROOT / "examples" / "seven.png", here)
    shutil.copy(ROOT / "examples" / "simple_model" / "model.py", here)
    layers = {"fc1.weight": (20, 10), "fc1.bias": (20,), "fc2.weight": (1, 20), "fc2.bias": (1,)}
    torch.save({name: torch.rand(shape) for name, shape in layers.items()}, here / "weights.pth")
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["rows", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "positive", ends[:1], ends[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, here / "model.onnx")


def came_in(platform: Yard, here: Path) -> None:
    """The models made elsewhere answer, and the fetched one is whole."""
    positive, simple = (platform.version(name) for name in ("m", "n"))
    assert (positive["version"], simple["version"]) == (1, 1)
    platform.deploy("m", "m")
    assert platform.predict("m", {"x": [[-1, 0, 2]]})["y"].tolist() == [[0, 0, 2]]
    assert {"weights.pth", "model.py"} <= {path.name for path in platform.fetch("n", here / "n").iterdir()}
    (weights,) = (here / "somewhere").glob("*.safetensors")
    assert load_file(weights)


@pytest.mark.skipif(not shutil.which("curl"), reason="the line that `deploy` prints needs curl")
@pytest.mark.timeout(600)
def test_every_block_runs(tmp_path: Path) -> None:
    data, here = tmp_path / "yard", tmp_path / "here"
    here.mkdir()
    files_of_the_reader(here)
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "MODELYARD_DATA": str(data), "PATH": f"{binaries}:{os.environ['PATH']}"}
    with yard(data) as platform:
        for body in blocks("python"):
            done = subprocess.run([sys.executable, "-c", body], cwd=here, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith("7 "), done.stdout
        said = ""
        loop, others = blocks("bash")
        for body in (soon_done(loop), others):
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", body], cwd=here, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr + done.stdout
            said += done.stdout
        assert "my_" in said, "the key that was made is printed once"
        curl = re.search(r"^curl .*$", said, flags=re.MULTILINE)
        assert curl is not None, "deploy prints a curl line"
        answer = subprocess.run(["bash", "-c", curl[0]], cwd=here, env=environment, capture_output=True, text=True)
        assert '"model_name":"digits"' in answer.stdout, answer.stdout + answer.stderr
        came_in(platform, here)


def test_it_has_both_ways_in_and_no_line_of_ours_that_nobody_runs() -> None:
    assert blocks("python")
    assert len(blocks("bash")) == 2
    lines = "".join(blocks("console")).splitlines()
    assert [line for line in lines if line.startswith("modelyard")] == ["modelyard up"]


def test_the_targets_it_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make (\w+)", text, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / link).exists(), link
