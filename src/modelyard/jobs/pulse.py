"""Whether a gang hangs, judged rank by rank: a rank that says nothing for too long hangs, however much the others say.

The launcher tells it of every sign of life and asks it several times a second. A rank may be silent while it waits for an
answer that control owes it. One that is silent meanwhile may only wait for that rank, in a collective: its clock goes slower.
Pure: it is told the time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

# Seconds that count at most between two looks: where the launcher itself was held up the ranks were not heard.
_STEP = 1.0
# How much slower the clock of a rank goes while another one waits for control.
_SLOWER = 5.0
# A rank may announce that it is silent for so many times as long as usual, at most.
_MOST = 1000.0


class Pulse:
    """The silence of each rank since its last sign of life. `heartbeat`: seconds of it that are too long."""

    def __init__(self, ranks: Iterable[int], heartbeat: float, now: float) -> None:
        self.heartbeat = heartbeat
        self._silence = dict.fromkeys(ranks, 0.0)
        self._times = dict.fromkeys(self._silence, 1.0)
        self._looked = now

    def beat(self, rank: int) -> None:
        """A sign of life."""
        self._silence[rank] = 0.0

    def allow(self, rank: int, times: float) -> None:
        """The rank announced what takes longer: from now on it may be silent `times` as long as usual."""
        self._times[rank] = min(max(1.0, times), _MOST)

    def limit(self, rank: int) -> float:
        """Seconds that the rank may be silent."""
        return self.heartbeat * self._times[rank]

    def told(self, silent: Collection[int]) -> str:
        """'no sign of life from rank 1 for 120 s'."""
        whose = "any rank" if len(silent) == len(self._silence) else f"rank {', '.join(map(str, silent))}"
        return f"no sign of life from {whose} for {min(map(self.limit, silent)):g} s"

    def look(self, now: float, running: Collection[int], asking: Collection[int]) -> list[int]:
        """The ranks of those `running` that have been silent, where one has been so for too long; else none. `asking`: those
        that wait for control."""
        passed, self._looked = min(now - self._looked, _STEP), now
        for rank in running:
            if rank in asking:
                self.beat(rank)
            else:
                self._silence[rank] += passed / (_SLOWER if asking else 1.0)
        if not any(self._silence[rank] >= self.limit(rank) for rank in running):
            return []
        # Those that wait for it fell silent a moment later.
        return [rank for rank in running if self._silence[rank] >= self.limit(rank) / 2]
