"""Waiting awake for what comes within less time than going to sleep and waking up would take.

A process that has nothing to do sleeps in its event loop, and finds the processor's caches cold when it wakes: of a small call
that is most of its time. Where the next event was within microseconds of late, the loop goes round instead for about as long
as that takes, and what comes meanwhile is handled at once. Who is called now and then, or by many, never waits so; nor does one
of several on a machine, for whom the others would wait.
"""

from __future__ import annotations

import asyncio
import time

SOON = 300e-6  # seconds: what is farther off is slept through
_LONG = 4 * SOON  # no wait counts for more, so that a pause is soon forgotten
_WEIGHT = 0.125  # of the newest wait


class Polling:
    """One thing that is waited for: `begin` when nothing else is left to do, `came` when it is there. `alone`: nobody else on
    this machine would have the processor, so that it may be waited for awake."""

    __slots__ = ("_expected", "_loop", "_since", "_until", "alone")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._expected = _LONG  # seconds, a mean that the newest waits weigh most in
        self._since = self._until = 0.0
        self.alone = False

    def begin(self) -> None:
        """What is waited for may come from now on."""
        self._since = now = time.perf_counter()
        if self.alone and self._expected < SOON:
            self._until = now + 2 * self._expected
            self._loop.call_soon(self._turn)

    def came(self) -> None:
        """It is there; what had not begun is not counted."""
        if self._since:
            waited = min(time.perf_counter() - self._since, _LONG)
            self._expected += _WEIGHT * (waited - self._expected)
            self._since = 0.0

    def _turn(self) -> None:
        if self._since and time.perf_counter() < self._until:
            self._loop.call_soon(self._turn)
