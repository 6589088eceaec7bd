"""Artefacts on their way to this machine, each for a replica that starts once it is here: fetched and hashed beside the loop.

The controller begins one with every replica's row, and looks at each tick which have come. A large artefact, or a slow store,
keeps nobody else's replicas waiting. Nothing here outlives the process: rows without a process are known as such by the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

_AT_A_TIME = 8


@dataclass(frozen=True, slots=True)
class Arrival:
    """An artefact that is here, or why it is not: `go` is what was to be done with its folder."""

    token: str
    go: Callable[[Path], None]
    folder: Path | None
    error: Exception | None = None


class Starts:
    """Used by one thread. `news` is called, from any, when an artefact has come."""

    def __init__(self, news: Callable[[], None]) -> None:
        self._news = news
        self._waiting: set[str] = set()
        self._come: SimpleQueue[Arrival] = SimpleQueue()
        self._room = threading.BoundedSemaphore(_AT_A_TIME)

    def __contains__(self, token: str) -> bool:
        """Whether a replica's artefact is on its way."""
        return token in self._waiting

    def begin(self, token: str, fetch: Callable[[], Path], go: Callable[[Path], None]) -> None:
        self._waiting.add(token)
        # Daemons: who ends control does not wait for a download.
        threading.Thread(target=self._run, args=(token, fetch, go), name="start", daemon=True).start()

    def come(self) -> list[Arrival]:
        """Those that have come since the last look."""
        found: list[Arrival] = []
        while True:
            try:
                found.append(self._come.get_nowait())
            except Empty:
                break
        self._waiting -= {arrival.token for arrival in found}
        return found

    def _run(self, token: str, fetch: Callable[[], Path], go: Callable[[Path], None]) -> None:
        with self._room:
            try:
                arrival = Arrival(token, go, fetch())
            except Exception as error:  # noqa: BLE001 - the edge of a thread: the loop is told
                arrival = Arrival(token, go, None, error)
        self._come.put(arrival)
        self._news()
