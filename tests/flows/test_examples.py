"""Every example runs, as its reader would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*/run.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.parent.name)
def test_it_runs(example: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODELYARD_")}
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, env=kept)
    assert done.returncode == 0, done.stdout + done.stderr
