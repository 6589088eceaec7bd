"""`make demo` runs, from a copy of its folder, so that whoever looks into demo/yard keeps it; what it writes is whole."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parents[2] / "demo"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("clone") / "demo"
    folder.mkdir()
    for script in DEMO.glob("*.py"):
        shutil.copy(script, folder)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODELYARD_")}
    done = subprocess.run([sys.executable, folder / "demo.py"], capture_output=True, text=True, env=kept)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


def test_it_says_how_good_how_fast_and_how_long(result: dict[str, Any]) -> None:
    accuracies = result["accuracies"]
    shares = [accuracies["train"], accuracies["select"], accuracies["client"], *accuracies["report"].values()]
    assert set(accuracies["report"]) == {"original", "chosen"}
    assert all(isinstance(share, float) and 0.9 < share <= 1 for share in shares), accuracies
    assert accuracies["report"]["chosen"] > accuracies["report"]["original"] - 0.03
    assert 0 < result["p50"] <= result["p99"] < 5000
    assert result["units"] == {"p50": "ms", "p99": "ms"}
    assert result["calls"] == result["splits"]["report"] + 1
    steps = {"import", "train", "optimise", "deploy", "infer", "receipt", "all"}
    assert {step: type(seconds) for step, seconds in result["seconds"].items()} == dict.fromkeys(steps, float)


def test_it_says_which_data_and_who_learned_what(result: dict[str, Any]) -> None:
    assert set(result["splits"]) == {"train", "calibrate", "select", "report"}
    assert sum(result["splits"].values()) == 1797
    assert [rank["rank"] for rank in result["ranks"]] == [0, 1]
    pids = {rank["pid"] for rank in result["ranks"]}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert all(
        isinstance(rank["samples"], int) and rank["samples"] >= result["splits"]["train"] // 2 for rank in result["ranks"]
    )
    epochs = {name: len(series) for name, series in result["curve"].items()}
    assert epochs["accuracy"] == epochs["select_accuracy"] > 1
    assert all(math.isfinite(loss) for loss in result["curve"]["loss"])


def test_it_says_what_was_chosen_from_what(result: dict[str, Any]) -> None:
    variants = {row["variant"]: row for row in result["variants"]}
    assert set(variants) >= {"original", "fp32", "static-int8", "dynamic-int8"}
    assert result["chosen"] in variants
    assert [row["chosen"] for row in variants.values()].count(True) == 1


def test_its_receipt_goes_from_the_answer_down_to_the_data(result: dict[str, Any]) -> None:
    receipt, hashes = result["receipt"], result["hashes"]
    assert all(len(digest) == 64 and int(digest, 16) for digest in hashes.values())
    assert receipt["deployment"] == "digits"
    assert hashes[receipt["model"]] == receipt["lineage"]["hash"]
    told = json.dumps(receipt["lineage"])
    assert all(reference in told and digest in told for reference, digest in hashes.items())
    assert [job["kind"] for job in receipt["jobs"]] == ["optimise", "train", "import-dataset"]
    serving = [row for row in receipt["usage"] if row["kind"] == "serving"]
    assert sum(row["calls"] for row in serving) >= result["calls"]
    assert all(row["cpu_seconds"] > 0 for row in receipt["usage"] if row["kind"] == "job")
    assert {"python", "processors", "machine", "torch", "onnxruntime"} <= set(result["machine"])
