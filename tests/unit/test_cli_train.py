from __future__ import annotations

from modelyard.cli.train import scored


def test_training_says_how_good_the_version_is_on_the_select_split() -> None:
    metrics = {"train": {"loss": 0.1}, "select": {"loss": 0.2, "accuracy": 0.98148}}
    assert scored({"metadata": {"metrics": metrics}}) == " · select accuracy 0.9815"
    assert scored({"metadata": {"metrics": {"select": {"loss": 0.25}}}}) == " · select loss 0.2500"
    assert scored({"metadata": {}}) == ""
