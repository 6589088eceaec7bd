"""Calls to deployments that are asleep: held until a replica is ready, while control is asked to wake one.

The gateway holds them; `waker` (given by `serve`) asks control with the caller's own key. Nothing wakes for who has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from modelyard.serving.types import DeploymentState, Route

MOST = 4096  # calls that may be held at a time, of all projects
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

    def drop(self) -> Callable[[], None] | None:
        self._late.cancel()
        done, self._done = self._done, None
        return done

    def tell(self) -> None:
        done = self.drop()
        if done is not None:
            done()


class Sleepers:
    """The calls that are held, by deployment. Every method runs on the event loop's thread."""

    def __init__(self) -> None:
        self._held: dict[Name, dict[_Held, None]] = {}
        self._asked: dict[Name, tuple[float, int]] = {}  # when last, and how often
        self.waker: Callable[[Route, Credentials], None] | None = None

    @property
    def any(self) -> bool:
        """Whether a call waits, so that it is worth looking at the database often."""
        return bool(self._held)

    def room(self, route: Route, credentials: Credentials) -> bool:
        """Whether one more may be held: a project has no more places than are left free for others (Choudhury and Hahne,
        Dynamic queue length thresholds for shared-memory packet switches, 1998). Where not, control is asked all the same, so
        that who tries again finds it awake."""
        places = [(project, len(held)) for (project, _), held in self._held.items()]
        if sum(n for project, n in places if project == route.project) < MOST - sum(n for _, n in places):
            return True
        self._ask(route, [credentials])
        return False

    def hold(self, route: Route, credentials: Credentials, patience: float, done: Callable[[], None]) -> Callable[[], None]:
        """Call `done` once the deployment has a replica or has failed, or after `patience` seconds; not where what this returns
        was called before, which gives the place to others."""
        name, held = (route.project, route.deployment), _Held(credentials, done, patience)
        self._held.setdefault(name, {})[held] = None
        self._ask(route, [credentials])
        return lambda: self._leave(name, held)

    def _leave(self, name: Name, held: _Held) -> None:
        held.drop()
        waiting = self._held.get(name, {})
        waiting.pop(held, None)
        if not waiting:
            self._held.pop(name, None)

    def _ask(self, route: Route, waiting: Iterable[Credentials]) -> None:
        """Ask control where that is due, each time by the next of the keys that wait: one may be revoked by now."""
        name, now = (route.project, route.deployment), asyncio.get_running_loop().time()
        last, times = self._asked.get(name, (float("-inf"), 0))
        if self.waker is not None and now - last >= AGAIN:
            self._asked[name] = now, times + 1
            keys = list(dict.fromkeys(waiting))
            self.waker(route, keys[times % len(keys)])

    def look(self, known: Callable[[Name], Route | None]) -> None:
        """Let those go whose wait is over. Ask again for who is asleep still, or once more because others needed the room, and
        for who cannot be served as it is: the release before may wake. Called when routes have changed, and now and then."""
        for name in list(self._held):
            route = known(name)
            if route is None or route.state in (DeploymentState.ready, DeploymentState.failed):
                self._asked.pop(name, None)
                for held in self._held.pop(name):  # each in a turn of its own: what one raises is no other's
                    asyncio.get_running_loop().call_soon(held.tell)
                continue
            waiting = self._held[name] = {held: None for held in self._held[name] if not held.over}
            if not waiting:
                del self._held[name]
            elif route.state == DeploymentState.asleep or route.error is not None:
                self._ask(route, (held.credentials for held in waiting))
