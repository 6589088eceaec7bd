"""The one door to matplotlib: a figure of panels in rows, and its two files. Each kind of picture is drawn elsewhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

_ACROSS = 3  # panels in a row


def panels(number: int) -> tuple[Figure, list[Any]]:
    """A figure, and the axes of its panels."""
    rows, across = math.ceil(number / _ACROSS), min(number, _ACROSS)
    figure = Figure(figsize=(4.2 * across, 3.2 * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, across, place + 1) for place in range(number)]


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write `name.svg` and `name.png`. The same figure gives the same bytes."""
    with mpl.rc_context({"svg.hashsalt": "modelyard", "svg.fonttype": "none"}):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})
