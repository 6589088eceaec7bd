"""The actor on each node: a supervisor and a `LocalExecutor` that control speaks with from afar.

Ray starts it by name, detached, so that replicas outlive control and are found again; it knows nothing of Ray itself, and what
travels is JSON in bytes. Gangs belong to the control that holds the node: when another takes it, or nobody has listened for a
while, they end. Settings, keys and the database stay with control.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelyard import __version__, telemetry
from modelyard.errors import Conflict, Crashed, Invalid, ModelyardError, Unavailable, from_wire
from modelyard.jobs.executor import LocalExecutor
from modelyard.jobs.ray.gang import ended
from modelyard.jobs.ray.outbox import Outbox
from modelyard.jobs.ray.replicas import Replicas
from modelyard.jobs.types import Gang, GangHandle
from modelyard.settings import Settings

_log = telemetry.log(__name__)
# Seconds that gangs live on while no control listens.
_LEASE = 30.0
# Seconds after which an actor ends that nobody has listened to and that has nothing to do: its platform may be no more.
_GIVEN_UP = 3600.0
# Seconds between two looks at time and the supervisor.
_TICK = 0.5
_START = 30.0
_SIOCGIFADDR = 0x8915


class Host:
    """Everything of Modelyard's on one node. `said`: node, address, sandbox, job_memory and the folders of further modules."""

    def __init__(self, said: bytes) -> None:
        telemetry.configure("node", "info")
        asked = json.loads(said)
        self._node = str(asked["node"])
        _be_spared()
        folder = _folder()
        settings = Settings(data=folder, sandbox=asked["sandbox"], job_memory=asked["job_memory"])
        self._supervisor = _supervise(settings)
        readonly = [Path(path) for path in asked["readonly"]]
        self._executor = LocalExecutor(settings, extra_readonly=readonly, interface=_interface(asked["address"]))
        self._replicas = Replicas(self._executor, self._node, asked["address"], settings.run)
        self._lock = threading.Lock()
        self._holder, self._heard = "", time.monotonic()
        self._gangs: dict[str, GangHandle] = {}
        self._left: list[GangHandle] = []  # of another control; they are ending
        self._unheard: set[str] = set()  # the gangs that we ended because nobody listened: nothing went wrong with them
        self._outbox = Outbox()
        threading.Thread(target=self._run, name="gangs", daemon=True).start()

    def hear(self, holder: str, heard: int, patience: float) -> bytes:
        """What gangs said after line `heard`, one JSON object a line, as soon as there is any; b"gone" in another's hands."""
        with self._lock:
            if holder != self._holder:
                return b"gone"
            self._heard = time.monotonic()
            outbox = self._outbox
        return outbox.after(heard, patience)

    def ask(self, message: bytes) -> bytes:
        """Do something: {"value"}, or {"error": {"code", "message"}}."""
        try:
            value = self._do(json.loads(message))
        except ModelyardError as error:
            return json.dumps({"error": {"code": error.code, "message": error.message}}).encode()
        return json.dumps({"value": value}).encode()

    def _do(self, said: dict[str, Any]) -> Any:
        match said["do"]:
            case "take":
                self._replicas.trust(said["gateway"])
                return self._take(str(said["holder"]))
            case "start_replica":
                return self._replicas.start(said["spec"], said["gateway"])
            case "stop_replica":
                return self._replicas.stop(said["token"], said["grace"])
            case "replicas":
                return self._replicas.all()
            case _:
                with self._lock:
                    self._tell(said)
                return self._executor.wake()

    def _take(self, holder: str) -> dict[str, Any]:
        """Another control, or the same anew: the gangs that are here were not its own. Tells what went wrong with those that
        had ended before nobody listened to them."""
        with self._lock:
            self._holder, self._heard = holder, time.monotonic()
            self._turn()
            wrong = {token: error for token, error in self._outbox.failures().items() if token not in self._unheard}
            self._unheard.clear()
            for handle in self._gangs.values():
                handle.kill()
            self._left += self._gangs.values()
            self._gangs.clear()
            self._outbox = Outbox()
        self._executor.wake()
        return {"version": __version__, "wrong": wrong}

    def _tell(self, said: Mapping[str, Any]) -> None:
        """A word to a gang. What it is said twice does no harm."""
        if said["holder"] != self._holder:
            raise Conflict(f"The node {self._node} is in the hands of another control.")
        handle = self._gangs.get(said["token"])
        match said["do"]:
            case "start":
                if handle is None:
                    self._start(Gang.from_wire(said["gang"]))
            case "answer" if handle is not None:
                error = said["error"]
                handle.answer(said["ask"], said["value"], error and from_wire(error["code"], error["message"]))
            case "cancel" if handle is not None:
                handle.cancel()
            case "kill" if handle is not None:
                handle.kill()

    def _start(self, gang: Gang) -> None:
        try:
            if not gang.work.is_dir():
                seen = f"The node {self._node} does not see {gang.work}"
                raise Invalid(f"{seen}: on a cluster the data folder lies on a file system that all nodes share.")
            self._gangs[gang.token] = self._executor.start_gang(gang)
        except Unavailable as error:
            self._outbox.put(gang.token, ended(Crashed(f"The job could not be started on {self._node}: {error.message}")))
        except ModelyardError as error:
            self._outbox.put(gang.token, ended(error))

    def _run(self) -> None:
        """Listen to the gangs. Without it, or without a supervisor, nothing here could be ended: then all of it ends."""
        try:
            while self._supervisor.poll() is None:
                self._executor.wait(_TICK)
                self._replicas.look()
                self._pass(self._outbox.wait_for_room(_TICK))
                if self._given_up():
                    _log.info("nobody has needed this node for long: its actor ends")
                    os._exit(0)
            _log.error("the supervisor of this node is gone")
        except Exception:  # noqa: BLE001 — the edge of the process
            _log.exception("the node's loop failed")
        os._exit(1)

    def _pass(self, room: bool) -> None:
        """One round of the loop; the lease is looked at though nothing more can be said for now."""
        with self._lock:
            self._expire()
            if room:
                self._turn()

    def _expire(self) -> None:
        fresh = self._gangs.keys() - self._unheard
        if fresh and time.monotonic() - self._heard > _LEASE:
            _log.warning("no control listens: the gangs of this node are ended", gangs=len(fresh))
            self._unheard |= fresh
            for token in fresh:
                self._gangs[token].kill()

    def _given_up(self) -> bool:
        with self._lock:
            if self._gangs or self._left or time.monotonic() - self._heard <= _GIVEN_UP:
                return False
        with contextlib.suppress(Unavailable):
            return all(replica.exit is not None for replica in self._executor.replicas().values())
        return False

    def _turn(self) -> None:
        for token, handle in list(self._gangs.items()):
            for event in handle.poll():
                self._outbox.put(token, event)
                if event.type == "ended":
                    del self._gangs[token]
        self._left = [handle for handle in self._left if all(event.type != "ended" for event in handle.poll())]


def _be_spared() -> None:
    """Not be the first to go when the machine runs out of memory, as Ray would have its workers: all else here goes with us."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("0")


def _folder() -> Path:
    """A private one for the supervisor's socket, on this node; those of dead processes are removed."""
    for left in Path(tempfile.gettempdir()).glob("modelyard-node-*"):
        if not Path("/proc", left.name.split("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"modelyard-node-{os.getpid()}-"))


def _supervise(settings: Settings) -> subprocess.Popen[bytes]:
    """A supervisor that ends with this process, and everything with it."""
    argv = [sys.executable, "-P", "-m", "modelyard.jobs.supervisor", str(settings.run), str(os.getpid())]
    process = subprocess.Popen(argv, start_new_session=True)
    deadline = time.monotonic() + _START
    while not (settings.run / "supervisor.sock").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise Unavailable(f"The supervisor of the node did not start (exit {process.poll()}).")
        time.sleep(0.01)
    return process


def _interface(address: str) -> str:
    """The name of the network interface that has an address of this node."""
    if address.startswith("127."):
        return "lo"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    raise Invalid(f"No network interface of this node has the address {address}, by which Ray knows it.")
