"""What an evaluation found, as text."""

from __future__ import annotations

from modelyard.cli.evaluate import evaluation

FOUND = {
    "reference": "m@2",
    "against": "m@1",
    "dataset": "digits@1",
    "metric": "accuracy",
    "rows": 1234,
    "left_out": 0,
    "confidence": 0.9,
    "original": {"value": 0.98},
    "variant": {"value": 0.97},
    "drop": {"value": 1.0, "low": 0.5, "high": 1.75},
    "agreement": 0.985,
    "f1": {"original": 0.97, "variant": 0.96, "drop": {"value": 1.0, "low": 0.25, "high": 2.0}, "classes": []},
    "others": [{"metric": "wer", "original": 0.125, "variant": 0.25, "drop": {"value": 12.5, "low": 9.0, "high": 15.0}}],
    "calibration": [0.012, 0.02],
    "slices": [
        {"slice": "label=3", "rows": 120, "drop": {"value": 4.0, "low": 1.0, "high": 7.0}},
        {"slice": "label=4", "rows": 0, "drop": None},
    ],
}


def test_both_stand_beside_each_other_and_slices_below() -> None:
    lines = evaluation(FOUND).splitlines()
    assert lines[0] == "m@2 against m@1 on 1,234 rows of the report split of digits@1"
    text = "\n".join(lines)
    assert "accuracy           0.9800  0.9700  1.00 (0.50 to 1.75)" in text
    assert "macro F1           0.9700  0.9600  1.00 (0.25 to 2.00)" in text
    assert "calibration error  0.0120  0.0200" in text
    assert "wer                0.1250  0.2500  12.50 (9.00 to 15.00)" in text
    assert "answers alike: 0.9850" in text
    assert "label=3   120  4.00 (1.00 to 7.00)" in text
    assert "label=4     0  —" in text


def test_what_is_not_known_is_not_shown() -> None:
    text = evaluation({**FOUND, "calibration": None, "f1": None, "slices": [], "left_out": 7})
    assert "rows of the report split of digits@1 (7 left out)" in text
    assert "calibration" not in text
    assert "F1" not in text
    assert "slice" not in text
