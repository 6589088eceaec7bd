"""The supervisor of a node: a small process that owns every other one, so that none is ever left behind.

`modelyard up` and `modelyard node` run it. It keeps fixed children alive (gateway, control) and starts gangs and replicas for
`LocalExecutor`, its client, over a Unix socket: one JSON line a connection, with file descriptors beside it. Every child is
killed by the kernel when this process dies, however it dies. It knows no database, no job and no model library.

    {"do": "start", "token", "label", "argv", "env", "cwd", "log", "folder", "limits"} → {"pid"}
    {"do": "stop", "token", "grace"}                                        → {}
    {"do": "list"}                           → {token: {"pid", "exit", "cpu", "label", "reason", "stopped"}}
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelyard.errors import Conflict, Invalid, ModelyardError, Unavailable
from modelyard.jobs.lines import LineBuffer, encode
from modelyard.jobs.processes import Child, become_subreaper, die_with_parent, leftovers, orphans
from modelyard.telemetry import log

_log = log(__name__)

# Ended children that are remembered, so that whoever started them can learn how they ended.
_REMEMBERED = 1000
_MOST_FDS = 8
_LONGEST_PAUSE = 10.0
# A fixed child that lived this long is restarted without a pause again.
_HEALTHY = 30.0
# Seconds between two counts of the processes of gangs and replicas.
_COUNT = 0.5


def lock(data: Path) -> int:
    """Take the data folder for this process; the lock ends with the process. Returns the file descriptor that holds it.

    Raises `Conflict` naming the process that has it.
    """
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(data / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise Conflict(
            f"Modelyard already runs on {data} (process {holder}). Stop it first, or choose another --data folder."
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def private_folder(path: Path) -> Path:
    """Make `path` a folder that only this user can enter. Raises `Unavailable` where it is another's or a link."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = path.lstat()
    if path.is_symlink() or facts.st_uid != os.getuid():
        raise Unavailable(f"The folder {path} for sockets belongs to someone else; set another --data folder or remove it.")
    path.chmod(0o700)
    return path


