"""Keeps a gateway's memory — keys and routes — equal to the database, from a thread, by the revision number.

It polls the number and loads only when it moved; whoever meets an unknown key or deployment asks it to look at once. It knows
neither tables nor HTTP: `load` and `revision` are given to it, and what it finds goes to `apply` on the event loop.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from modelyard.metrics import UNEXPECTED
from modelyard.serving.types import Route
from modelyard.telemetry import log
from modelyard.tenancy.access import KeyRecord
from modelyard.tenancy.quota import Quota

_log = log(__name__)
EVERY = 0.25  # seconds between looks
LEAST = 0.03  # least seconds between looks that were asked for: a flood of wrong keys cannot hammer the database
PATIENCE = 2.0  # seconds who asked for a look waits for it: one at a database that is locked takes as long as the lock
# Told on the event loop, once: whether what a look found that began after the asking is in force.
Done = Callable[[bool], None]


class State(NamedTuple):
    """What a gateway knows, as of a revision. `quotas`: of projects; a key has its own with it."""

    revision: int
    keys: Sequence[KeyRecord]
    routes: Sequence[Route]
    quotas: Mapping[str, Quota] = {}


class Follower:
    """`start` looks once before it returns, so that a gateway never begins by refusing keys it could have known."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        load: Callable[[], State],
        revision: Callable[[], int],
        apply: Callable[[State], None],
        *,
        every: float = EVERY,
    ) -> None:
        self._loop, self._load, self._number, self._apply, self._every = loop, load, revision, apply, every
        self._revision: int | None = None
        self._seen = float("-inf")
        self._lock = threading.Lock()
        self._asked: list[_Asker] = []
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    @property
    def age(self) -> float:
        """Seconds since the database was last seen; infinite before the first time."""
        return time.monotonic() - self._seen

    def start(self) -> None:
        self._look()
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._thread.join(5.0)

    def refresh(self, done: Done) -> None:
        """Look now; `done(True)` is called on the event loop once what a look that began after this call found is in force,
        `done(False)` where the database was not seen within `PATIENCE`. Many askers share a look. Called on the event loop."""
        asker = _Asker(self._loop, done)
        with self._lock:
            self._asked.append(asker)
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(self._every)
            self._wake.clear()
            with self._lock:
                asked, self._asked = self._asked, []
            seen = self._look()
            for asker in asked:
                self._loop.call_soon_threadsafe(asker.tell, seen)
            time.sleep(LEAST)

    def _look(self) -> bool:
        """Whether the database was seen."""
        began = time.monotonic()
        try:
            if self._revision is None or self._number() != self._revision:
                state = self._load()
                self._loop.call_soon_threadsafe(self._apply, state)
                self._revision = state.revision
            self._seen = began
            return True
        except Exception as error:  # noqa: BLE001 - the edge of a thread: the database may fail in any way and come back
            UNEXPECTED.labels("gateway").inc()
            _log.warning("database not seen", age=round(self.age, 1), error=repr(error)[:300])
            return False


class _Asker:
    """Somebody who waits for a look, on the event loop: told once, by the look or by the clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop, done: Done) -> None:
        self._done: Done | None = done
        self._late = loop.call_later(PATIENCE, self.tell, False)

    def tell(self, seen: bool) -> None:
        self._late.cancel()
        done, self._done = self._done, None
        if done is not None:
            done(seen)
