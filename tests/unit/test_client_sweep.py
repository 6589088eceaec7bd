"""What is submitted for a sweep, and how its trials and its report are found."""

from pathlib import Path
from typing import Any

import pytest

from modelyard.client import sweep as module
from modelyard.client.sweep import asked, save_report, table
from modelyard.errors import Invalid, NotFound

JOB = {"id": "s1", "kind": "sweep", "state": "succeeded", "outputs": [{"name": "report", "hash": "ab"}]}


def test_without_a_sweep_it_is_a_training() -> None:
    assert asked({"epochs": 3}, 2, None, 20, None) == ("train", {"epochs": 3}, 2)


def test_with_one_the_ranks_are_each_trials() -> None:
    kind, config, ranks = asked({"epochs": 3}, 2, {"lr": [1, 2]}, 5, 1)
    assert (kind, ranks) == ("sweep", 1)
    assert config == {"train": {"epochs": 3}, "space": {"lr": [1, 2]}, "trials": 5, "parallel": 1, "ranks": 2}
    assert asked({}, 1, "lr=1..2", 5, None)[1]["space"] == "lr=1..2"


def test_how_to_choose_is_the_sweeps_and_no_trainings() -> None:
    said = {"epochs": 3, "metric": "select_f2", "direction": "maximise", "grace": 2}
    config = asked(said, 1, "lr=1..2", 5, None)[1]
    assert config["train"] == {"epochs": 3}
    assert {name: config[name] for name in ("metric", "direction", "grace")} == {k: said[k] for k in list(said)[1:]}
    with pytest.raises(Invalid, match="'metric' says how a sweep chooses between trials; give `sweep` what to search"):
        asked(said, 1, None, 20, None)


def test_trials_come_in_order() -> None:
    facts = {"0": {"trial 010": {"number": 10}, "metric": "a", "trial 002": {"number": 2}}}
    assert [row["number"] for row in table({**JOB, "facts": facts})] == [2, 10]
    assert table({**JOB, "facts": {}}) == []
    with pytest.raises(Invalid, match="Job s1 is no sweep but of kind 'train'"):
        table({**JOB, "kind": "train"})


def test_the_report_is_fetched_by_its_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "load", lambda path: lambda wire, artefact, folder, told: Path(folder) / artefact)
    platform: Any = type("Platform", (), {"_wire": None})()
    assert save_report(platform, JOB, tmp_path) == tmp_path / "ab"
    with pytest.raises(NotFound, match="The sweep s1 is running and has no report"):
        save_report(platform, {**JOB, "state": "running", "outputs": []}, tmp_path)
