"""Many small chunks in one message: of each its SHA-256 (32 bytes), its length (4 bytes, big-endian) and its bytes.

The client packs, the route unpacks; whoever stores them verifies the hashes. It knows neither the store nor HTTP.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from modelyard.errors import Invalid
from modelyard.storage.stores import Buffer

# Bytes a batch may have, the headers included.
MOST = 8 << 20
_HEADER = struct.Struct(">32sI")
HEADER = _HEADER.size


def packed(digest: str, data: Buffer) -> bytes:
    """One chunk as it stands in a batch."""
    return _HEADER.pack(bytes.fromhex(digest), len(data)) + data


def unpacked(batch: Buffer) -> Iterator[tuple[str, memoryview]]:
    """(hash, bytes) of each chunk, not verified. Raises `Invalid` where the batch ends early."""
    view, at = memoryview(batch), 0
    while at < len(view):
        if len(view) - at < HEADER:
            raise Invalid(f"The batch ends at byte {len(view)} within a header, which has {HEADER} bytes: send it whole.")
        digest, length = _HEADER.unpack_from(view, at)
        at += HEADER
        if len(view) - at < length:
            raise Invalid(f"The batch ends {len(view) - at} bytes into the blob {digest.hex()} of {length}: send it whole.")
        yield digest.hex(), view[at : at + length]
        at += length
