"""Where a gang fits: what is free on every node, and the nodes that are left with least when the gang is there.

`assign` and `backfill` call it. A gang fits where the nodes together have a place for each of its ranks; that it may span nodes
makes this exact: no cleverer packing finds room where this finds none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from modelyard.jobs.types import Amount, Node

# How many ranks of a gang on which node, by the node's number.
Spots: TypeAlias = tuple[tuple[int, int], ...]
Free: TypeAlias = NDArray[np.int64]
Counts: TypeAlias = NDArray[np.int64]
_MOST = 1 << 40


class Room:
    """The nodes, in the order of their names. `total` and `free` are [resource, node]."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        ordered = sorted(nodes, key=lambda node: node.name)
        self.nodes = tuple(ordered)
        self.names = tuple(node.name for node in ordered)
        self.number = {name: number for number, name in enumerate(self.names)}
        self.total: Free = np.array([node.room for node in ordered], dtype=np.int64).reshape(-1, len(Amount._fields)).T.copy()
        self.free = self.total.copy()
        self._weights = 1.0 / np.maximum(self.total.max(axis=1, initial=0), 1)
        self._left = self._weights @ self.free

    @property
    def capacity(self) -> Amount:
        """All nodes together."""
        return Amount(*(int(amount) for amount in self.total.sum(axis=1)))

    @property
    def unused(self) -> Amount:
        return Amount(*(int(amount) for amount in self.free.sum(axis=1)))

    def spots(self, nodes: Iterable[tuple[str, int]]) -> Spots:
        """Where a gang is; nodes that are gone are left out."""
        return tuple((self.number[name], ranks) for name, ranks in nodes if name in self.number)

    def take(self, spots: Spots, each: Amount) -> None:
        """Give ranks of `each` their places."""
        for node, ranks in spots:
            for resource, amount in enumerate(each):
                self.free[resource, node] -= ranks * amount
            self._left[node] = self._weights @ self.free[:, node]

    def fit(self, counts: Counts, ranks: int) -> Spots | None:
        """The best places for a gang, of which `counts` ranks fit on each node: one node if there is one, else few; among those
        the ones with least left. None where there are not enough."""
        whole = np.flatnonzero(counts >= ranks)
        if len(whole):
            return ((int(whole[self._left[whole].argmin()]), ranks),)
        if counts.sum() < ranks:
            return None
        spots: list[tuple[int, int]] = []
        for node in np.lexsort((self._left, -counts)):
            held = min(ranks, int(counts[node]))
            if held == ranks:  # the rest fits on one node: the fullest that has room for it
                enough = np.flatnonzero(counts >= ranks)
                enough = enough[~np.isin(enough, [number for number, _ in spots])]
                node = enough[self._left[enough].argmin()]
            spots.append((int(node), held))
            ranks -= held
            if not ranks:
                break
        return tuple(sorted(spots))


def slots(free: Free, each: Amount) -> Counts:
    """Ranks of `each` that fit on every node."""
    counts: Counts = np.full(free.shape[1], _MOST, dtype=np.int64)
    for row, amount in zip(free, each, strict=True):
        if amount:
            np.minimum(counts, row // amount, out=counts)
    return np.maximum(counts, 0, out=counts)


def slots_on(free: Sequence[int], each: Amount) -> int:
    """Ranks of `each` that fit on one node with that much free."""
    return max(0, min((have // amount for have, amount in zip(free, each, strict=True) if amount), default=_MOST))
