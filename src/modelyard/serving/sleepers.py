"""Calls to deployments that are asleep: held until a replica is ready, while control is asked to wake one.

The gateway holds them; `waker` (given by `serve`) asks control with the caller's own key. Nothing wakes for who has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from modelyard.serving.types import DeploymentState, Route

MOST = 4096  # calls that may be held at a time
AGAIN = 1.0  # seconds after which control is asked again
Name = tuple[str, str]
Credentials = tuple[tuple[bytes, bytes], ...]


class _Held:
    """One call that waits, with what it may wake by: `done` is told once, by a replica or by the clock."""

    __slots__ = ("_done", "_late", "credentials")

    def __init__(self, credentials: Credentials, done: Callable[[], None], patience: float) -> None:
        self.credentials = credentials
        self._done: Callable[[], None] | None = done
        self._late = asyncio.get_running_loop().call_later(patience, self.tell)

    @property
    def over(self) -> bool:
        return self._done is None

    def tell(self) -> None:
        self._late.cancel()
        done, self._done = self._done, None
        if done is not None:
            done()


class Sleepers:
    """The calls that are held, by deployment. Every method runs on the event loop's thread."""

    def __init__(self) -> None:
        self._held: dict[Name, list[_Held]] = {}
        self._asked: dict[Name, float] = {}
        self.waker: Callable[[Route, Credentials], None] | None = None

    @property
    def any(self) -> bool:
        """Whether a call waits, so that it is worth looking at the database often."""
        return bool(self._held)

    @property
    def room(self) -> bool:
        """Whether one more may be held."""
        return sum(map(len, self._held.values())) < MOST

    def hold(self, route: Route, credentials: Credentials, patience: float, done: Callable[[], None]) -> None:
        """Call `done` once the deployment has a replica or has failed, or after `patience` seconds."""
        name = (route.project, route.deployment)
        self._held.setdefault(name, []).append(_Held(credentials, done, patience))
        self._ask(name, route, credentials)

    def _ask(self, name: Name, route: Route, credentials: Credentials) -> None:
        now = asyncio.get_running_loop().time()
        if self.waker is not None and now - self._asked.get(name, float("-inf")) >= AGAIN:
            self._asked[name] = now
            self.waker(route, credentials)

    def look(self, known: Callable[[Name], Route | None]) -> None:
        """Let those go whose wait is over; ask again for who is asleep still, or once more because others needed the room.
        Called when routes have changed, and now and then."""
        for name in list(self._held):
            route = known(name)
            if route is None or route.state in (DeploymentState.ready, DeploymentState.failed):
                self._asked.pop(name, None)
                for held in self._held.pop(name):  # each in a turn of its own: what one raises is no other's
                    asyncio.get_running_loop().call_soon(held.tell)
                continue
            waiting = self._held[name] = [held for held in self._held[name] if not held.over]
            if not waiting:
                del self._held[name]
            elif route.state == DeploymentState.asleep:
                self._ask(name, route, waiting[0].credentials)
