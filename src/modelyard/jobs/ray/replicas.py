"""The replicas of one node, as the actor there (`host`) holds them: started, told of, and tidied away.

On control's own machine one listens on the socket it was given. Elsewhere that would be a socket nobody reaches: there it gets
one in a folder of the node, and is reached over the node's bridge, which opens with the first of them. Its log is there too,
unless the node sees the platform's folder of logs.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter

from modelyard.errors import Invalid, ModelyardError, Unavailable
from modelyard.jobs.ray.keeper import Keeper
from modelyard.jobs.ray.placement import Placed
from modelyard.jobs.supervisor import private_folder
from modelyard.jobs.types import ProcessStatus, ReplicaSpec

_REPLICA = TypeAdapter(ReplicaSpec)
# Logs that are kept in the node's own folder, and bytes at which one is emptied.
_KEPT, _LONGEST = 20, 64 << 20


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
        self._lock = threading.Lock()  # of the keeper: the actor answers in several threads
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
                log = spec.log if spec.log.parent.is_dir() else self._logs / spec.log.name
                spec = replace(spec, socket=self._sockets / spec.token / "replica.sock", log=log)
            self._placed[spec.token] = (address, spec.group)
            self._processes.start_replica(spec)
        except ModelyardError:
            self._placed.pop(spec.token, None)
            raise
        except OSError as error:
            self._placed.pop(spec.token, None)
            raise Unavailable(f"The replica could not be started on {self._node}: {error}.") from error
        return next(placed for placed in self.all() if placed.token == spec.token)

    def stop(self, token: str, grace: float) -> None:
        self._processes.stop_replica(token, grace)

    def all(self) -> list[Placed]:
        """Those that run or ended not long ago."""
        found = []
        for token, one in self._processes.replicas().items():
            found.append(Placed(token, one.pid, one.exit, *self._placed.get(token, ("", "")), one.reason))
            if one.exit is not None and self._placed.pop(token, None) is not None:
                shutil.rmtree(self._sockets / token, ignore_errors=True)
        return found

    def trust(self, gateway: str) -> None:
        """Gateways on another machine have this certificate (PEM)."""
        with self._lock:
            if self._keeper is not None and gateway:
                self._keeper.trust(gateway)

    def look(self) -> None:
        """See that the bridge runs and that logs stay small. Called about twice a second."""
        with self._lock:
            if self._keeper is None:
                return
            self._keeper.look()
        self._cut()

    def _cut(self) -> None:
        facts = {path: path.stat() for path in self._logs.glob("*.log")}
        newest = sorted(facts, key=lambda path: facts[path].st_mtime, reverse=True)
        for path in newest[_KEPT:]:
            if not any(path.stem.endswith(token) for token in self._placed):
                path.unlink()
        for path in newest:
            if facts[path].st_size > _LONGEST:
                os.truncate(path, 0)  # what writes it appends

    def _bridge(self, gateway: str) -> Keeper:
        with self._lock:
            if self._keeper is None:
                private_folder(self._sockets)
                self._keeper = Keeper(self._host, self._sockets, self._folder / "node.pem")
            self._keeper.trust(gateway)
            self._keeper.look()
            return self._keeper

    @property
    def _logs(self) -> Path:
        return self._folder / "logs"

    @property
    def _sockets(self) -> Path:
        return self._folder / "replicas"
