"""Gangs and replicas as local processes: the supervisor's client. The scheduler and serving's controller call it, in control.

A gang's processes hang on one inherited socket whose near end is kept here: when control ends, however it ends, they end.
Replicas hang on the supervisor alone and are found again by token. What a process may see is decided in `sandbox`.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelyard.errors import ModelyardError, Unavailable, from_wire
from modelyard.jobs import sandbox
from modelyard.jobs.gang import LocalGang, died
from modelyard.jobs.lines import LineBuffer, encode
from modelyard.jobs.types import Amount, Gang, GangHandle, Node, ProcessStatus, ReplicaSpec
from modelyard.settings import Settings
from modelyard.telemetry import QUIET

_ANSWER_TIMEOUT = 30.0
# Users' work makes way for serving, and is what the kernel ends first when memory runs out.
_GANG_LIMITS = {"core": 0, "nice": 5, "oom": 800}
# A replica has no more use for the disk than for each of its folders in memory.
_REPLICA_DISK, _REPLICA_FILES = sandbox.IN_MEMORY, 2000
_REPLICA_LIMITS = {"core": 0, "oom": 300, "fsize": _REPLICA_DISK, "disk": _REPLICA_DISK, "files": _REPLICA_FILES}
# Training frees and takes the same buffers at every step: a rank keeps them, where the C library would give the larger ones
# back to the kernel and have them zeroed again. 5–8% of a step of 20 ms.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
# Processes that a gang or a replica may consist of; a gang of many ranks may have 32 a rank.
_PROCESSES, _REPLICA_PROCESSES = 512, 64
# Seconds between two looks at a gang whose end is being made out.
_CLOSING = 0.02


class LocalExecutor:
    """Implements `jobs.types.Executor` on this machine. `extra_readonly`: further folders of modules (tests, plug-ins in
    development) that gangs may import. `interface`: the network's, by which a gang over several nodes meets."""

    def __init__(self, settings: Settings, *, extra_readonly: Sequence[Path] = (), interface: str = "lo") -> None:
        self._settings = settings
        self._socket = settings.run / "supervisor.sock"
        self._extra = tuple(extra_readonly)
        self._interface = interface
        self._gangs: dict[str, LocalGang] = {}
        self._gpus: dict[str, Sequence[int]] = {}
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._lock = threading.Lock()

    def start_gang(self, gang: Gang, instead: GangHandle | None = None) -> GangHandle:
        """Start the launcher of `gang`, or have the one of `instead` go on. Raises `Unavailable` where the supervisor or the
        demanded sandbox cannot be had, or too few GPUs."""
        if isinstance(instead, LocalGang):
            instead.again(gang)
            with self._lock:
                self._gangs[gang.token] = instead
            return instead
        gpus = self._gpus_of(gang)
        gang = replace(gang, stays=gang.stays and not gpus)  # which GPUs are free is asked anew
        near, far = socket.socketpair()
        with far:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            argv = [sys.executable, "-P", "-m", "modelyard.jobs.worker", "{fd0}"]
            readonly = [i.folder for i in gang.inputs.values()]
            readonly += [gang.kept] if gang.kept.is_dir() else [gang.resume] if gang.resume else []
            ranks = len(gang.mine)
            environment = KEEP_MEMORY | self._environment(gang.work, threads=max(1, (os.cpu_count() or 1) // ranks))
            environment |= gpus
            if gang.spans:
                environment |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), self._interface)
            shown: dict[str, Any] = {"readonly": readonly, "writable": [gang.work], "folder": gang.work}
            request = {
                "do": "start",
                "token": gang.token,
                "label": "gang",
                **self._confined(argv, **shown, environment=environment, first=True, network=gang.spans),
                "log": str(gang.launcher_log),
                "limits": {**_GANG_LIMITS, "data": gang.memory, "processes": max(_PROCESSES, 32 * ranks)},
            }
            try:
                self.request(request, [far.fileno()])
            except BaseException:
                near.close()
                raise
        handle = LocalGang(gang, near, self, warning=sandbox.warning(self._settings))
        with self._lock:
            self._gangs[gang.token] = handle
        return handle

    def start_replica(self, spec: ReplicaSpec) -> None:
        """Start a replica process; it is ready when it answers on its socket."""
        for folder in (spec.socket.parent, spec.log.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        wire = {
            "token": spec.token,
            "engine": spec.engine,
            "folder": str(spec.folder),
            "socket": str(spec.socket),
            "threads": spec.threads,
            "settings": dict(spec.settings),
            "model": spec.model,
            "nice": spec.nice,
        }
        argv = [sys.executable, "-P", "-m", "modelyard.serving.replica", "--spec", json.dumps(wire)]
        environment = self._environment(spec.socket.parent, threads=spec.threads)
        confined = self._confined(
            argv, readonly=[spec.folder], writable=[spec.socket.parent], environment=environment, folder=Path("/")
        )
        most = min(spec.memory or self._settings.job_memory, self._settings.job_memory)
        limits = {**_REPLICA_LIMITS, "data": most, "held": most, "processes": _REPLICA_PROCESSES, "nice": spec.nice}
        request = {"do": "start", "token": spec.token, "label": "replica", **confined, "log": str(spec.log), "limits": limits}
        self.request({**request, "folder": str(spec.socket.parent)})

    def stop_replica(self, token: str, grace: float = 5.0) -> None:
        self.stop(token, grace)

    def replicas(self) -> Mapping[str, ProcessStatus]:
        """Replicas that run or ended not long ago. Raises `Unavailable` where the supervisor cannot be reached."""
        listed = self.processes().items()
        replicas = {token: process for token, process in listed if process["label"] == "replica"}
        return {token: ProcessStatus(token, p["pid"], p["exit"], reason=p["reason"] or "") for token, p in replicas.items()}

    def nodes(self) -> Sequence[Node]:
        """This machine, and of its processors those for jobs."""
        (machine,) = self.machines()
        return (Node(machine.name, machine.room._replace(cpus=self._settings.job_cpus or machine.room.cpus)),)

    def machines(self) -> Sequence[Node]:
        """This machine."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return (Node("local", Amount(os.cpu_count() or 1, len(sandbox.gpus()), memory)),)

    def end_gangs(self) -> Mapping[str, ModelyardError]:
        others = {t: p for t, p in self.processes().items() if p["label"] == "gang" and t not in self._gangs}
        for token in (t for t, p in others.items() if p["exit"] is None):
            self.stop(token, 0)
        ends = {token: died(process) for token, process in others.items() if process["exit"] is not None}
        return {token: error for token, error in ends.items() if error is not None}

    def wait(self, timeout: float) -> None:
        with self._lock:
            gangs = [gang for gang in self._gangs.values() if not gang.ended]
            self._gangs = {gang.token: gang for gang in gangs}
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for gang in gangs:
                if gang.closing:
                    timeout = min(timeout, _CLOSING)
                else:
                    selector.register(gang.socket, selectors.EVENT_READ | (selectors.EVENT_WRITE if gang.unsent else 0))
            selector.select(timeout)
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._waker.send(b"x")

    def close(self) -> None:
        """Let go of every gang, which ends it; replicas go on."""
        with self._lock:
            for gang in self._gangs.values():
                gang.socket.close()
            self._gangs.clear()
        self._woken.close()
        self._waker.close()

    def processes(self) -> dict[str, dict[str, Any]]:
        """All children of the supervisor by token: pid, exit, cpu, label."""
        return self.request({"do": "list"})

    def stop(self, token: str, grace: float) -> None:
        self.request({"do": "stop", "token": token, "grace": grace})

    def request(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        """Ask the supervisor. Raises its error, or `Unavailable` where it does not answer."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(_ANSWER_TIMEOUT)
                connection.connect(str(self._socket))
                answer = _exchange(connection, encode(message), fds)
        except OSError as error:
            raise Unavailable(
                f"The supervisor does not answer on {self._socket.name}: {error}. Is `modelyard up` running?"
            ) from error
        if "error" in answer:
            raise from_wire(answer["error"]["code"], answer["error"]["message"])
        return answer

    def _gpus_of(self, gang: Gang) -> dict[str, str]:
        """Which GPUs a gang sees. Raises `Unavailable` where there are fewer than it asked for."""
        there, asked = sandbox.gpus(), len(gang.mine) * gang.each.gpus
        if not there and not asked:
            return {}
        with self._lock:
            running = {token for token, one in self._gangs.items() if not one.ended}
            self._gpus = {token: gpus for token, gpus in self._gpus.items() if token in running}
            given = {gpu for gpus in self._gpus.values() for gpu in gpus}
            seen = choose_gpus(there, given, asked, spans=gang.spans)
            if asked:
                self._gpus[gang.token] = seen
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, seen))}

    def _confined(self, argv: list[str], *, readonly: list[Path], writable: list[Path], **where: Any) -> dict[str, Any]:
        """The part of a start request that says what runs, where, with what of the machine in sight."""
        environment, folder = where["environment"], where["folder"]
        if sandbox.wanted(self._settings.sandbox):
            shown = [*sandbox.interpreter(), *self._extra, *readonly]
            argv = sandbox.command(
                argv, readonly=shown, writable=writable, devices=sandbox.devices(), sized=sandbox.sized(), **where
            )
        return {"argv": argv, "env": environment, "cwd": str(folder)}

    def _environment(self, home: Path, *, threads: int) -> dict[str, str]:
        """The whole environment of a process that runs users' code: nothing is inherited, and what is not fixed here would be
        a source of runs that differ."""
        count = str(max(1, threads))
        return {
            **QUIET,
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(home),
            "TMPDIR": "/tmp",  # noqa: S108 — the sandbox has one of its own
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "PYTHONPATH": os.pathsep.join(map(str, self._extra)),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": count,
            "OPENBLAS_NUM_THREADS": count,
            "MKL_NUM_THREADS": count,
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
        }


def choose_gpus(there: Sequence[int], given: Collection[int], asked: int, *, spans: bool) -> list[int]:
    """As many as a gang asked for of those that are not `given` to another; one that asked for none sees those that nobody did.
    Raises `Unavailable` where there are too few: a gang that was to have some is never run without."""
    free = [gpu for gpu in there if gpu not in given]
    if len(free) < asked:
        raise Unavailable(
            f"{asked} GPUs were asked for, and of {len(there)} here {len(free)} are free: others have them, or wait for their "
            "children and still hold them."
        )
    # Over several nodes only what was asked for is the same on each.
    return free[:asked] if asked or spans else free


def _exchange(connection: socket.socket, line: bytes, fds: Sequence[int]) -> dict[str, Any]:
    rest = line[socket.send_fds(connection, [line], list(fds)) :] if fds else line
    if rest:  # sending nothing to a supervisor that has answered and closed already would be a broken pipe
        connection.sendall(rest)
    buffer = LineBuffer()
    while data := connection.recv(65536):
        if messages := buffer.feed(data):
            return messages[0]
    raise ConnectionResetError("the connection was closed")
