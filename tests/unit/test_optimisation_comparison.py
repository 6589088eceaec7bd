"""From answers to evidence: counts, slices, calibration, and rows that can tell nothing are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import r2_score
from tiny_datasets import write

from modelyard.data.datasets import Feature
from modelyard.errors import Invalid, NotFound
from modelyard.optimisation.comparison import by_column, by_label, calibration_error, compare
from modelyard.optimisation.evidence import Evidence, Paired, Resampled
from modelyard.optimisation.examples import Answers
from modelyard.optimisation.gate import GatePolicy, decide

WANTED = np.array([0, 0, 0, 1, 1, 1, 1, 2])
ORIGINAL = np.array([0, 0, 1, 1, 1, 1, 0, 2])
VARIANT = np.array([0, 1, 0, 1, 1, 0, 0, 2])


def found(**said: object) -> Evidence:
    given = {"split": "report", "slices": by_label(("a", "b", "c", "d"), WANTED), **said}
    return compare(Answers(ORIGINAL), Answers(VARIANT), WANTED, "accuracy", **given)  # type: ignore[arg-type]


def test_labels_are_counted_over_all_rows_and_by_class() -> None:
    evidence = found()
    assert evidence.drop == Paired(both=4, original=2, variant=1, neither=1)
    assert (evidence.original, evidence.variant, evidence.agreement) == (6 / 8, 5 / 8, 5 / 8)
    assert evidence.slices == {
        "label=a": Paired(1, 1, 1, 0),
        "label=b": Paired(2, 1, 0, 1),
        "label=c": Paired(1, 0, 0, 0),
        "label=d": Paired(0, 0, 0, 0),  # nothing is known of it, and that is said
    }
    assert (evidence.calibration, evidence.left_out, evidence.split) == (None, 0, "report")


def test_rows_that_do_not_count_are_left_out_of_everything() -> None:
    evidence = found(kept=np.arange(8) >= 3)
    assert (evidence.drop, evidence.left_out) == (Paired(3, 1, 0, 1), 3)
    assert evidence.slices["label=a"] == Paired(0, 0, 0, 0)


def test_numbers_are_resampled_over_all_rows_and_by_slice() -> None:
    random = np.random.default_rng(0)
    wanted = random.standard_normal(200)
    one, two = wanted + 0.1 * random.standard_normal(200), wanted + 0.3 * random.standard_normal(200)
    half = {"light=dim": np.arange(200) < 100}
    evidence = compare(Answers(one), Answers(two), wanted, "r2", split="report", slices=half, columns=("light",))
    lost = 100 * (r2_score(wanted, one) - r2_score(wanted, two))
    assert isinstance(evidence.drop, Resampled)
    assert (evidence.drop.rows, evidence.drop.drop) == (200, pytest.approx(lost))
    assert evidence.drop.quantiles[0] < lost < evidence.drop.most(0.95) < evidence.drop.quantiles[-1]
    assert evidence.slices["light=dim"].rows == 100
    assert evidence.slices["light=dim"].drop == pytest.approx(
        100 * (r2_score(wanted[:100], one[:100]) - r2_score(wanted[:100], two[:100]))
    )
    assert (evidence.original, evidence.variant) == (pytest.approx(r2_score(wanted, one)), pytest.approx(r2_score(wanted, two)))
    assert Evidence.from_json(evidence.to_json()) == evidence


@pytest.mark.parametrize(
    ("wanted", "metric", "what"),
    [
        (np.array([], int), "accuracy", "no row to evaluate on"),
        (np.array([1, 1, 1]), "accuracy", "All 3 rows to evaluate on are of one class"),
        (np.array([2.0, 2.0]), "r2", "All 2 rows to evaluate on are of one number"),
        (np.array([0.3, 0.1 + 0.2]), "r2", "All 2 rows to evaluate on are of one number"),
    ],
)
def test_rows_that_can_tell_nothing_are_refused(wanted: np.ndarray, metric: str, what: str) -> None:
    with pytest.raises(Invalid, match=what):
        compare(Answers(wanted), Answers(wanted), wanted, metric, split="report")  # type: ignore[arg-type]


def test_answers_that_are_no_numbers_are_refused() -> None:
    wanted = np.arange(3.0)
    with pytest.raises(Invalid, match="The variant answers NaN or infinity in 2 rows"):
        compare(Answers(wanted), Answers(np.array([0.0, np.nan, np.inf])), wanted, "r2", split="report")


def test_a_model_that_is_as_right_as_it_is_sure_is_calibrated() -> None:
    random = np.random.default_rng(0)
    sure = random.uniform(0.3, 1, 30_000)
    right = random.uniform(size=30_000) < sure
    assert calibration_error(sure, right) < 0.02
    assert calibration_error(np.full(30_000, 0.9), right) == pytest.approx(abs(0.9 - right.mean()), abs=0.02)
    assert calibration_error(np.ones(4), np.array([True, True, True, False])) == 0.25


def test_calibration_is_of_both_where_both_give_scores() -> None:
    sure = [np.full(8, 0.75), np.full(8, 0.95)]
    evidence = compare(
        Answers(ORIGINAL, sure[0]), Answers(VARIANT, sure[1]), WANTED, "accuracy", split="report", slices=by_label(None, WANTED)
    )
    assert evidence.calibration is not None
    one, two = (calibration_error(s, answers == WANTED) for s, answers in zip(sure, (ORIGINAL, VARIANT), strict=True))
    assert evidence.calibration == (pytest.approx(one), pytest.approx(two))
    assert compare(Answers(ORIGINAL, sure[0]), Answers(VARIANT), WANTED, "accuracy", split="report").calibration is None


def test_slices_by_a_column_of_the_dataset(tmp_path: Path) -> None:
    features = {
        "text": Feature(type="text"),
        "size": Feature(type="int"),
        "light": Feature(type="label", names=("dim", "bright")),
        "weight": Feature(type="float"),
    }
    rows = {"text": ["x", "y", "x"], "size": [10, 2, 10], "light": [0, 1, 1], "weight": [1.0, 2.0, 3.0]}
    dataset = write(tmp_path / "data", features, {"report": rows}, None)
    masks = {column: by_column(dataset, "report", column) for column in ("text", "size", "light")}
    assert {name: mask.tolist() for name, mask in masks["light"].items()} == {
        "light=bright": [False, True, True],
        "light=dim": [True, False, False],
    }
    assert list(masks["text"]) == ["text=x", "text=y"]
    assert masks["size"]["size=10"].tolist() == [True, False, True]
    with pytest.raises(Invalid, match="'weight' is of type float"):
        by_column(dataset, "report", "weight")
    with pytest.raises(NotFound, match="Did you mean 'light'"):
        by_column(dataset, "report", "ligth")


def test_a_column_whose_values_do_not_repeat_makes_no_slices(tmp_path: Path) -> None:
    rows = {"name": [f"n{number}" for number in range(300)]}
    dataset = write(tmp_path / "data", {"name": Feature(type="text")}, {"report": rows}, None)
    with pytest.raises(Invalid, match="'name' has 300 values in the split 'report'; slices take at most 200"):
        by_column(dataset, "report", "name")


def test_where_all_numbers_are_the_same_nothing_is_proved() -> None:
    random = np.random.default_rng(0)
    wanted = np.concatenate([100 * random.standard_normal(400), 0.1 + 1e-17 * random.integers(0, 3, 40)])
    one, two = wanted + 0.1, np.concatenate([wanted[:400] + 0.1, np.full(40, 40.0)])
    sunday = {"day=sunday": np.arange(440) >= 400, "day=never": np.zeros(440, bool)}
    evidence = compare(Answers(one), Answers(two), wanted, "r2", split="report", slices=sunday, columns=("day",))
    assert {name: (drop.rows, drop.most(0.95)) for name, drop in evidence.slices.items()} == dict.fromkeys(sunday, (0, np.inf))
    decision = decide(GatePolicy(max_accuracy_drop=50, max_slice_drop=50), evidence)
    assert not decision.allowed
    assert any("No row was evaluated where day=sunday" in reason for reason in decision.reasons)
