"""Statistics of a feature, gathered row by row in bounded memory while a dataset is written.

One class per feature type, made by `gather`; `result` is what stands in `dataset.json` under the feature's split.
Means and deviations are Welford's, so that a large offset loses no digits; `std` is that of the population.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from modelyard.data.datasets import Feature
from modelyard.data.images import decode

MOST_VALUES = 50  # distinct texts kept by value; beyond that a text column is no category
LONGEST_VALUE = 200  # characters; a longer text is no category either


class Gather(Protocol):
    def add(self, value: Any) -> None: ...
    def result(self) -> dict[str, Any]: ...


def gather(feature: Feature) -> Gather:
    """An empty gatherer for one feature of one split."""
    if feature.type == "label":
        return Labels(feature.names or ())
    if feature.type == "image":
        return Images()
    return Texts() if feature.type in ("text", "chat") else Numbers()


class Numbers:
    """rows, missing, min, max, mean, std; None stands for a missing value."""

    def __init__(self) -> None:
        self._rows = self._missing = 0
        self._least, self._most, self._mean, self._squares = math.inf, -math.inf, 0.0, 0.0

    def add(self, value: float | None) -> None:
        if value is None:
            self._missing += 1
            return
        self._rows += 1
        self._least, self._most = min(self._least, value), max(self._most, value)
        away = value - self._mean
        self._mean += away / self._rows
        self._squares += away * (value - self._mean)

    def result(self) -> dict[str, Any]:
        counts = {"rows": self._rows + self._missing, "missing": self._missing}
        if not self._rows:
            return counts
        std = math.sqrt(max(0.0, self._squares / self._rows))
        return {**counts, "min": self._least, "max": self._most, "mean": self._mean, "std": std}


class Labels:
    """rows, and counts by position of the name."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._counts = [0] * len(names)

    def add(self, value: int) -> None:
        self._counts[value] += 1

    def result(self) -> dict[str, Any]:
        return {"rows": sum(self._counts), "counts": self._counts}


class Texts:
    """rows, missing, longest (characters), and the distinct values where they are few and short."""

    def __init__(self) -> None:
        self._rows = self._missing = self._longest = 0
        self._values: set[str] = set()

    def add(self, value: str | None) -> None:
        self._rows += 1
        if value is None:
            self._missing += 1
            return
        self._longest = max(self._longest, len(value))
        if len(self._values) <= MOST_VALUES and self._longest <= LONGEST_VALUE:
            self._values.add(value)

    def result(self) -> dict[str, Any]:
        known = len(self._values) <= MOST_VALUES and self._longest <= LONGEST_VALUE
        few = {"values": sorted(self._values)} if known else {}
        return {"rows": self._rows, "missing": self._missing, "longest": self._longest, **few}


class Images:
    """rows, least and greatest width and height, images by mode, mean and std of the brightness (0–1) of all pixels.
    Decodes every image: raises `Invalid` for one that cannot be."""

    def __init__(self) -> None:
        self._rows = self._pixels = 0
        self._sum = self._squares = 0  # exact: integers
        self._widths: set[int] = set()
        self._heights: set[int] = set()
        self._modes: dict[str, int] = {}

    def add(self, value: bytes) -> None:
        image = decode(value)
        self._rows += 1
        self._widths = {min(self._widths | {image.width}), max(self._widths | {image.width})}
        self._heights = {min(self._heights | {image.height}), max(self._heights | {image.height})}
        self._modes[image.mode] = self._modes.get(image.mode, 0) + 1
        grey = np.asarray(image.convert("L"), np.int64)
        self._pixels += grey.size
        self._sum += int(grey.sum())
        self._squares += int((grey * grey).sum())

    def result(self) -> dict[str, Any]:
        if not self._rows:
            return {"rows": 0}
        mean = self._sum / self._pixels
        variance = max(0.0, self._squares / self._pixels - mean * mean)
        return {
            "rows": self._rows,
            "width": {"min": min(self._widths), "max": max(self._widths)},
            "height": {"min": min(self._heights), "max": max(self._heights)},
            "modes": dict(sorted(self._modes.items())),
            "mean": mean / 255,
            "std": math.sqrt(variance) / 255,
        }
