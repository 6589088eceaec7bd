"""Asks a replica how it is, over its own socket, for the controller's sync loop; the gateway has its own way."""

from __future__ import annotations

import socket

from modelyard.errors import Invalid, from_wire
from modelyard.serving import frames
from modelyard.serving.types import Health, ReplicaState

PATIENCE = 1.0


def probe(address: str) -> Health | None:
    """The health of the replica that listens on the Unix socket `address`; None where nobody answers within a second."""
    question = bytearray()
    frames.append(question, frames.HealthFrame(1))
    decoder = frames.Decoder()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(address)
            connection.sendall(question)
            while data := connection.recv(frames.MAX_FRAME):
                for frame in decoder.feed(data):
                    if isinstance(frame, frames.HealthFrame):
                        return _health(frame)
    except (OSError, Invalid):
        return None
    return None


def _health(frame: frames.HealthFrame) -> Health:
    state = ReplicaState(frame.state) if frame.state in ("ready", "draining") else ReplicaState.starting
    error = from_wire(frame.error.code, frame.error.message) if frame.error else None
    memory = frame.stats.get("memory", 0)
    return Health(state, frame.metadata, error, frame.queue_depth, frame.steps, memory if isinstance(memory, int) else 0)
