"""Answers kept in memory for deployments that ask for it: the same input to the same version of the same deployment.

The gateway asks it before it sends a call. A key names the project, so that nobody is answered from another one's calls, and
the whole input by its hash; what is kept is bounded in bytes, the least recently used goes first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

Key = tuple[str, str, str, bytes]
_ENTRY = 512  # bytes that an entry takes beside its body


class Kept(NamedTuple):
    head: Mapping[str, str] | None
    body: bytes


class Cache:
    """At most `room` bytes of answers."""

    def __init__(self, room: int) -> None:
        self._room, self._taken = room, 0
        self._kept: OrderedDict[Key, Kept] = OrderedDict()

    def get(self, key: Key) -> Kept | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return kept

    def put(self, key: Key, head: Mapping[str, str] | None, body: bytes) -> None:
        """Keep an answer; one that takes more than a sixteenth of the room is not."""
        size = len(body) + _ENTRY
        if key in self._kept or size > self._room // 16:
            return
        self._kept[key] = Kept(head, body)
        self._taken += size
        while self._taken > self._room:
            _, gone = self._kept.popitem(last=False)
            self._taken -= len(gone.body) + _ENTRY


def key_of(
    project: str, deployment: str, identity: str, door: str, verb: str, head: Mapping[str, str], body: bytes | bytearray
) -> Key:
    """What an answer depends on: who asks what of which version, on which engine, in which manner. A version's number does not
    tell it apart from another model's. Headers that only name the call are none of it."""
    said = sorted(item for item in head.items() if item[0] not in _NAMES_THE_CALL)
    digest = hashlib.blake2b(msgspec.msgpack.encode((door, verb, said)), digest_size=24)  # it says itself where it ends
    digest.update(body)
    return project, deployment, identity, digest.digest()


_NAMES_THE_CALL = frozenset({"x-request-id", "traceparent"})
