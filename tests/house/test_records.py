"""A benchmark's record says what was measured and of which commit; a script that misses a target says so to who runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
SCRIPT = """
from record import recording
with recording("trial", "") as record:
    record.figure("recorded", 1, "s")
    record.figure("met", 1, "s", most=2)
    record.figure("bounded", {measured}, "s", most=2)
"""


@pytest.mark.parametrize(("measured", "more", "code"), [(1, [], 0), (3, [], 1), (3, ["--quick"], 0)])
def test_a_missed_target_fails_the_script(tmp_path: Path, measured: int, more: list[str], code: int) -> None:
    run = [sys.executable, "-c", SCRIPT.format(measured=measured), "--out", str(tmp_path / "trial.json"), *more]
    assert subprocess.run(run, cwd=BENCHMARKS, check=False).returncode == code
    assert json.loads((tmp_path / "trial.json").read_text())["figures"]["bounded"]["met"] == (measured <= 2)
