"""A curve in the terminal, from block characters alone."""

from __future__ import annotations

from collections.abc import Sequence

_BLOCKS = " ▁▂▃▄▅▆▇█"


def chart(title: str, values: Sequence[float], width: int = 32, height: int = 6) -> list[str]:
    """An area chart under a title; the highest and lowest value at its left. All lines have the same length."""
    columns = [values[int(i * len(values) / width)] for i in range(width)] if len(values) > 1 else list(values) * width
    low, span = min(columns), (max(columns) - min(columns)) or 1.0
    levels = [round((value - low) / span * (8 * height - 1)) + 1 for value in columns]
    rows = ["".join(_BLOCKS[min(8, max(0, level - 8 * row))] for level in levels) for row in reversed(range(height))]
    marks = [f"{max(columns):8.4f}", *[" " * 8] * (height - 2), f"{low:8.4f}"]
    lines = [f"{mark} │{row}" for mark, row in zip(marks, rows, strict=True)]
    return [f"{'':8}  {title} over {len(values)} epochs".ljust(len(lines[0])), *lines]


def side_by_side(*charts: Sequence[str]) -> str:
    """Charts of equal height beside each other."""
    return "\n".join("   ".join(lines) for lines in zip(*charts, strict=True))
