"""A sweep for people: the table of its trials, and what is shown while it runs."""

from typing import Any

import pytest

from modelyard.cli.sweep import Trials, found_text, swept_text, trials_text


def row(number: int, **more: Any) -> dict[str, Any]:
    known = {
        "number": number,
        "parameters": {"lr": 0.00123456, "width": 8},
        "job": f"j{number}",
        "state": "running",
        "epoch": 3,
    }
    return {**known, "score": None, "seconds": None, "error": None, **more}


ROWS = [row(0, state="succeeded", score=0.98765, seconds=12.34), row(1, state="failed", error="it diverged")]
FACTS = {"metric": "select_accuracy", "best": 0, "trial 000": ROWS[0], "trial 001": ROWS[1]}
JOB = {"id": "s1", "kind": "sweep", "facts": {"0": FACTS}}


def test_the_best_trial_is_marked() -> None:
    lines = found_text(JOB, ROWS).splitlines()
    assert "SELECT_ACCURACY" in lines[0].upper()
    assert any("→ 0" in line and "0.9877" in line and "0.001235" in line for line in lines)
    assert any("  1" in line and "it diverged" in line for line in lines)


def test_without_trials_it_says_so() -> None:
    assert trials_text([], None) == "No trial yet."


def test_at_the_end_it_says_where_the_plot_is() -> None:
    version = {"reference": "cnn@3", "name": "cnn", "task": None, "artefact": "ab" * 32}
    assert "registered cnn@3 · abababababab as cnn@best\n`modelyard sweep s1 --save FOLDER`" in swept_text(JOB, version)


def test_elsewhere_than_on_a_terminal_its_log_tells_the_trials(capsys: pytest.CaptureFixture[str]) -> None:
    with Trials() as live:
        live.see({"type": "report", "rank": 0, "facts": {"trial 000": ROWS[0], "metric": "select_accuracy"}})
        live.see({"type": "log", "rank": 0, "text": "trial 0: succeeded"})
    assert capsys.readouterr().err == "rank 0 │ trial 0: succeeded\n"
