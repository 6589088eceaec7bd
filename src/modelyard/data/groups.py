"""A split read by row groups, so that memory holds a part of it: rows are asked for by position and read when they are.

`training/feed.py` reads through it. Which rows come when is not known here (`shards.py` says it); of what was read the latest
is held, up to a bound, and a row group that is wanted again after it was dropped is read again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modelyard.data.datasets import CARD, Dataset, array_of
from modelyard.errors import Damaged
from modelyard.tensors import Array

HELD_BYTES = 512 << 20


class Groups:
    """`rows` of each row group; `bytes` is what the columns take together, once read. `among`: as if the split had these rows
    alone, INT64 positions in order. Raises `Damaged`, naming the shard, at once where one is not as stated, and in `take`
    where one has become so."""

    def __init__(
        self, dataset: Dataset, split: str, names: Sequence[str], held: int = HELD_BYTES, among: Array | None = None
    ) -> None:
        self._dataset, self._names, self._held = dataset, list(dict.fromkeys(names)), held
        self._kinds = {name: dataset.feature(name).type for name in self._names}
        self._places: list[tuple[str, int]] = []  # of each row group, its shard and which of that it is
        self._meta: dict[str, pq.FileMetaData] = {}
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        self._bytes = 0
        self.rows: list[int] = []
        self.bytes = 0
        for shard in dataset.card.splits[split].shards:
            self._list(shard)
        if sum(self.rows) != dataset.rows(split):
            raise Damaged(f"Split '{split}' has {sum(self.rows)} rows where {CARD} states {dataset.rows(split)}.")
        self._ends, self._among = np.cumsum(self.rows, dtype=np.int64), among
        self._starts = self._ends - np.array(self.rows, np.int64)
        if among is not None:
            self.rows = np.diff(np.searchsorted(among, [0, *self._ends])).tolist()

    def take(self, positions: Array) -> dict[str, Array]:
        """Some rows' columns, each as `Dataset.columns` gives it, in the order asked for."""
        positions = positions if self._among is None else self._among[positions]
        groups = np.searchsorted(self._ends, positions, side="right")
        order = np.argsort(groups, kind="stable")
        pieces = []
        for group in np.unique(groups).tolist():
            wanted = positions[order][groups[order] == group] - self._starts[group]
            pieces.append(self._table(group).take(wanted))
        table = pa.concat_tables(pieces).take(np.argsort(order))
        return {name: array_of(table.column(name), kind) for name, kind in self._kinds.items()}

    def _list(self, shard: str) -> None:
        with self._open(shard) as file:
            meta = self._meta[shard] = file.metadata
        wanted = [meta.schema.names.index(name) for name in self._names]
        for at in range(meta.num_row_groups):
            group = meta.row_group(at)
            self._places.append((shard, at))
            self.rows.append(group.num_rows)
            self.bytes += sum(group.column(column).total_uncompressed_size for column in wanted)

    def _table(self, group: int) -> pa.Table:
        if group in self._tables:
            self._tables.move_to_end(group)
            return self._tables[group]
        shard, at = self._places[group]
        with self._open(shard) as file:
            try:
                table = file.read_row_group(at, columns=self._names, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(shard, error) from error
        self._tables[group] = table
        self._bytes += table.nbytes
        while self._bytes > self._held and len(self._tables) > 1:
            self._bytes -= self._tables.popitem(last=False)[1].nbytes
        return table

    def _open(self, shard: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._dataset.folder / shard, metadata=self._meta.get(shard), page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(shard, error) from error


def _unreadable(shard: str, error: Exception) -> Damaged:
    return Damaged(f"Shard {shard} cannot be read: {str(error).strip()[:200] or type(error).__name__}")
