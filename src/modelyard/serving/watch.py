"""What replicas say of themselves, once a second where they are ready: how many calls they hold, whether they compute, how
large they are.

The controller asks it; nothing here decides and nothing is written down. After a restart of control it begins anew, which
costs a hung replica its time once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta

from modelyard.db import now
from modelyard.jobs.types import ProcessStatus
from modelyard.metrics import UNEXPECTED
from modelyard.serving.planning import DRAIN, Observed
from modelyard.serving.scaling import Load, Loads
from modelyard.serving.tables import ReplicaRow
from modelyard.serving.types import Health, ReplicaState
from modelyard.telemetry import log

_log = log(__name__)

EVERY = 1.0  # seconds between two questions to a replica that is ready
_PATIENCE = 0.25  # seconds a look waits for answers; later ones are for the next
# A replica is swollen that takes so many times what it first took, and this much more.
_TIMES, _MORE = 2.0, 512 << 20


@dataclass(slots=True)
class _Known:
    """`since`: when it last moved: it held no call, had computed more, or was not asked before. `served`: it ever answered;
    `done` and `refused`, counted so far; `heard`: it has answered since that count. `left`: when it was asked, if it said that
    nobody is connected to it."""

    health: Health | None
    steps: int
    since: float
    memory: int = 0
    served: bool = False
    done: int | None = None
    refused: int = 0
    heard: bool = False
    left: float | None = None


class Watch:
    """`probe(address)` asks a replica how it is; None where it does not answer within a second."""

    def __init__(self, probe: Callable[[str], Health | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._probe, self._clock = probe, clock
        self._known: dict[str, _Known] = {}
        self._loads: dict[tuple[int, int], Loads] = {}
        self._asked = float("-inf")
        self._pool = ThreadPoolExecutor(8, "probe")  # one that hangs keeps nobody waiting
        self._underway: dict[str, tuple[Future[Health | None], float]] = {}

    def look(self, rows: Sequence[ReplicaRow]) -> None:
        """Ask those that are starting now, those that are leaving until they must go anyway, and those that are ready where it
        is time."""
        at = self._clock()
        self._known = {row.token: known for row in rows if (known := self._known.get(row.token))}
        wanted: tuple[ReplicaState, ...] = (ReplicaState.starting,)
        if at - self._asked >= EVERY:
            self._asked, wanted = at, (*wanted, ReplicaState.ready)
        for row in rows:
            if (row.state in wanted or _leaves(row)) and row.token not in self._underway:
                self._underway[row.token] = self._pool.submit(self._probe, row.address), at
        wait([answer for answer, _ in self._underway.values()], _PATIENCE)
        self._take({row.token for row in rows}, at)
        if ReplicaState.ready in wanted:
            self._count(rows, at)

    def _take(self, tokens: Collection[str], at: float) -> None:
        """Note the answers that have come."""
        for token in [token for token, (answer, _) in self._underway.items() if answer.done()]:
            answer, asked = self._underway.pop(token)
            if (error := answer.exception()) is not None:
                UNEXPECTED.labels("controller").inc()
                _log.warning("a replica could not be asked", token=token, error=repr(error)[:300])
            if token in tokens:
                health = None if error is not None else answer.result()
                self._note(token, health, at)
                self._known[token].left = asked if health is not None and health.peers == 0 else None

    def observed(self, row: ReplicaRow, status: ProcessStatus | None) -> Observed:
        known = self._known.get(row.token)
        alive = status is not None and status.exit is None
        stuck = self._clock() - known.since if known and row.state == ReplicaState.ready else 0.0
        return Observed(
            row.token,
            row.generation,
            ReplicaState(row.state),
            row.started,
            row.changed,
            status.pid if status else None,
            status.exit if status else None,
            alive,
            known.health if known else None,
            timedelta(seconds=stuck),
            known is not None and _swollen(known),
            known is not None and known.served,
            None if known is None or known.left is None else timedelta(seconds=self._clock() - known.left),
            status.reason if status else "",
        )

    def load(self, release: tuple[int, int], tokens: Sequence[str]) -> Load:
        """What is asked of a release; `tokens` are its replicas that are ready."""
        loads = self._loads.get(release)
        if loads is None:
            return Load()
        measured = [known.health.metadata.get("batch") for t in tokens if (known := self._known.get(t)) and known.health]
        each = next((batch["us_a_row"] for batch in measured if batch), None)
        return loads.at(self._clock(), each)

    def _note(self, token: str, health: Health | None, at: float) -> None:
        known = self._known.get(token)
        if known is None:
            known = self._known[token] = _Known(health, -1, at)
        known.health = health
        if health is None:
            return
        known.served, known.heard = known.served or health.done > 0, True
        if health.depth == 0 or health.steps != known.steps:
            known.since, known.steps = at, health.steps
        if health.state == ReplicaState.ready:
            known.memory = known.memory or health.memory

    def _count(self, rows: Sequence[ReplicaRow], at: float) -> None:
        asked: dict[tuple[int, int], list[int]] = {}
        unheard = set[tuple[int, int]]()
        for row in rows:
            known = self._known.get(row.token)
            if row.state == ReplicaState.ready:
                release = (row.deployment, row.generation)
                counts = asked.setdefault(release, [0, 0, 0])
                if known is None or not known.heard:
                    unheard.add(release)
                for index, count in enumerate(_new(known) if known else ()):
                    counts[index] += count
        self._loads = {release: self._loads.get(release, Loads()) for release in asked}
        for release, counts in asked.items():
            self._loads[release].add(at, *counts, whole=release not in unheard)


def _leaves(row: ReplicaRow) -> bool:
    """Whether it is worth asking who is connected to it still: on this machine, where that is as good as now."""
    return row.state == ReplicaState.draining and row.address.startswith("/") and now() - row.changed < DRAIN


def _new(known: _Known) -> tuple[int, int, int]:
    """Calls at a replica, and what it has answered and refused since this was last asked."""
    health = known.health
    if health is None:
        return 0, 0, 0
    before, known.done, known.heard = known.done, health.done, False
    refused, known.refused = known.refused, health.refused
    since = (0, 0) if before is None else (max(0, health.done - before), max(0, health.refused - refused))
    return health.depth, *since


def _swollen(known: _Known) -> bool:
    grown = known.health.memory if known.health else 0
    return bool(known.memory) and grown > max(_TIMES * known.memory, known.memory + _MORE)
