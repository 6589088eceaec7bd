from __future__ import annotations

from typing import Any

from modelyard.cli.jobs import job_row
from modelyard.cli.variants import cell, variants_table


def job(**changes: Any) -> dict[str, Any]:
    whole = {
        "id": "j1",
        "kind": "train",
        "target": {"kind": "model", "name": "cnn"},
        "state": "queued",
        "error": None,
        "progress": None,
        "outputs": [],
        "why": None,
    }
    return whole | changes


def test_a_waiting_job_says_why() -> None:
    assert job_row(job(why="2 ranks wait for 1 free processor")) == (
        "j1",
        "train",
        "cnn",
        "queued",
        None,
        "2 ranks wait for 1 free processor",
    )


def test_a_failed_job_says_its_error() -> None:
    assert job_row(job(state="failed", error={"code": "invalid_request", "message": "no column"}))[-1] == "no column"


def test_a_running_job_says_how_far_it_is_and_an_ended_one_what_it_made() -> None:
    assert job_row(job(progress={"done": 1, "total": 4, "unit": "epochs"}))[4] == "1/4 epochs"
    assert job_row(job(outputs=[{"reference": "cnn@3"}]))[2] == "cnn@3"
    assert job_row(job(target=None))[2] is None


def test_variants_are_a_table_of_whatever_was_measured() -> None:
    rows = [
        {"variant": "fp32", "accuracy": 0.98123, "interval": [0.96, 0.99], "size": 2048, "chosen": False, "more": {"a": 1}},
        {"variant": "static-int8", "accuracy": 0.979, "interval": [0.95, 0.99], "size": 1024, "chosen": True, "more": {}},
    ]
    text = variants_table({"0": {"variants": rows}})
    assert "0.95–0.99" in text
    assert "1.0 KiB" in text
    assert "more" not in text
    assert text.splitlines()[2].rstrip().endswith("✓")
    assert variants_table({}) == ""
    assert cell("x", None) is None
