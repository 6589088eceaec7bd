"""Asks a replica how it is, over a connection of its own, for the controller's sync loop; the gateway has its own way."""

from __future__ import annotations

from pathlib import Path

from modelyard.errors import Invalid, from_wire
from modelyard.serving import frames
from modelyard.serving.dial import connect
from modelyard.serving.types import Health, ReplicaState

PATIENCE = 1.0


def probe(address: str, identity: Path | None = None) -> Health | None:
    """The health of the replica at `address` (`dial`); None where nobody answers within a second."""
    question = bytearray()
    frames.append(question, frames.HealthFrame(1))
    decoder = frames.Decoder()
    try:
        with connect(address, identity, PATIENCE) as connection:
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
    memory, done, refused = (_number(frame.stats.get(name)) for name in ("memory", "units", "refused"))
    return Health(state, frame.metadata, error, frame.queue_depth, frame.steps, memory, done, refused)


def _number(told: object) -> int:
    """A replica runs users' code: what it tells may be anything."""
    return told if isinstance(told, int) else 0
