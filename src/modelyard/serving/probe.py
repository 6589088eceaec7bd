"""Asks a replica how it is, over a connection of its own, for the controller's sync loop; the gateway has its own way."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

from modelyard.errors import Invalid
from modelyard.serving import frames
from modelyard.serving.dial import connect
from modelyard.serving.health import odd, read
from modelyard.serving.stats import resident
from modelyard.serving.types import Health

PATIENCE = 1.0
_PEER = struct.Struct("3i")  # process, user, group


def probe(address: str, identity: Path | None = None) -> Health | None:
    """The health of the replica at `address` (`dial`); None where nobody answers within a second, whatever else it sends."""
    until = time.monotonic() + PATIENCE
    question = bytearray()
    frames.append(question, frames.HealthFrame(1))
    decoder = frames.Decoder()
    try:
        with connect(address, identity, PATIENCE) as connection:
            connection.sendall(question)
            while (left := until - time.monotonic()) > 0:
                connection.settimeout(left)
                data = connection.recv(frames.MAX_FRAME)
                if not data:
                    return None
                for frame in decoder.feed(data):
                    if isinstance(frame, frames.HealthFrame):
                        return read(frame, _memory(connection))
    except OSError:
        return None
    except Invalid as error:
        return odd(error.message)
    return None


def _memory(connection: socket.socket) -> int | None:
    """Bytes that the replica takes, by the kernel's word; None where it is on another machine."""
    if connection.family != socket.AF_UNIX:
        return None
    pid, _, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    try:
        return resident(pid)
    except OSError:  # not seen from here
        return None
