"""The verdict on a call that may be made, with all that the gateway found on the way to it.

`gateway` makes one for a request line and a key and keeps it for half a second; `exchange` carries it to the call's end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from modelyard.serving.cache import Cache
from modelyard.serving.doors import Door, Envelope
from modelyard.serving.meter import Slot
from modelyard.serving.metrics import Cell
from modelyard.serving.quotas import Buckets
from modelyard.serving.router import Group
from modelyard.serving.trials import Comparison
from modelyard.serving.types import Route
from modelyard.tenancy.types import Principal

Credentials = tuple[tuple[bytes, bytes], ...]
Head = Mapping[str, str] | None


class Waiter(Protocol):
    """Who may wait: since when, a time.time(), and by what key. While it is held, `leave` gives its place up."""

    leave: Callable[[], None] | None

    @property
    def began(self) -> float: ...
    @property
    def credentials(self) -> Credentials: ...


class Admission:
    """The verdict on a request line and its key, with all that is found on the way; shared by calls that look the same. Where
    there is a quota, each of them is taken from `buckets`.

    While a release is on trial, `canary` is the admission of the calls that it is given, `comparison` counts whose turn it is
    and what came of it, `shadow` where copies go to; `cache` holds answers where the deployment wants that."""

    __slots__ = (
        "buckets",
        "cache",
        "canary",
        "cell",
        "comparison",
        "door",
        "envelope",
        "group",
        "outcome",
        "principal",
        "route",
        "shadow",
        "slot",
        "until",
        "version",
    )

    def __init__(
        self,
        principal: Principal,
        envelope: Envelope,
        route: Route,
        door: Door,
        group: Group,
        slot: Slot,
        cell: Cell,
        until: float,
        version: str,
    ) -> None:
        self.principal, self.envelope, self.route, self.door = principal, envelope, route, door
        self.group, self.slot, self.cell, self.until, self.version = group, slot, cell, until, version
        self.canary: Admission | None = None
        self.shadow: Admission | None = None
        self.comparison: Comparison | None = None
        self.outcome: Callable[[bool, float], None] | None = None
        self.cache: Cache | None = None
        self.buckets: Buckets | None = None

    def turn(self) -> Admission:
        """The admission of the next call: this one, or the canary's."""
        if self.canary is not None and self.comparison is not None and self.comparison.turn():
            return self.canary
        return self
