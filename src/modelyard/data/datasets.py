"""A dataset version: the folder format, and reading it. Nothing here writes one (`writing.py`) or knows where it came from.

    dataset.json              features with statistics per split, the target, the task, rows and shards of each split
    train/00000.parquet …     rows: images as encoded files, labels as positions in their names, numbers, text,
                              chats as JSON text (`chats.py`)

Read by training recipes, by optimisation and evaluation, and by people in notebooks: `Dataset.open(folder)`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from modelyard.errors import Damaged, Invalid, not_found
from modelyard.kinds import Config
from modelyard.tensors import Array

CARD = "dataset.json"
FeatureType = Literal["image", "label", "float", "int", "text", "chat"]
ARROW: Mapping[FeatureType, pa.DataType] = {
    "image": pa.binary(),
    "label": pa.int64(),
    "float": pa.float64(),
    "int": pa.int64(),
    "text": pa.string(),
    "chat": pa.string(),
}


class Feature(Config):
    """A column: its type, a label's names in the order of their positions, and statistics by split (see docs/data.md)."""

    type: FeatureType
    names: tuple[str, ...] | None = None
    statistics: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Split(Config):
    rows: int
    shards: tuple[str, ...]


class DatasetCard(Config):
    """`dataset.json`. `target` is the feature to predict, `task` what for; both None for data without one."""

    format: Literal[1] = 1
    task: str | None = None
    target: str | None = None
    features: dict[str, Feature]
    splits: dict[str, Split]
    source: dict[str, str]

    def save(self, folder: Path) -> None:
        # unsorted: the order of the features is the order of the columns
        text = json.dumps(self.model_dump(mode="json", exclude_none=True), indent=1, allow_nan=False)
        (folder / CARD).write_text(text + "\n")

    @property
    def metadata(self) -> dict[str, Any]:
        """What the catalogue keeps with the version."""
        labels = self.features[self.target].names if self.target else None
        return {
            "rows": sum(split.rows for split in self.splits.values()),
            "splits": {name: split.rows for name, split in self.splits.items()},
            "features": {name: feature.type for name, feature in self.features.items()},
            "target": self.target,
            "labels": list(labels) if labels else None,
            "task": self.task,
            "source": self.source,
        }


class Dataset:
    """A dataset in a local folder. Columns are read whole, a split at a time."""

    def __init__(self, folder: Path, card: DatasetCard) -> None:
        self.folder = folder
        self.card = card

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """Raises `Invalid` where `folder` is not a dataset of a format this version reads."""
        try:
            return cls(folder, DatasetCard.model_validate_json((folder / CARD).read_bytes()))
        except FileNotFoundError as error:
            raise Invalid(f"The artefact has no {CARD}: it is not a dataset version.") from error
        except ValidationError as error:
            first = error.errors()[0]
            raise Invalid(f"{CARD} is not valid: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error

    @property
    def features(self) -> Mapping[str, Feature]:
        return self.card.features

    @property
    def task(self) -> str | None:
        return self.card.task

    @property
    def target(self) -> str | None:
        return self.card.target

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of the target's classes; None where the target is a number or there is none."""
        return self.card.features[self.card.target].names if self.card.target else None

    def feature(self, name: str) -> Feature:
        """Raises `NotFound` with the names there are."""
        if name not in self.card.features:
            raise not_found("feature", name, self.card.features)
        return self.card.features[name]

    def of_type(self, *types: FeatureType) -> list[str]:
        """Names of the features of these types, the target left out."""
        return [name for name, f in self.card.features.items() if f.type in types and name != self.card.target]

    def rows(self, split: str) -> int:
        return self._split(split).rows

    def column(self, split: str, name: str) -> Array:
        """One feature of a split, in the order of its rows: FP64 (missing is NaN), INT64, object array of `bytes` (images)
        or of `str` (text and chats, missing is ''); a label is INT64, the position in its names."""
        return self.columns(split, [name])[name]

    def columns(self, split: str, names: list[str] | tuple[str, ...]) -> dict[str, Array]:
        """Several features of a split, each as `column` gives it. Raises `Damaged` where shards are not as stated."""
        kinds = {name: self.feature(name).type for name in names}
        parts = [self._read(shard, list(kinds)) for shard in self._split(split).shards]
        table = pa.concat_tables(parts) if parts else pa.schema([(name, ARROW[kinds[name]]) for name in kinds]).empty_table()
        if kinds and table.num_rows != self.rows(split):
            raise Damaged(f"Split '{split}' has {table.num_rows} rows where {CARD} states {self.rows(split)}.")
        return {name: array_of(table.column(name), kind) for name, kind in kinds.items()}

    def _split(self, split: str) -> Split:
        if split not in self.card.splits:
            raise not_found("split", split, self.card.splits)
        return self.card.splits[split]

    def _read(self, shard: str, names: list[str]) -> pa.Table:
        try:
            return pq.read_table(self.folder / shard, columns=names, partitioning=None, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise Damaged(f"Shard {shard} cannot be read: {type(error).__name__}.") from error


def array_of(column: pa.ChunkedArray, kind: FeatureType) -> Array:
    """A column as `Dataset.column` gives it."""
    if ARROW[kind] in (pa.binary(), pa.string()):
        values = column.to_pylist() if kind == "image" else column.fill_null("").to_pylist()
        array = np.empty(len(values), object)
        array[:] = values
        return array
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64 if kind == "float" else np.int64)
