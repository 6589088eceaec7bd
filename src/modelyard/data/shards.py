"""Which rank reads which rows: pure functions, so that a gang of any size does the same steps over the same rows.

A step's batch is cut from one order of the whole split (`Order`, by seed and epoch alone) and then, in order, among the
ranks. So every row is read exactly once an epoch by exactly one rank, without padding, and a run on n ranks takes the same
steps as a run on one: the parts may differ by a row, which the loop makes up for by weights. A run resumes at any step, on
any number of ranks.

What fits in memory is shuffled row by row. What does not is shuffled so that it can be streamed: its row groups are shuffled
and laid end to end, that sequence is cut into even lanes, rows are shuffled within windows of a lane, and a batch takes its
rows from all lanes alike. A batch is sorted by lane: a rank's contiguous part of it comes from its own part of the lanes,
step after step, and it reads (about) the row groups of these alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from modelyard.errors import Invalid
from modelyard.tensors import Array

LANES = 32  # a power of two: 2, 4, … 32 ranks read nothing twice; one rank holds so many windows


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
        raise Invalid(f"The train split has {_rows(rows)} for {world} ranks; each rank needs at least one: use fewer ranks.")
    smallest = rows // steps(rows, batch)
    if smallest < world:
        raise Invalid(
            f"Batches of {_rows(smallest)} ({_rows(rows)}, batch_size {batch}) leave some of {world} ranks without one: "
            "use a larger batch_size or fewer ranks."
        )


@dataclass(slots=True)
class Order:
    """The order of a split's rows in one epoch. `groups` are the rows of its row groups (one row each: a shuffle of all rows);
    `lanes` is a power of two; `window` counts rows."""

    groups: Sequence[int] | Array
    seed: int
    epoch: int
    lanes: int = 1
    window: int = 1
    rows: int = field(init=False)
    _ends: Array = field(init=False)  # of each row group, once shuffled, where it ends in the sequence of all
    _first: Array = field(init=False)  # and what takes a place in that sequence to a position in the split
    _keys: Array = field(init=False)  # by turn, the lane whose turn it is
    _sizes: Array = field(init=False)  # by lane, its rows
    _drawn: dict[int, tuple[int, Array]] = field(init=False, default_factory=dict)  # by lane, the window last drawn

    def __post_init__(self) -> None:
        sizes = np.asarray(self.groups, np.int64)
        shuffled = np.random.default_rng([self.seed, self.epoch]).permutation(len(sizes))
        self.rows = int(sizes.sum())
        self._ends = np.cumsum(sizes[shuffled])
        self._first = (np.cumsum(sizes) - sizes)[shuffled] - self._ends + sizes[shuffled]
        # turns go to lanes in bit-reversed order, so that of any run of turns each part of the lanes has an even share
        self._keys = np.zeros(1, np.int64)
        while len(self._keys) < self.lanes:
            self._keys = np.concatenate([self._keys * 2, self._keys * 2 + 1])
        self._sizes = np.empty(self.lanes, np.int64)
        self._sizes[self._keys] = (self.rows + self.lanes - 1 - np.arange(self.lanes)) // self.lanes

    def take(self, start: int, stop: int) -> Array:
        """Positions in the split of the rows at `start` to `stop` of the order, sorted by lane."""
        turns = np.arange(start, stop)
        lanes = self._keys[turns % self.lanes]
        sort = np.argsort(lanes, kind="stable")
        lanes, within = lanes[sort], (turns // self.lanes)[sort]
        if self.window > 1:
            within = self._shuffled(lanes, within)
        places = (np.cumsum(self._sizes) - self._sizes)[lanes] + within  # lanes are cut from the sequence in their order
        group = np.searchsorted(self._ends, places, side="right")
        return np.asarray(self._first[group] + places)

    def cut(self, start: int, stop: int, world: int, rank: int) -> range:
        """The rank's part of what `take` gives: all that comes from its own lanes where the ranks have equally many, otherwise
        an even share. Parts differ by at most one row either way."""
        if self.lanes % world:
            return share(stop - start, world, rank)
        lanes = np.sort(self._keys[np.arange(start, stop) % self.lanes])
        first, end = np.searchsorted(lanes, [self.lanes * rank // world, self.lanes * (rank + 1) // world])
        return range(int(first), int(end))

    def _shuffled(self, lanes: Array, within: Array) -> Array:
        """Where rows stand in their lanes once each window is shuffled."""
        windows = within // self.window
        result = np.empty_like(within)
        for lane, window in sorted(set(zip(lanes.tolist(), windows.tolist(), strict=True))):
            chosen = (lanes == lane) & (windows == window)
            result[chosen] = window * self.window + self._draw(lane, window)[within[chosen] % self.window]
        return result

    def _draw(self, lane: int, window: int) -> Array:
        if self._drawn.get(lane, (-1,))[0] != window:
            size = min(self.window, int(self._sizes[lane]) - window * self.window)
            drawn = np.random.default_rng([self.seed, self.epoch, lane, window]).permutation(size)
            self._drawn[lane] = (window, drawn)
        return self._drawn[lane][1]


def parts(order: Order, world: int, rank: int, batch: int, first: int = 0, stop: int | None = None) -> Iterator[Part]:
    """The rank's part of every step of an epoch, from step `first` on and up to `stop`."""
    count = steps(order.rows, batch)
    for step in range(first, count if stop is None else stop):
        start, end = order.rows * step // count, order.rows * (step + 1) // count
        whole, own = order.take(start, end), order.cut(start, end, world, rank)
        yield Part(whole[own.start : own.stop], own.start, len(whole))


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"
