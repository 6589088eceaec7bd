"""The gate's options, and what it said, as text."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.cli.gate import decision_text, gate_text, policy
from modelyard.errors import Invalid

CHECK = {"what": "all rows", "rows": 1000, "seen": 0.1, "bound": 0.8312, "budget": 1.0, "met": True, "needed": None}
HELD = {"by": "project", "baseline": "m@1", "dataset": "digits@2", "checks": [CHECK]}


@pytest.mark.parametrize(
    ("more", "said", "wanted"),
    [
        (None, {}, None),
        ([], {"max_accuracy_drop": None, "confidence": None}, None),
        (None, {"max_accuracy_drop": 0.0, "confidence": None}, {"max_accuracy_drop": 0.0}),
        (
            ["min_agreement=0.9", "slices=light"],
            {"max_accuracy_drop": 1.0},
            {"max_accuracy_drop": 1.0, "min_agreement": 0.9, "slices": ["light"]},
        ),
        (['slices=["a","b"]', "max_accuracy_drop=2"], {}, {"slices": ["a", "b"], "max_accuracy_drop": 2}),
        (
            ["slices=light", "slices=camera,lens", "slices=light"],
            {"max_accuracy_drop": 1.0},
            {"max_accuracy_drop": 1.0, "slices": ["light", "camera", "lens"]},
        ),
    ],
)
def test_a_gate_is_what_was_said_of_it(more: list[str] | None, said: dict[str, Any], wanted: Any) -> None:
    assert policy(more, **said) == wanted


def test_a_gate_says_what_may_be_lost() -> None:
    with pytest.raises(Invalid, match="A gate with confidence needs --max-accuracy-drop, too"):
        policy(None, confidence=0.9)


@pytest.mark.parametrize("more", [["min_agreement=0.9", "min_agreement=0.8"], ["max_accuracy_drop=2"]])
def test_a_field_is_said_once(more: list[str]) -> None:
    with pytest.raises(Invalid, match=f"^'{more[0].partition('=')[0]}' is said twice"):
        policy(more, max_accuracy_drop=1.0)


def test_a_gate_is_told_in_a_line() -> None:
    gate = {"max_accuracy_drop": 0.5, "max_slice_drop": None, "confidence": 0.95, "slices": [], "baseline": "m@1"}
    assert gate_text(gate, "deployment d") == "gate of deployment d: max accuracy drop 0.5, confidence 0.95, baseline m@1"
    assert gate_text({**gate, "slices": ["a", "b"]}, "x").endswith("slices a, b, baseline m@1")
    assert gate_text(None, "deployment d") == ""


def test_a_decision_is_told_by_its_figures() -> None:
    text = decision_text({"allowed": True, "held": [HELD], "override": None})
    assert text.splitlines()[1].split() == ["project", "m@1", "digits@2", "all", "rows", "0.1", "0.8312", "1"]
    unknown = {**CHECK, "what": "label=a", "seen": None}
    override = {"key_name": "ada", "reason": "why"}
    text = decision_text({"allowed": False, "held": [{**HELD, "checks": [unknown]}], "override": override})
    assert "label=a  —" in text
    assert text.endswith("passed all the same by ada: why")
    assert decision_text({"allowed": False, "held": [{**HELD, "checks": []}], "override": None}) == "It was not evaluated."
    assert decision_text(None) == ""
