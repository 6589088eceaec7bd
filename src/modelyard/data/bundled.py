"""The data sets that come inside scikit-learn: real, small, and there without a network ('sklearn:digits').

Called by `importing.run`. Digits become greyscale PNG images; the others become tables.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from modelyard import plugins
from modelyard.data.datasets import Feature
from modelyard.data.writing import Sample, Source, table_content
from modelyard.errors import not_found
from modelyard.tensors import Array

IMAGES = ("digits",)
TABLES = ("iris", "wine", "breast_cancer", "diabetes")
_DIGITS_WHITE = 16  # digits are 0–16


def bundled(source: str) -> Source:
    """The source 'sklearn:<name>'. Raises `NotFound` with the names there are."""
    name = source.partition(":")[2]
    if name not in IMAGES + TABLES:
        raise not_found("bundled data set", source, (f"sklearn:{known}" for known in IMAGES + TABLES))
    bunch = plugins.load(f"sklearn.datasets:load_{name}")()
    origin = {"from": source, "scikit-learn": plugins.load("sklearn:__version__")}
    return _images(bunch, origin) if name in IMAGES else _table(bunch, origin)


def _images(bunch: Any, origin: dict[str, str]) -> Source:
    names = tuple(str(name) for name in bunch.target_names)
    features = {"image": Feature(type="image"), "label": Feature(type="label", names=names)}
    grey = np.rint(bunch.images * (255 / _DIGITS_WHITE)).astype(np.uint8)
    samples = _image_samples(grey, bunch.target, origin["from"])
    return Source(features, "label", "image-classification", len(grey), samples, origin)


def _image_samples(grey: Array, target: Array, name: str) -> Iterator[Sample]:
    for row, (pixels, label) in enumerate(zip(grey, target, strict=True)):
        # the content is the pixels, not the file, so that splits do not depend on a PNG encoder's version
        yield Sample(pixels.tobytes(), {"image": png(pixels), "label": int(label)}, f"{name}, row {row}")


def png(pixels: Array) -> bytes:
    """UINT8 [height, width] as a greyscale PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _table(bunch: Any, origin: dict[str, str]) -> Source:
    columns = [str(name) for name in bunch.feature_names]
    names = tuple(str(name) for name in bunch.get("target_names", ()))
    target = Feature(type="label", names=names) if names else Feature(type="float")
    features = {**{name: Feature(type="float") for name in columns}, "target": target}
    task = "tabular-classification" if names else "tabular-regression"
    return Source(features, "target", task, len(bunch.data), _rows(bunch, columns, bool(names), origin["from"]), origin)


def _rows(bunch: Any, columns: list[str], labelled: bool, name: str) -> Iterator[Sample]:
    for row, (numbers, target) in enumerate(zip(bunch.data.tolist(), bunch.target.tolist(), strict=True)):
        values: dict[str, Any] = {
            **dict(zip(columns, numbers, strict=True)),
            "target": int(target) if labelled else float(target),
        }
        yield Sample(table_content(values, "target"), values, f"{name}, row {row}")
