"""Which variant serves: a pure function over what was measured. It denies by default: a variant is chosen only if it is
verified and every figure that counts is known and within the budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modelyard.errors import Invalid
from modelyard.optimisation.config import Goal
from modelyard.optimisation.units import cost

ORIGINAL = "original"


@dataclass(frozen=True, slots=True)
class Measured:
    """One variant's figures on the select split. `accuracy` (for regression R²) lies in [`low`, `high`]; `drop` against the
    original is in points. `size`, and the `memory` that serving it takes, in bytes; `p50_ms`/`p99_ms` at batch 1, `items_per_s`
    at batch 32."""

    variant: str
    verified: bool
    accuracy: float
    low: float
    high: float
    drop: float
    drop_low: float
    drop_high: float
    size: int
    memory: float
    p50_ms: float
    p99_ms: float
    items_per_s: float

    def to_json(self) -> dict[str, Any]:
        """What could not be measured is None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Choice:
    """`variant` is the chosen one; `verdicts` says of each why it was or wasn't."""

    variant: str
    verdicts: Mapping[str, str]


def told(measured: Sequence[Measured], choice: Choice | None = None) -> list[dict[str, Any]]:
    """The table as JSON, with each row's verdict once there was a choice: what stood in none is the original."""
    if choice is None:
        return [{**row.to_json(), "verdict": "measured", "chosen": False} for row in measured]
    verdicts, chosen = choice.verdicts, choice.variant
    return [
        {**row.to_json(), "verdict": verdicts.get(row.variant, ORIGINAL), "chosen": row.variant == chosen} for row in measured
    ]


def choose(measured: Sequence[Measured], goal: Goal, max_drop: float, unit: str = "points") -> Choice:
    """The best by `goal` among the verified that lose at most `max_drop`, in `unit`; ties go to the more accurate, the smaller,
    then by name. Raises `Invalid`, saying how close the nearest came, where there is none."""
    costs = {m.variant: cost(m.to_json(), goal) for m in measured}
    fit = [m for m in measured if m.verified and m.drop <= max_drop and math.isfinite(costs[m.variant])]
    if not fit:
        raise Invalid(_nearest(measured, goal, max_drop, unit))
    best = min(fit, key=lambda m: (costs[m.variant], m.drop, -m.accuracy, m.size, m.variant))
    verdicts = {m.variant: "within the budget" if m in fit else _refused(m, max_drop, unit) for m in measured}
    return Choice(best.variant, {**verdicts, best.variant: f"best {goal} within {max_drop:g} {unit}"})


def _refused(m: Measured, max_drop: float, unit: str) -> str:
    if not m.verified:
        return "not verified"
    return f"loses {m.drop:.2f} {unit}" if math.isfinite(m.drop) and m.drop > max_drop else "not measured"


def _nearest(measured: Sequence[Measured], goal: Goal, max_drop: float, unit: str) -> str:
    known = [m for m in measured if m.verified and math.isfinite(m.drop)]
    if not known:
        return "No variant could be verified against the original; the job's log says why."
    nearest = min(known, key=lambda m: (m.drop, m.variant))
    if nearest.drop <= max_drop:
        return f"No variant within {max_drop:g} {unit} has a {goal} that could be measured: choose another goal."
    return (
        f"No variant stays within {max_drop:g} {unit} of the original: the nearest, {nearest.variant}, loses "
        f"{nearest.drop:.2f} (interval {nearest.drop_low:.2f} to {nearest.drop_high:.2f}). Allow more with max_accuracy_drop."
    )