class Supervisor:
    """Owns the children of this node. All of it runs in the main thread: the kernel ties a child to the thread that made it.

    Nobody else may start children for what lies in `run` and the folders `owned`: what an earlier one left there is ended."""

    def __init__(self, run: Path, *owned: Path) -> None:
        self.socket = private_folder(run) / "supervisor.sock"
        self._owned = (run, *owned)
        self._children: dict[str, Child] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None

    async def start(self) -> None:
        """Open the socket and begin to answer."""
        become_subreaper()
        _end(leftovers(self._owned))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        hidden = self.socket.with_name(f".{self.socket.name[1:]}")  # whoever sees the socket can connect to it
        hidden.unlink(missing_ok=True)
        listener.bind(str(hidden))
        hidden.chmod(0o600)
        listener.listen(64)
        hidden.rename(self.socket)
        self._listener = listener
        self._spawn(self._accept(listener))
        self._spawn(self._sweep())
        self._spawn(self._bound())

    def keep(
        self,
        token: str,
        argv: list[str],
        *,
        env: dict[str, str] | None = None,
        log_file: Path | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        """Start a fixed child and start it again, with growing pauses, whenever it ends. `env` None is this process's own.

        '{fd0}', '{fd1}', … in `argv` stand for the numbers of `fds`, which must stay open here.
        """
        request = {"token": token, "label": "fixed", "argv": argv, "env": dict(os.environ if env is None else env)}
        if log_file is not None:
            request["log"] = str(log_file)
        self._keepers[token] = asyncio.get_running_loop().create_task(self._keep(request, list(fds)))

    async def stop(self, grace: float = 10.0) -> None:
        """End every child and close the socket: gangs at once, then the fixed ones, then replicas, which those may still need.

        Each is asked to end and killed after `grace` seconds.
        """
        for task in [*self._keepers.values(), *self._tasks]:
            task.cancel()
        await asyncio.gather(*self._keepers.values(), *self._tasks, return_exceptions=True)
        children = list(self._children.values())
        await asyncio.gather(*(c.stop(0) for c in children if c.label == "gang"))
        await asyncio.gather(*(c.stop(grace) for c in children if c.label == "fixed"))
        await asyncio.gather(*(c.stop(grace) for c in children))
        _end(orphans({child.pid for child in children}), expected=True)
        if self._listener is not None:
            self._listener.close()
        self.socket.unlink(missing_ok=True)

    def status(self) -> dict[str, dict[str, Any]]:
        """Every child by token: pid, exit (negative: killed by that signal; None: it runs), CPU seconds at its end, label,
        the reason where we killed it for what it did, and whether its end was asked for."""
        return {
            token: {
                "pid": c.pid,
                "exit": c.exit,
                "cpu": c.cpu_seconds,
                "label": c.label,
                "reason": c.reason,
                "stopped": c.stopped,
            }
            for token, c in self._children.items()
        }

    def begin(self, request: dict[str, Any], fds: list[int]) -> Child:
        """Start one child as `request` says. Raises `Conflict` for a token in use, `Invalid` for what cannot be started."""
        token = str(request["token"])
        known = self._children.get(token)
        if known is not None and known.exit is None:
            raise Conflict(f"A process with token '{token}' already runs (process {known.pid}).")
        child = Child.start(request, fds)
        self._children[token] = child
        child.watch(asyncio.get_running_loop())
        self._forget()
        return child

    async def _keep(self, request: dict[str, Any], fds: list[int]) -> None:
        pause, loop = 0.1, asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                child = self.begin(request, fds)
                await child.ended.wait()
                _log.warning("a child ended and is started again", child=request["token"], exit=child.exit)
            except ModelyardError as error:
                _log.error("a child could not be started", child=request["token"], error=error.message)
            pause = 0.1 if loop.time() - began > _HEALTHY else min(pause * 2, _LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            self._spawn(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        fds: list[int] = []
        with connection:
            try:
                async with asyncio.timeout(30):
                    request = await _receive(connection, fds)
                answer = await self._do(request, fds)
            except ModelyardError as error:
                answer = {"error": {"code": error.code, "message": error.message}}
            except (OSError, TimeoutError, KeyError, TypeError) as error:
                answer = {"error": {"code": "invalid_request", "message": f"The supervisor could not do that: {error!r}."}}
            finally:
                for fd in fds:
                    os.close(fd)
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(connection, encode(answer))

    async def _do(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        match request.get("do"):
            case "start":
                return {"pid": self.begin(request, fds).pid}
            case "stop":
                child = self._children.get(str(request["token"]))
                if child is not None:
                    self._spawn(child.stop(float(request.get("grace", 5.0))))
                return {}
            case "list":
                return self.status()
            case other:
                raise Invalid(f"The supervisor knows start, stop and list, not '{other}'.")

    async def _sweep(self) -> None:
        """End processes that slipped out of their group and whose child is gone (possible only without a sandbox).

        What is dying anyway gets a second for it.
        """
        seen: set[int] = set()
        while True:
            await asyncio.sleep(1.0)
            found = orphans({child.pid for child in self._children.values()})
            _end(found & seen)
            seen = found

    async def _bound(self) -> None:
        """Look for full folders and fork bombs: the kernel bounds those neither for root nor for each gang of a user."""
        while True:
            await asyncio.sleep(_COUNT)
            for child in self._children.values():
                if child.bound():
                    _log.warning("a child was killed", child=child.pid, label=child.label, reason=child.reason)

    def _forget(self) -> None:
        ended = [token for token, child in self._children.items() if child.exit is not None]
        for token in ended[: max(0, len(ended) - _REMEMBERED)]:
            del self._children[token]

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _end(pids: set[int], *, expected: bool = False) -> None:
    """Kill what nobody owns any more: a sign of trouble while we run, `expected` of sandboxes when we end."""
    for pid in pids:
        (_log.debug if expected else _log.warning)("a stray process was ended", stray=pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def _receive(connection: socket.socket, fds: list[int]) -> dict[str, Any]:
    connection.setblocking(False)
    loop, buffer = asyncio.get_running_loop(), LineBuffer()
    while True:
        readable = asyncio.Event()
        loop.add_reader(connection, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(connection)
        data, received, _, _ = socket.recv_fds(connection, 65536, _MOST_FDS)
        fds += received
        if messages := buffer.feed(data):
            return messages[0]
        if not data:
            raise Invalid("The request ended before its line did.")


async def run(folder: Path) -> None:
    """A supervisor with no fixed children, until SIGTERM or SIGINT."""
    supervisor, told = Supervisor(folder), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await supervisor.start()
    await told.wait()
    await supervisor.stop()


def main(folder: str, parent: str = "") -> None:
    """Run on `folder`; where a `parent` is named, no longer than that process."""
    if parent:
        die_with_parent()
        if os.getppid() != int(parent):
            sys.exit("the parent is gone")
    asyncio.run(run(Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
