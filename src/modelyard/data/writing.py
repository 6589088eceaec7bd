"""Writing a dataset: samples from any source, each into its split, in Parquet shards, with statistics on the way.

Called by `importing.run`. Equal samples in equal order give equal bytes (no clock, pinned Parquet settings), hence the same
artefact. Memory holds one unfinished row group a split, whatever the size of the source.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from modelyard.data.datasets import ARROW, DatasetCard, Feature, Split
from modelyard.data.splits import SPLITS, place
from modelyard.data.statistics import Gather, gather
from modelyard.errors import Invalid

SHARD_ROWS = 16_384
SHARD_BYTES = 64 << 20
# What is held of a split before it is written; 1,024 rows divide a shard, so that small rows always make the same groups.
GROUP_ROWS = 1024
GROUP_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One row: `values` by feature, `content` what decides its split, `where` it stands in the source (for errors), `split` the
    one that the source itself put it in."""

    content: bytes
    values: Mapping[str, Any]
    where: str
    split: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """What an import reads: the features, what to predict, and `samples` (`rows` of them). `origin` is where from; `own` are
    the splits, but for train, that the source itself keeps apart."""

    features: Mapping[str, Feature]
    target: str | None
    task: str | None
    rows: int
    samples: Iterable[Sample]
    origin: dict[str, str]
    own: frozenset[str] = frozenset()


def table_content(values: Mapping[str, Any], target: str | None) -> bytes:
    """The content of a row: its values by name, the target left out, whatever the order of the columns. An image alone is its
    own content, as in a folder of images."""
    given = {name: value for name, value in values.items() if name != target}
    if len(given) == 1 and isinstance(alone := next(iter(given.values())), bytes):
        return alone
    return json.dumps(given, sort_keys=True, ensure_ascii=False, default=_digest).encode()


def _digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


@dataclass(slots=True)
class _Shards:
    """The shards of one split while they are written."""

    name: str
    folder: Path
    features: Mapping[str, Feature]
    statistics: dict[str, Gather] = field(default_factory=dict)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    rows: int = 0
    held: int = 0
    held_bytes: int = 0
    shard: pq.ParquetWriter | None = None
    shard_rows: int = 0
    shard_bytes: int = 0

    def __post_init__(self) -> None:
        self.columns = {name: [] for name in self.features}
        self.statistics = {name: gather(feature) for name, feature in self.features.items()}

    def add(self, sample: Sample) -> None:
        for name, column in self.columns.items():
            value = sample.values[name]
            try:
                self.statistics[name].add(value)
            except Invalid as error:
                raise Invalid(f"{sample.where}: {error.message} Nothing was imported.") from error
            column.append(value)
            self.held_bytes += len(value) if isinstance(value, (bytes, str)) else 8
        self.rows += 1
        self.held += 1
        full = self.shard_rows + self.held >= SHARD_ROWS or self.shard_bytes + self.held_bytes >= SHARD_BYTES
        if full or self.held >= GROUP_ROWS or self.held_bytes >= GROUP_BYTES:
            self.flush()
        if full:
            self.close()

    def flush(self) -> None:
        """Write what is held as one row group."""
        if not self.held:
            return
        schema = pa.schema([(name, ARROW[feature.type]) for name, feature in self.features.items()])
        if self.shard is None:
            self.shard = self._open(schema)
        self.shard.write_table(pa.table(self.columns, schema=schema), row_group_size=GROUP_ROWS)
        self.shard_rows += self.held
        self.shard_bytes += self.held_bytes
        self.columns = {name: [] for name in self.features}
        self.held = self.held_bytes = 0

    def close(self) -> None:
        """End the shard that is being written, if one is."""
        shard, self.shard = self.shard, None
        self.shard_rows = self.shard_bytes = 0
        if shard is not None:
            shard.close()

    def _open(self, schema: pa.Schema) -> pq.ParquetWriter:
        path = f"{self.name}/{len(self.written):05}.parquet"
        (self.folder / self.name).mkdir(exist_ok=True)
        self.written.append(path)
        return pq.ParquetWriter(
            self.folder / path, schema, version="2.6", compression="zstd", compression_level=3,
            use_dictionary=False, data_page_version="1.0", write_page_checksum=True,
        )  # fmt: skip


def write(source: Source, folder: Path, tick: Callable[[int], None]) -> DatasetCard:
    """Write `source` into the empty `folder`; `tick(rows so far)` after each. Raises `Invalid` where a sample is unusable."""
    shards = {name: _Shards(name, folder, source.features) for name in SPLITS}
    done = 0
    try:
        for done, sample in enumerate(source.samples, start=1):
            shards[place(sample.content, sample.split, source.own)].add(sample)
            tick(done)
        for part in shards.values():
            part.flush()
    finally:
        for part in shards.values():
            part.close()
    if not done:
        raise Invalid("The source has no rows; nothing was imported.")
    features = {
        name: feature.model_copy(
            update={"statistics": {split: part.statistics[name].result() for split, part in shards.items()}}
        )
        for name, feature in source.features.items()
    }
    splits = {name: Split(rows=part.rows, shards=tuple(part.written)) for name, part in shards.items()}
    card = DatasetCard(task=source.task, target=source.target, features=features, splits=splits, source=source.origin)
    card.save(folder)
    return card
