"""The README's promises run: its Python block and its bash block, as a reader would paste them, against a real platform."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modelyard.testing import yard

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [body for found, body in BLOCKS if found == language]


@pytest.mark.timeout(600)
def test_every_block_runs(tmp_path: Path) -> None:
    data, here = tmp_path / "yard", tmp_path / "here"
    here.mkdir()
    shutil.copy(ROOT / "examples" / "seven.png", here)
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "MODELYARD_DATA": str(data), "PATH": f"{binaries}:{os.environ['PATH']}"}
    with yard(data):
        for body in blocks("python"):
            done = subprocess.run([sys.executable, "-c", body], cwd=here, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith("7 "), done.stdout
        for body in blocks("bash"):
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", body], cwd=here, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr + done.stdout
            assert "my_" in done.stdout, "the key that was made is printed once"
            curl = re.search(r"^curl .*$", done.stdout, flags=re.MULTILINE)
            assert curl is not None, "deploy prints a curl line"
            answer = subprocess.run(["bash", "-c", curl[0]], cwd=here, env=environment, capture_output=True, text=True)
            assert '"model_name":"digits"' in answer.stdout, answer.stdout + answer.stderr


def test_it_has_both_ways_in() -> None:
    assert blocks("python")
    assert blocks("bash")


def test_the_targets_it_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make (\w+)", text, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / link).exists(), link
