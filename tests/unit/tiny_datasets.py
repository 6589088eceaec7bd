"""Dataset artefacts of a few rows, written by hand as dataset import writes them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from modelyard.data.datasets import ARROW, Dataset, DatasetCard, Feature, Split

ROWS = {"train": 40, "calibrate": 30, "select": 100, "report": 80}
COLUMNS = tuple(f"c{i}" for i in range(10))


def write(
    folder: Path,
    features: Mapping[str, Feature],
    splits: Mapping[str, Mapping[str, list]],
    target: str | None,
    task: str | None = None,
) -> Dataset:
    shards = {}
    for name, columns in splits.items():
        (folder / name).mkdir(parents=True)
        table = pa.table({column: pa.array(values, ARROW[features[column].type]) for column, values in columns.items()})
        pq.write_table(table, folder / name / "00000.parquet")
        shards[name] = Split(rows=table.num_rows, shards=(f"{name}/00000.parquet",))
    DatasetCard(task=task, target=target, features=dict(features), splits=shards, source={"from": "tests"}).save(folder)
    return Dataset.open(folder)


def table(folder: Path, target: Feature, answers) -> Dataset:
    """Ten columns of normal numbers and `target`, which `answers` makes of their matrix."""
    random = np.random.default_rng(0)
    splits = {}
    for name, rows in ROWS.items():
        matrix = random.standard_normal((rows, len(COLUMNS))).astype(np.float32)
        splits[name] = {**{c: matrix[:, i].tolist() for i, c in enumerate(COLUMNS)}, "target": list(answers(matrix))}
    return write(folder, {**{c: Feature(type="float") for c in COLUMNS}, "target": target}, splits, "target")


def images(folder: Path) -> Dataset:
    """Grey 4×4 pictures: 'dark' ones and 'light' ones, in turn, those of train less so than all others."""
    splits = {}
    for name, rows in ROWS.items():
        labels = [row % 2 for row in range(rows)]
        dark, apart = (50, 100) if name == "train" else (0, 200)
        pictures = [png(dark + apart * label + row % 50) for row, label in enumerate(labels)]
        splits[name] = {"picture": pictures, "kind": labels}
    features = {"picture": Feature(type="image"), "kind": Feature(type="label", names=("dark", "light"))}
    return write(folder, features, splits, "kind")


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), grey).save(buffer, "PNG")
    return buffer.getvalue()
