"""Where a replica goes: a decision from values, nothing more. `executor` asks it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from modelyard.jobs.types import ProcessStatus


class Placed(NamedTuple):
    """A replica on a node as that tells of it: as `ProcessStatus`, and the group that it was started in."""

    token: str
    pid: int
    exit: int | None
    address: str
    group: str
    reason: str = ""

    @property
    def status(self) -> ProcessStatus:
        return ProcessStatus(self.token, self.pid, self.exit, self.address, self.reason)


# The machine that is the gateway's, whatever address a node has there.
HERE = ""


class Place(NamedTuple):
    """A node that a replica could go to: its name and machine (several nodes may be on one), its bytes of memory, the groups of
    the replicas that run there, and whether it was lost or silent just now."""

    name: str
    machine: str
    memory: int
    groups: Sequence[str]
    doubtful: bool = False


def choose(group: str, places: Sequence[Place]) -> Place:
    """The machine with the fewest replicas of the same group, so that the loss of one costs it least; there the node with the
    fewest for its memory; then one of the gateway's machine, which is nearer. A doubtful one only where there is no other.
    Raises `ValueError` where there is none at all."""
    same = Counter(place.machine for place in places for one in place.groups if one == group)
    return min(places, key=lambda place: (place.doubtful, same[place.machine], _full(place), place.machine != HERE, place.name))


def _full(place: Place) -> float:
    return len(place.groups) / max(1, place.memory)
