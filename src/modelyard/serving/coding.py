"""The form of bodies on the wire: what a call's headers say of it, for every door alike, and the doing of compression.

The gateway reads the headers (`tell`), once for a head that comes again, and never inflates anything; the replica, which scales
out, packs and unpacks. What a body may grow to comes with its call: it is the gateway's limit.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Mapping
from functools import lru_cache

from modelyard.errors import Invalid, TooLarge, Unavailable

# Headers of a request that are told to the replica whatever the door, in our own words.
HEADERS = frozenset({"content-encoding", "accept-encoding", "accept"})
EVENTS = "text/event-stream"
PACKED, LIMIT, LEAST = "content-encoding", "body-limit", "gzip-from"
# An answer smaller than this is not worth packing.
SMALL = 1 << 10
# Unpacked bodies under way in a replica may take this many times the largest body, all together.
_BODIES = 8
_LONGEST = 1000
_GZIP = 16 + zlib.MAX_WBITS
_WEIGHT = re.compile(r"\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*")


def tell(head: dict[str, str], limit: int) -> None:
    """Put in place of what a request's headers say of codings what a replica must know of them, if anything."""
    codings = [coding.strip() for coding in head.pop("content-encoding", "").lower().split(",")]
    if packed := ", ".join(coding for coding in codings if coding not in ("", "identity")):
        head[PACKED], head[LIMIT] = packed, str(limit)
    least = smallest(head.pop("accept-encoding", ""))
    if least is not None:
        head[LEAST] = str(least)
    if wants_events(head.pop("accept", "")):
        head["accept"] = EVENTS


@lru_cache(256)
def smallest(accepted: str) -> int | None:
    """The size from which an answer is packed for a client that says this in Accept-Encoding; None for never."""
    if len(accepted) > _LONGEST:
        return None
    weights = _weights(accepted)
    gzip = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    if not gzip or weights.get("identity", 0.0) > gzip:
        return None
    return SMALL if weights.get("identity", weights.get("*", 1.0)) else 0


@lru_cache(256)
def wants_events(accepted: str) -> bool:
    """Whether a client that says this in Accept asks for a stream of events, and not rather for plain JSON."""
    weights = _weights(accepted) if len(accepted) <= _LONGEST else {}
    return weights.get(EVENTS, 0.0) > weights.get("application/json", 0.0)


def _weights(accepted: str) -> dict[str, float]:
    return {name.strip(): _weight(rest) for name, _, rest in (item.partition(";") for item in accepted.lower().split(","))}


def _weight(parameter: str) -> float:
    """How much something is wanted; a weight that is none counts as not at all."""
    if not parameter.strip():
        return 1.0
    match = _WEIGHT.fullmatch(parameter)
    return float(match[1]) if match else 0.0


def unpack(coding: str, limit: int, body: bytes) -> bytes:
    """A body as it was before it was packed. Holds little more than `limit` bytes, whatever the body says it is.

    Raises `Invalid` where it is not exactly one gzip member, `TooLarge` where it is larger than `limit`."""
    if coding not in ("gzip", "x-gzip"):
        raise Invalid(f"The body's Content-Encoding is '{coding[:30]}'; expected gzip, or none.")
    inflating = zlib.decompressobj(_GZIP)
    try:
        data = inflating.decompress(body, limit + 1)
    except zlib.error as error:
        raise Invalid("The body is not the gzip that its Content-Encoding says.") from error
    if len(data) > limit:
        raise TooLarge(f"The request's body is larger than {limit} bytes once it is unpacked; send it in parts.")
    if not inflating.eof:
        raise Invalid("The gzip of the body ends too early.")
    if inflating.unused_data:
        raise Invalid("More bytes follow the gzip of the body; expected one member alone.")
    return data


def pack(head: Mapping[str, str] | None, body: bytes) -> tuple[dict[str, str], bytes]:
    """An answer's headers (None: plain JSON) and body, packed."""
    told = {"content-type": "application/json"} if head is None else head
    return {**told, "content-encoding": "gzip", "vary": "accept-encoding"}, zlib.compress(body, 1, _GZIP)


def wants_packing(asked: Mapping[str, str], head: Mapping[str, str] | None, body: bytes) -> bool:
    """Whether an answer is to be packed for a call whose head was `asked`."""
    least = asked.get(LEAST)
    return least is not None and len(body) >= int(least) and (head or {}).get("content-type") != EVENTS


class Room:
    """How much all unpacked bodies of a replica take: a body that is small on the wire takes no room in the gateway. Used by
    the loop's thread and the one that decodes."""

    def __init__(self) -> None:
        self._taken = 0
        self._lock = threading.Lock()

    def unpack(self, head: Mapping[str, str], body: bytes) -> bytes:
        """The body of a call whose head says that it is packed; its size is to be given back. Raises as `unpack`, and
        `Unavailable` where there is no room."""
        limit = int(head[LIMIT])
        data = unpack(head[PACKED], limit, body)
        with self._lock:
            if self._taken + len(data) > _BODIES * limit:
                raise Unavailable("Too many large requests are under way; try again shortly.")
            self._taken += len(data)
        return data

    def give(self, size: int) -> None:
        with self._lock:
            self._taken -= size
