"""What the first in line that cannot start yet keeps from those behind it, so that nobody who came later delays it.

`assign` makes one for the first that waits. Two promises, the first where it can be given:

- where the time limits of what runs say when there will surely be room, it starts at that moment at the latest: it is given
  its nodes then, and who goes ahead ends before or leaves them free;
- where they do not, whichever gangs end next: if it could start then, it still can beside those that went ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelyard.jobs.packing import Counts, Free, Room, Spots, slots, slots_on
from modelyard.jobs.types import Amount

# Amounts of room that a node can come to have, up to which they are counted out; beyond, any is thought possible.
_MOST_STATES = 64


@dataclass(frozen=True, slots=True)
class Held:
    """What a gang holds until it ends, `left` seconds from now at the latest (None: nobody knows)."""

    spots: Spots
    each: Amount
    left: float | None


class Reservation:
    """For a gang of `ranks` × `each` that does not fit now. `only`: the nodes it must have, where its processes are there
    already. `within`: seconds until it starts at the latest, None where no limit promises it."""

    def __init__(self, room: Room, ranks: int, each: Amount, held: Sequence[Held], only: Spots | None = None) -> None:
        self._room, self._ranks, self._each = room, ranks, each
        self._most = slots(room.total, each)
        if only is not None:
            allowed = np.zeros_like(self._most)
            for node, count in only:
                # On a single node it does not matter which of its processors: there, more than it needs may come free.
                allowed[node] = count if len(only) > 1 else self._most[node]
            self._most = np.minimum(self._most, allowed)
        self.within: float | None = None
        self._spare = 0
        if not self._promise(held):
            self._spare = self._whichever(held)

    def ends_before(self, limit: float | None) -> bool:
        """Whether one that runs `limit` seconds at most is over by the moment that was promised."""
        return self.within is not None and limit is not None and limit <= self.within

    def find(self, ranks: int, each: Amount, limit: float | None) -> Spots | None:
        """Where one behind may go ahead."""
        if self.within is not None:
            free = self._room.free if self.ends_before(limit) else self._open
            return self._room.fit(slots(free, each), ranks)
        counts = slots(self._room.free, each)
        # First where the one in front can have no use for it.
        spots = self._room.fit(np.where(self._most > 0, 0, counts), ranks)
        if spots is None and self._spare:
            spots = self._room.fit(counts, ranks)
        return spots if spots is not None and self._cost(spots, each) <= self._spare else None

    def allows(self, spots: Spots, each: Amount, limit: float | None) -> bool:
        """Whether one behind may go ahead on just these, which are free."""
        if self.within is None:
            return self._cost(spots, each) <= self._spare
        free = self._room.free if self.ends_before(limit) else self._open
        return all(slots_on(free[:, node].tolist(), each) >= ranks for node, ranks in spots)

    def admit(self, spots: Spots, each: Amount, limit: float | None) -> None:
        """One behind has taken these places; the room knows already."""
        if self.within is None:
            self._spare -= self._cost(spots, each)
            return
        lasts = not self.ends_before(limit)
        for node, ranks in spots:
            if lasts:
                self._later[:, node] -= ranks * np.array(each)
            self._open[:, node] = np.minimum(self._room.free[:, node], self._later[:, node])

    def _counts(self, free: Free) -> Counts:
        counts: Counts = np.minimum(slots(free, self._each), self._most)
        return counts

    def _promise(self, held: Sequence[Held]) -> bool:
        """Find the first moment at which limits leave enough room, and reserve the nodes that it will have."""
        ending = sorted((one for one in held if one.left is not None), key=lambda one: one.left or 0.0)
        moments = [one.left or 0.0 for one in ending for _ in one.spots]
        nodes = np.array([node for one in ending for node, _ in one.spots], dtype=np.int64)
        amounts = np.array([[n * a for a in one.each] for one in ending for _, n in one.spots], dtype=np.int64).reshape(-1, 3).T

        def free_after(count: int) -> Free:
            free = self._room.free.copy()
            for resource in range(len(free)):
                np.add.at(free[resource], nodes[:count], amounts[resource, :count])
            return free

        low, high = 0, len(moments)
        if not high or self._counts(free_after(high)).sum() < self._ranks:
            return False
        while low < high:
            middle = (low + high) // 2
            if self._counts(free_after(middle)).sum() >= self._ranks:
                high = middle
            else:
                low = middle + 1
        self.within = moments[max(0, low - 1)]
        # All that ends at that very moment, too.
        self._later = free_after(sum(moment <= self.within for moment in moments))
        chosen = self._room.fit(self._counts(self._later), self._ranks)
        assert chosen is not None, "there was room for it a moment ago"
        for node, ranks in chosen:
            self._later[:, node] -= ranks * np.array(self._each)
        self._open = np.minimum(self._room.free, self._later)
        return True

    def _whichever(self, held: Sequence[Held]) -> int:
        """Places that it will not need at the moment it can start, whichever of the gangs end before it.

        Bit n of `sums` is set where some of the gangs together leave it n places more than now. Gangs over several nodes are
        taken for one on each: more is thought possible than is, never less.
        """
        on: dict[int, list[tuple[int, ...]]] = {}
        for one in held:
            for node, ranks in one.spots:
                if self._most[node]:
                    on.setdefault(node, []).append(tuple(ranks * amount for amount in one.each))
        need = self._ranks - int(self._counts(self._room.free).sum())
        gains = [self._gains(node, amounts) for node, amounts in on.items()]
        mask = (1 << (need + max((max(gain) for gain in gains), default=0) + 1)) - 1
        sums = 1
        for gain in gains:
            reached = sums
            for more in gain:
                reached |= sums << more
            sums = reached & mask
        enough = sums >> need
        return (enough & -enough).bit_length() - 1 if enough else 0

    def _gains(self, node: int, amounts: Sequence[tuple[int, ...]]) -> set[int]:
        """How many more places the node can come to have for it, whichever of its gangs end."""
        now = tuple(int(amount) for amount in self._room.free[:, node])
        most = int(self._most[node])
        before = min(most, slots_on(now, self._each))
        states = {now}
        for gang in amounts:
            states |= {tuple(map(int.__add__, state, gang)) for state in states}
            if len(states) > _MOST_STATES:
                return set(range(most - before + 1))
        return {min(most, slots_on(state, self._each)) - before for state in states}

    def _cost(self, spots: Spots, each: Amount) -> int:
        """Places it loses, at most, to one that takes these, at any moment."""
        asked = [(amount, mine) for amount, mine in zip(each, self._each, strict=True) if mine]
        worst = 0
        for node, ranks in spots:
            lost = max((-(-ranks * amount // mine) for amount, mine in asked), default=0)
            worst += min(int(self._most[node]), lost)
        return worst
