"""What is worth having: variants that no other is better than in everything. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# The axes that a search models to decide what to try, and whether more is better. The front has one more, memory: it goes with
# size, and each axis makes the model slower.
MODELLED: Mapping[str, bool] = {"drop": False, "p50_ms": False, "items_per_s": True, "size": False}


def losses(row: Mapping[str, Any]) -> tuple[float, ...] | None:
    """A row's figures on the modelled axes, less being better; None where one is not known."""
    known = [float(row[name]) for name in MODELLED if row.get(name) is not None]
    if len(known) < len(MODELLED) or not all(map(math.isfinite, known)):
        return None
    return tuple(-value if more else value for value, more in zip(known, MODELLED.values(), strict=True))


def pareto(rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Of each row whether it is on the front: no other is at least as good on every axis, memory among them, and better on one.
    Of rows that are equal the first is. Vilfredo Pareto's notion; quadratic in the number of rows."""
    points = [_place(row) for row in rows]
    return [
        own is not None and not any(other is not None and _beats(other, own, before=i < at) for i, other in enumerate(points))
        for at, own in enumerate(points)
    ]


def _place(row: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Memory that is not known counts as the most there could be."""
    own, memory = losses(row), row.get("memory")
    return own and (*own, math.inf if memory is None or math.isnan(memory) else float(memory))


def _beats(other: tuple[float, ...], own: tuple[float, ...], *, before: bool) -> bool:
    return all(a <= b for a, b in zip(other, own, strict=True)) and (other != own or before)
