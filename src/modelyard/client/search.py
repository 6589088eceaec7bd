"""Searches among chains of steps as the client sees them: what is submitted, and the table of trials.

`Yard.optimize` and the command line call it. What a space may be is for the platform to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelyard.errors import Invalid

OWN = ("space", "parallel")  # options of `SearchConfig` that no `optimise` has


def asked(
    config: Mapping[str, Any], steps: Sequence[Any], trials: int | None, time_budget: float | None
) -> tuple[str, dict[str, Any]]:
    """Kind and config of the job: `optimise`, with `steps` or without, or `search` where there are `trials`, a `time_budget` or
    a space. Raises `Invalid` where both are asked for."""
    limits = {name: value for name, value in (("trials", trials), ("time_budget", time_budget)) if value is not None}
    if not limits and not any(name in config for name in OWN):
        return "optimise", {**config, "steps": list(steps)} if steps else dict(config)
    if steps:
        raise Invalid("Steps make one variant, a search tries many: give either steps, or trials, a time budget or a space.")
    return "search", {**config, **limits}
