from __future__ import annotations

import re
from typing import Any

from modelyard.cli.jobs import job_row, jobs_table, silent, unshown


def unstyled(text: str) -> str:
    return re.sub(r"\x1b\[\d*m", "", text)


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
        "position": None,
        "attempt": 1,
        "priority": 0,
    }
    return whole | changes


def test_a_waiting_job_says_why() -> None:
    assert job_row(job(why="2 ranks wait for 1 free processor"))["note"] == "2 ranks wait for 1 free processor"


def test_place_and_priority_are_shown_where_there_are_any() -> None:
    header, row = unstyled(jobs_table([job(position=3, priority=-5, why="waits")])).splitlines()
    assert header.split() == ["JOB", "KIND", "TARGET", "STATE", "PLACE", "PRIORITY", "PROGRESS", "NOTE"]
    assert row.split() == ["j1", "train", "cnn", "queued", "3", "-5", "waits"]
    assert unstyled(jobs_table([job()])).split()[:6] == ["JOB", "KIND", "TARGET", "STATE", "PROGRESS", "NOTE"]
    assert jobs_table([]) == "No jobs on their way."


def test_a_failed_job_says_its_error() -> None:
    error = {"code": "invalid_request", "message": "no column\nTraceback:\n  …"}
    assert job_row(job(state="failed", error=error))["note"] == "no column"


def test_one_that_was_started_before_says_so() -> None:
    assert job_row(job(state="starting"))["note"] is None
    assert job_row(job(state="running", attempt=3))["note"] == "attempt 3"
    assert job_row(job(state="running", attempt=3, why="makes room"))["note"] == "makes room"
    assert job_row(job(state="succeeded", attempt=3))["note"] is None


def test_a_running_job_says_how_far_it_is_and_an_ended_one_what_it_made() -> None:
    assert job_row(job(progress={"done": 1, "total": 4, "unit": "epochs"}))["progress"] == "1/4 epochs"
    assert job_row(job(outputs=[{"reference": "cnn@3"}]))["target"] == "cnn@3"
    assert job_row(job(target=None))["target"] is None


def test_a_job_that_wrote_nothing_says_its_state() -> None:
    assert silent(job(state="succeeded")) == "Job j1 has written nothing; it is succeeded."
    assert silent(job(why="waits for 1 free processor")).endswith("it is queued: waits for 1 free processor")
    assert silent(job(state="failed", error={"code": "crashed", "message": "no column"})).endswith("failed: no column")


def test_what_is_not_shown_of_the_queue_is_counted() -> None:
    shown = [job(state="running"), job(), job()]
    assert unshown(shown, {"queued": 1002, "starting": 0, "running": 1}) == (
        "\n… and 1,000 more in the queue; `modelyard ps --all` shows them"
    )
    assert unshown(shown, {"queued": 2, "starting": 0, "running": 1}) == ""
