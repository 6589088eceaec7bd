"""What a rank trains on and in which order: a split's rows, made the network's input, batch by batch, in bounded memory.

`loop` reads the train and the select split through it. Where the made inputs fit in memory they are made once and kept;
otherwise rows are read by row groups (`data/groups.py`), held up to a bound, and made inputs one batch ahead of the step that
needs them. Which rows come is `data/shards.py`'s: all are shuffled where a split fits in memory, otherwise by lanes and
windows; both depend on the data alone, never on the rank or the number of ranks. How rows become an input is the recipe's
(`Plan.before`, which gives the same for a row at any time and in any company).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from modelyard.data import shards
from modelyard.data.datasets import Dataset
from modelyard.data.groups import HELD_BYTES, Groups
from modelyard.data.shards import LANES, Order, Part
from modelyard.tensors import Array
from modelyard.training.recipes import Plan

KEPT_BYTES = 512 << 20  # of a split's inputs, in each rank
_AT_ONCE = 24  # rows given to `before`: as many of the largest images as one call takes
_READ = 40 * _AT_ONCE  # rows read at once, as they are stored


@dataclass(frozen=True, slots=True)
class Batch:
    """A rank's part of step `step`: the network's input and the target, the caller's to change. It begins at row `first` of a
    batch of `rows` in all; `positions` are its rows in the split."""

    step: int
    inputs: Array
    target: Array
    first: int
    rows: int
    positions: Array


@dataclass(frozen=True, slots=True)
class Feed:
    """A split that has `rows`. Either `inputs` and `target` are those of all of them, or they are made of what `groups` reads.
    `check` is called while inputs are made, every few rows, by whatever thread makes them; it may raise. `held` bounds the
    bytes of what was read."""

    plan: Plan
    rows: int
    check: Callable[[], None]
    groups: Groups | None = None
    inputs: Array | None = None
    target: Array | None = None
    held: int = HELD_BYTES

    @classmethod
    def read(
        cls,
        dataset: Dataset,
        split: str,
        plan: Plan,
        check: Callable[[], None],
        *,
        kept: int = KEPT_BYTES,
        held: int = HELD_BYTES,
        among: Array | None = None,
    ) -> Feed:
        """The split as `plan` wants it, or of what it does not read itself these rows alone, INT64 positions in order; its
        inputs are kept where they take at most `kept` bytes, or the plan made them."""
        if plan.read is not None:
            inputs, target = plan.read(dataset, split, check)
            return cls(plan, len(target), check, None, inputs, target)
        groups = Groups(dataset, split, [*plan.features, plan.target], held, among)
        raw = cls(plan, sum(groups.rows), check, groups, held=held)
        inputs, _ = raw.take(np.arange(1))
        if inputs.nbytes * raw.rows > kept:
            return raw
        inputs, target = raw.take(np.arange(raw.rows))
        return cls(plan, raw.rows, check, None, inputs, target)

    def take(self, positions: Array) -> tuple[Array, Array]:
        """The network's input and the target of some rows, which are the caller's to change."""
        if self.inputs is not None and self.target is not None:
            return self.inputs[positions], self.target[positions]
        return self._make(positions)

    def order(self, seed: int, epoch: int) -> Order:
        """The order of an epoch."""
        groups = self.groups
        if groups is None or groups.bytes <= self.held * 9 // 10:  # a tenth for what is more once it is read
            return Order(np.ones(self.rows, np.int64), seed, epoch)
        # half of what is held is windows, the other half row groups of which a window needs a part
        window = self.held * self.rows // (2 * LANES * groups.bytes)
        return Order(groups.rows, seed, epoch, LANES, max(1, window))

    def steps(self, batch: int) -> int:
        """Steps of an epoch."""
        return shards.steps(self.rows, batch)

    def batches(
        self, seed: int, epoch: int, world: int, rank: int, batch: int, first: int = 0, stop: int | None = None
    ) -> Iterator[Batch]:
        """The rank's part of every step of an epoch, from step `first` on and up to `stop`: those that it would have had,
        whatever the number of ranks that did the steps before."""
        parts = enumerate(shards.parts(self.order(seed, epoch), world, rank, batch, first, stop), first)
        if self.groups is None:
            yield from (_batch(step, part, *self.take(part.positions)) for step, part in parts)
        else:
            yield from self._ahead(parts)

    def _ahead(self, parts: Iterator[tuple[int, Part]]) -> Iterator[Batch]:
        """One batch is made while the one before is computed on: decoding leaves the interpreter to others. The thread gives
        the signs of life itself, as it gets on: who waits for one that hangs gives none."""
        with ThreadPoolExecutor(1, "feed") as thread:
            waiting = None
            for step, part in parts:
                coming = thread.submit(self._make, part.positions)
                if waiting:
                    yield _batch(*waiting[:2], *waiting[2].result())
                waiting = step, part, coming
            if waiting:
                yield _batch(*waiting[:2], *waiting[2].result())

    def _make(self, positions: Array) -> tuple[Array, Array]:
        """The network's input and the target of some rows, from what is read."""
        assert self.groups is not None, "what was kept is not made again"
        assert self.plan.before is not None, "a plan that reads splits itself is kept"
        made, target = None, None
        for start in range(0, len(positions), _READ):
            columns = self.groups.take(positions[start : start + _READ])
            answers = columns[self.plan.target]
            target = np.empty(len(positions), answers.dtype) if target is None else target
            target[start : start + len(answers)] = answers
            for at in range(0, len(answers), _AT_ONCE):
                self.check()
                part = self.plan.before({name: columns[name][at : at + _AT_ONCE] for name in self.plan.features})
                made = np.empty((len(positions), *part.shape[1:]), part.dtype) if made is None else made
                made[start + at : start + at + len(part)] = part
        assert made is not None, "no rows were asked for"
        assert target is not None
        return made, target


def _batch(step: int, part: Part, inputs: Array, target: Array) -> Batch:
    return Batch(step, inputs, target, part.first, part.rows, part.positions)
