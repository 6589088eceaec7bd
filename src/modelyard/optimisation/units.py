"""What figures are counted in, by the metric they are of: for verdicts, reports and the command line. It loads nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def units(metric: str) -> tuple[str, str]:
    """Of what is lost, and of what is answered in a second."""
    return ("percent", "tokens/s") if metric == "perplexity" else ("points", "rows/s")


def cost(row: Mapping[str, Any], goal: str) -> float:
    """Of a row of the table, as JSON, what is to be least for a goal; infinite where it is not known."""
    value = row[{"latency": "p50_ms", "throughput": "items_per_s"}.get(goal, goal)]
    return math.inf if value is None else -value if goal == "throughput" else value


def counted(metric: str) -> tuple[str, str]:
    """What evidence is counted in, and what of a split is left out."""
    return ("independent blocks", "texts") if metric == "perplexity" else ("rows", "rows")
