"""The executor over a Ray cluster: the same launchers, sandboxes and supervisors as on one machine, on many.

What differs from `jobs.executor` is where a launcher is started and how its lines travel. On each node one detached actor
(`host`) holds a supervisor and a `LocalExecutor`; control speaks with it in JSON bytes (`link`) and puts the parts of a gang
together again (`gang`). `cluster` alone knows Ray.
"""

from __future__ import annotations

from importlib.util import find_spec

from modelyard.errors import Unavailable


def check_client(address: str) -> None:
    """Raises `Unavailable` where the address is one for Ray's client and that is not installed. Loads nothing of Ray."""
    if address.startswith("ray://") and find_spec("grpc") is None:
        raise Unavailable(
            f"The setting cluster is {address}, which Ray's client reaches, and that is not installed: pip install "
            "'ray[client]', or name the cluster as HOST:PORT."
        )
