"""Which rank reads which rows: pure functions, so that a gang of any size does the same steps over the same rows.

A step's batch is cut from one shuffled order of the whole split and then, in order, among the ranks. So every row is read
exactly once an epoch by exactly one rank, without padding, and a run on n ranks takes the same steps as a run on one: the
parts may differ by a row, which the loop makes up for by weights (`training/parallel.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from modelyard.errors import Invalid
from modelyard.tensors import Array


@dataclass(frozen=True, slots=True)
class Part:
    """A rank's part of one step: `positions` in the split; the part begins at row `first` of a batch of `rows` in all."""

    positions: Array
    first: int
    rows: int


def steps(rows: int, batch: int) -> int:
    """Steps of an epoch: as few as batches of at most `batch` rows allow."""
    return -(-rows // batch)


def share(rows: int, world: int, rank: int) -> range:
    """The rank's contiguous part of `rows`; parts differ by at most one row."""
    return range(rows * rank // world, rows * (rank + 1) // world)


def check(rows: int, world: int, batch: int) -> None:
    """Raises `Invalid` where some rank would have a step without a row. Batches are even: they differ by at most a row."""
    if rows < world:
        raise Invalid(f"The train split has {rows} rows for {world} ranks; each rank needs at least one: use fewer ranks.")
    smallest = rows // steps(rows, batch)
    if smallest < world:
        raise Invalid(
            f"Batches of {smallest} rows ({rows} rows, batch_size {batch}) leave some of {world} ranks without one: "
            "use a larger batch_size or fewer ranks."
        )


def positions(rows: int, epoch: int, seed: int, world: int, rank: int, batch: int) -> Iterator[Part]:
    """The rank's part of every step of an epoch, shuffled by seed and epoch alone."""
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    count = steps(rows, batch)
    for step in range(count):
        whole = order[rows * step // count : rows * (step + 1) // count]
        own = share(len(whole), world, rank)
        yield Part(whole[own.start : own.stop], own.start, len(whole))
