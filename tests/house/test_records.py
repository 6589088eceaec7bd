"""A benchmark's record says what was measured and of which commit; a script that misses a target says so to who runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
RECORDS = sorted((BENCHMARKS / "results").glob("*.json"))
PAGE = (ROOT / "docs" / "benchmarks.md").read_text()
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


def recorded() -> str:
    """What the page says of the records there are."""
    return PAGE.partition("## What is recorded so far\n")[2].partition("\n## ")[0].strip()


def test_the_page_names_the_records_there_are() -> None:
    names = re.findall(r"`([a-z]+)`", recorded().partition(".")[0])
    assert sorted(names) == [path.stem for path in RECORDS]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_is_of_a_full_run_at_a_commit(path: Path) -> None:
    record = json.loads(path.read_text())
    assert (record["name"], record["quick"]) == (path.stem, False)
    assert re.fullmatch(r"[0-9a-f]{12,40}", record["commit"]), f"{record['commit']}: '+' is a working tree that nobody has"


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_every_target_is_met_or_the_page_says_which_is_not(path: Path) -> None:
    """A miss is told below the records' names, by script and figure: `training`: `2 ranks, FSDP2` …"""
    figures = json.loads(path.read_text())["figures"]
    assert figures
    missed = [name for name, figure in figures.items() if figure["met"] is False]
    told = [line for line in recorded().splitlines() if f"`{path.stem}`" in line and "missed" in line]
    assert [name for name in missed if not any(f"`{name}`" in line for line in told)] == []
