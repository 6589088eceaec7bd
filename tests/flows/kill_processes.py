"""A real platform that may be killed and started again, and every process of it by its role."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from modelyard.client import Yard

T = TypeVar("T")


def until(true: Callable[[], T], patience: float, what: str) -> T:
    """What `true` gives once it is something; fails, saying `what` was waited for, after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not (found := true()):
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}"
        time.sleep(0.05)
    return found


@dataclass(frozen=True)
class Process:
    """A process as it was seen; `started` tells it from a later one of the same number.

    It stays itself where it executes another program (between fork and exec it has its parent's `argv`) or is given another
    parent.
    """

    pid: int
    parent: int = field(compare=False)
    started: int
    argv: tuple[str, ...] = field(compare=False)

    @property
    def alive(self) -> bool:
        now = _seen(self.pid)
        return now is not None and now.started == self.started

    def kill(self) -> bool:
        """End this very process; False where it was gone already."""
        return self.send(signal.SIGKILL)

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to this very process; False where it was gone already."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if self.alive:
                signal.pidfd_send_signal(handle, number)
                return True
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)
        return False


def _seen(pid: int) -> Process | None:
    """A process that runs; None for one that is gone, or dead and not yet reaped."""
    try:
        facts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        argv = tuple(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0"))
    except OSError:
        return None
    return None if facts[0] in "ZX" else Process(pid, int(facts[1]), int(facts[19]), argv)


def everything() -> dict[int, Process]:
    """All processes of this machine."""
    found = (_seen(int(folder.name)) for folder in Path("/proc").iterdir() if folder.name.isdigit())
    return {process.pid: process for process in found if process is not None}


def _role(process: Process, parent: str) -> str:
    argv = process.argv
    if Path(argv[0]).name == "bwrap":
        return "sandbox"
    if "modelyard.app.process" in argv:
        return argv[argv.index("modelyard.app.process") + 1]
    if "modelyard.serving.replica" in argv:
        return "replica"
    if "modelyard.jobs.worker" in argv:
        return "rank" if parent in ("launcher", "rank") else "launcher"
    return "other"


@contextlib.contextmanager
def kept_down(platform: Platform, role: str, successors: signal.Signals = signal.SIGKILL) -> Iterator[None]:
    """The process of a role is killed, and as soon as it appears each that the supervisor starts in its stead; or, with SIGSTOP
    for its `successors`, the next one is held until the end."""
    (first,) = platform.find(role)
    found, free = {first}, threading.Event()

    def watch() -> None:
        while not free.wait(0.05):
            for process in set(platform.find(role)) - found:
                process.send(successors)
                found.add(process)

    watching = threading.Thread(target=watch, name="kept down", daemon=True)
    assert first.kill()
    watching.start()
    try:
        yield
    finally:
        free.set()
        watching.join(30)
        for process in found:
            process.send(signal.SIGCONT)
        print(f"{role} was kept down: {len(found)} processes", flush=True)


class Platform:
    """`modelyard up`, on one folder and one port, as often as it is started."""

    def __init__(self, data: Path, **environment: str) -> None:
        self.data, self._environment = data, environment
        self.url, self.starts = "", 0
        self.known: set[Process] = set()  # every process that was ever seen below it
        self._up: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns when it says that it answers."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MODELYARD_")}
        command = [sys.executable, "-m", "modelyard", "up", "--data", str(self.data), "--json"]
        command += ["--port", str(urlsplit(self.url).port or 0)]
        deadline = time.monotonic() + 60
        while True:
            with self.data.with_name("up.log").open("ab") as log:
                self._up = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env={**kept, **self._environment})
            assert self._up.stdout is not None
            assert select.select([self._up.stdout], [], [], 60)[0], "up said nothing for a minute"
            said = json.loads(self._up.stdout.readline() or '{"error": {"code": "silent", "message": "it ended silently"}}')
            if "url" in said:
                break
            # The port of a platform that was killed a moment ago is free once its gateway is gone too.
            assert said["error"]["code"] == "conflict", said
            print(f"up must wait: {said['error']['message']}", flush=True)
            assert time.monotonic() < deadline, said
            self._up.wait(10)
            self._up.stdout.close()
        self.url, self.starts = said["url"], self.starts + 1

    def yard(self, key: str | None = None) -> Yard:
        return Yard(self.url, key or json.loads((self.data / "profile.json").read_text())["key"], self.data)

    def tree(self) -> dict[Process, str]:
        """Every process of the platform, by its role."""
        assert self._up is not None
        found, everyone = {}, everything()
        line = [(self._up.pid, "supervisor")]
        while line:
            pid, role = line.pop()
            if pid in everyone:
                found[everyone[pid]] = role
                line += [(p.pid, _role(p, role)) for p in everyone.values() if p.parent == pid]
        self.known |= found.keys()
        return found

    def find(self, role: str) -> list[Process]:
        return sorted((p for p, r in self.tree().items() if r == role), key=lambda p: p.started)

    def kill(self, process: Process) -> bool:
        """Kill one of its processes; the supervisor is started again."""
        assert self._up is not None
        if process.pid != self._up.pid:
            return process.kill()
        self._up.kill()
        self._reap()
        self.start()
        return True

    def close(self) -> None:
        if self._up is not None and self._up.poll() is None:
            self._up.terminate()
        self._reap()

    def _reap(self) -> None:
        assert self._up is not None
        self._up.wait(30)
        assert self._up.stdout is not None
        self._up.stdout.close()
