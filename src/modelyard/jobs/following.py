"""Those who follow a job are woken when it ends in this process. Whatever else happens to it they find when they look next."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Followers:
    """Who waits for the end of which job."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Event, tuple[str, asyncio.AbstractEventLoop]] = {}

    async def pause(self, job: str, seconds: float) -> None:
        """Returns after so many seconds, or as soon as `wake` is called for this job."""
        woken = asyncio.Event()
        self._waiting[woken] = job, asyncio.get_running_loop()
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), seconds)
        finally:
            del self._waiting[woken]

    def wake(self, job: str) -> None:
        """Any thread may call it, once the end is in the database."""
        for woken, (followed, loop) in self._waiting.copy().items():
            if followed == job:
                with suppress(RuntimeError):  # its loop has ended
                    loop.call_soon_threadsafe(woken.set)
