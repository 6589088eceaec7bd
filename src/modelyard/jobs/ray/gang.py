"""A gang on a cluster, as control sees it: `jobs.types.GangHandle` over the parts of it on its nodes.

Each part is a launcher that knows its own ranks only. They become one here: it has started when all parts have, its questions
find their way back, it ends when all have, and the first failure is the cause. Links call it from their threads; nothing waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from modelyard.errors import Crashed, Invalid, ModelyardError
from modelyard.jobs.types import Event, Gang

# Seconds after the first part failed in which the others may end by themselves, so that the cause is among what is said.
_SETTLE = 2.0


class Link(Protocol):
    """What a gang needs of the way to a node."""

    def tell(self, **message: Any) -> None: ...


class RayGang:
    """Control's end of one gang. `changed(gang)` is called when there is something to poll, `idle(gang, yes)` when the gang
    comes to wait for its children, and when it goes on."""

    def __init__(self, gang: Gang, changed: Callable[[RayGang], None], idle: Callable[[RayGang, bool], None]) -> None:
        self.gang = gang
        self.ended = False
        self._changed, self._idle = changed, idle
        self._lock = threading.Lock()
        self._links: dict[str, Link] = {}
        self._events: list[Event] = []
        self._pids: dict[str, Sequence[int]] = {}
        self._used: dict[str, float] = {}
        self._ends: dict[str, Mapping[str, Any]] = {}
        self._told: set[str] = set()
        self._waits: set[int] = set()
        self._settle_at: float | None = None

    @property
    def token(self) -> str:
        return self.gang.token

    @property
    def killed(self) -> bool:
        return "kill" in self._told

    def over(self, node: str) -> bool:
        """Whether the part on `node` has ended, for all that is known here."""
        return self.ended or node in self._ends

    def poll(self) -> Sequence[Event]:
        with self._lock:
            late = self._settle_at is not None and time.monotonic() >= self._settle_at
            events, self._events = self._events, []
        if late:
            self.kill()
        return events

    def answer(self, ask: int, value: Any, error: ModelyardError | None = None) -> None:
        with self._lock:
            goes_on = self._waits == {ask}
            self._waits.discard(ask)
        if goes_on:
            self._idle(self, False)
        said = None if error is None else {"code": error.code, "message": error.message}
        link = self._links.get(self._node(ask % self.gang.ranks))
        if link is not None:
            link.tell(do="answer", token=self.token, ask=ask, value=value, error=said)

    def cancel(self) -> None:
        self._tell("cancel")

    def kill(self) -> None:
        self._tell("kill")

    def joined(self, node: str, link: Link) -> None:
        """A part of it is on its way on `node`; it hears what was said to the gang meanwhile."""
        with self._lock:
            self._links[node] = link
            told = sorted(self._told)
        for word in told:
            link.tell(do=word, token=self.token)

    def hear(self, node: str, event: Event) -> None:
        """What the part on `node` says."""
        with self._lock:
            if self.ended or node in self._ends:
                return
            try:
                heard = self._merge(node, event)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                heard = self._merge(node, ended(Invalid(f"The gang did not keep to the protocol: {error!r}")))
        if event.type in ("wait", "watch"):
            self._idle(self, True)  # before it can be polled: its children are to have the room
        with self._lock:
            if heard is not None and not self.ended:
                self._events.append(heard)
                self.ended = heard.type == "ended"
        self._changed(self)

    def _tell(self, word: str) -> None:
        with self._lock:
            if word in self._told:
                return
            self._told.add(word)
            links = [link for node, link in self._links.items() if node not in self._ends]
        for link in links:
            link.tell(do=word, token=self.token)

    def _node(self, rank: int) -> str:
        for node, ranks in self.gang.nodes:
            if rank < ranks:
                return node
            rank -= ranks
        raise IndexError(f"the gang has no rank {rank}")

    def _merge(self, node: str, event: Event) -> Event | None:
        """What the gang as a whole says when a part says this; None: nothing yet."""
        names = [name for name, _ in self.gang.nodes]
        match event.type:
            case "started":
                self._pids[node] = event.body["pids"]
                if len(self._pids) < len(names):
                    return None
                return Event("started", {"pids": [pid for name in names for pid in self._pids[name]]})
            case "beat":
                self._used[node] = float(event.body["cpu_seconds"])
                return Event("beat", {"cpu_seconds": sum(self._used.values())})
            case "ended":
                self._ends[node] = _checked(event.body) | {"by_us": self.killed}
                if len(self._ends) == len(names):
                    return Event("ended", together([self._ends[name] for name in names], "cancel" in self._told))
                if not event.body["ok"] and self._settle_at is None:
                    self._settle_at = time.monotonic() + _SETTLE
                return None
            case "wait":
                self._waits.add(int(event.body["ask"]))
                return event
            case _:
                return event


def ended(error: ModelyardError) -> Event:
    """The last word about a gang, or a part of one, that cannot say it itself."""
    said = {"code": error.code, "message": error.message}
    return Event("ended", {"ok": False, "cancelled": False, "error": said, "signal": None, "cpu_seconds": 0.0})


def _checked(end: Mapping[str, Any]) -> dict[str, Any]:
    """How a part says that it ended, as what it has to be."""
    error, signal = end["error"], end["signal"]
    return {
        "ok": bool(end["ok"]) and error is None,
        "cancelled": bool(end["cancelled"]),
        "error": None if error is None else {"code": str(error["code"]), "message": str(error["message"])},
        "signal": None if signal is None else int(signal),
        "cpu_seconds": float(end["cpu_seconds"]),
        "at": float(end.get("at", 0.0)),
    }


def together(ends: Sequence[Mapping[str, Any]], stopped: bool) -> dict[str, Any]:
    """How a gang ended, from how its parts did. A part that was lost explains what the others then say of it; where several
    failed by themselves the first did, by the nodes' clocks; those that we ended tell nothing if another failed before. Of one
    that was asked to stop, parts miss their peers that already did: that is no failure."""
    failed = [end for end in ends if end["error"] is not None]
    own = [end for end in failed if not end["by_us"]] or failed
    cause = min(own, key=lambda end: (end["error"]["code"] != Crashed.code, end["at"]), default=None)
    if stopped and cause is not None and cause["error"]["code"] != Crashed.code and any(end["cancelled"] for end in ends):
        cause = None
    return {
        "ok": all(end["ok"] for end in ends),
        "cancelled": cause is None and any(end["cancelled"] for end in ends),
        "error": None if cause is None else cause["error"],
        "signal": None if cause is None else cause["signal"],
        "cpu_seconds": sum(end["cpu_seconds"] for end in ends),
    }
