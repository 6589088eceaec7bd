"""The replicas of one node, as the actor there (`host`) holds them: started, told of, and tidied away.

On control's own machine one listens on the socket it was given. Elsewhere that would be a socket nobody reaches: there it gets
one in a folder of the node, and is reached over the node's bridge, which opens with the first of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter

from modelyard.errors import Invalid, Unavailable
from modelyard.jobs.ray.keeper import Keeper
from modelyard.jobs.ray.placement import Placed
from modelyard.jobs.supervisor import private_folder
from modelyard.jobs.types import ProcessStatus, ReplicaSpec

_REPLICA = TypeAdapter(ReplicaSpec)


class Processes(Protocol):
    """What starts them: a `LocalExecutor`."""

    def start_replica(self, spec: ReplicaSpec) -> None: ...
    def stop_replica(self, token: str, grace: float) -> None: ...
    def replicas(self) -> Mapping[str, ProcessStatus]: ...


class Replicas:
    """`node`: its name; `host`: its address, where a bridge listens; `folder`: a private one, for sockets and a key."""

    def __init__(self, processes: Processes, node: str, host: str, folder: Path) -> None:
        self._processes, self._node, self._host, self._folder = processes, node, host, folder
        self._keeper: Keeper | None = None
        self._placed: dict[str, tuple[str, str]] = {}

    def start(self, wire: Mapping[str, Any], gateway: str) -> Placed:
        """Start one; `gateway`: the certificate (PEM) of the gateways that reach it from another machine, empty where they are
        on this one. Raises `Invalid` where its files are not seen here, `Unavailable` where it cannot be started or reached."""
        spec = _REPLICA.validate_python(wire)
        if not spec.folder.is_dir():
            seen = f"The node {self._node} does not see {spec.folder}"
            raise Invalid(f"{seen}: on a cluster the data folder lies on a file system that all nodes share.")
        address = ""
        try:
            if gateway:
                address = self._bridge(gateway).address(spec.token)
                spec = replace(spec, socket=self._sockets / spec.token / "replica.sock")
            self._placed[spec.token] = (address, spec.group)
            self._processes.start_replica(spec)
        except OSError as error:
            raise Unavailable(f"The replica could not be started on {self._node}: {error}.") from error
        return next(placed for placed in self.all() if placed.token == spec.token)

    def stop(self, token: str, grace: float) -> None:
        self._processes.stop_replica(token, grace)

    def all(self) -> list[Placed]:
        """Those that run or ended not long ago."""
        found = []
        for token, one in self._processes.replicas().items():
            found.append(Placed(token, one.pid, one.exit, *self._placed.get(token, ("", ""))))
            if one.exit is not None and self._placed.pop(token, None) is not None:
                shutil.rmtree(self._sockets / token, ignore_errors=True)
        return found

    def trust(self, gateway: str) -> None:
        """Gateways on another machine have this certificate (PEM)."""
        if self._keeper is not None and gateway:
            self._keeper.trust(gateway)

    def look(self) -> None:
        """See that the bridge runs. Called about twice a second."""
        if self._keeper is not None:
            self._keeper.look()

    def _bridge(self, gateway: str) -> Keeper:
        if self._keeper is None:
            private_folder(self._sockets)
            self._keeper = Keeper(self._host, self._sockets, self._folder / "node.pem")
        self._keeper.trust(gateway)
        self._keeper.look()
        return self._keeper

    @property
    def _sockets(self) -> Path:
        return self._folder / "replicas"
