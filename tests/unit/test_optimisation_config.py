from __future__ import annotations

import pytest
from pydantic import ValidationError

from modelyard.optimisation.config import OptimiseConfig


def test_what_is_optimised_for_unless_said_otherwise() -> None:
    config = OptimiseConfig()
    assert config.variants == ("fp32", "static-int8", "dynamic-int8")
    assert (config.max_accuracy_drop, config.goal, config.confidence) == (1.0, "latency", 0.95)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_accuracy_drop": -1},
        {"max_accuracy_drop": float("nan")},
        {"goal": "speed"},
        {"variants": ()},
        {"variants": ("fp32", "fp32")},
        {"variants": ("int4",)},
        {"confidence": 1},
        {"confidence": 95},
        {"seconds": 0},
        {"unknown": 1},
    ],
)
def test_wrong_options_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        OptimiseConfig(**wrong)
