"""How a replica listens: a Unix socket that is its owner's alone, and never half there."""

from __future__ import annotations

import os
import socket
from pathlib import Path

_BACKLOG = 1024  # a connect that finds the queue full fails at once where the peer does not block: the gateway and the probe


def listen(path: Path) -> socket.socket:
    """A listening Unix socket of mode 0600 that appears at `path` at once and whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The temporary name is no longer than the final one: a socket's path has 107 bytes at most.
    temporary = path.with_name(f".{path.name[1:]}")
    temporary.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        listener.bind(str(temporary))
    finally:
        os.umask(mask)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    temporary.rename(path)
    return listener
