"""One rank of a gang: what the user's run function is given, and how it ends.

The launcher (`worker`) forks it. It speaks with the launcher alone, in JSON lines over one socket, knows no database and no
network, and holds nothing whose loss would matter: whatever counts was told to control and answered.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import math
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from modelyard import plugins
from modelyard.errors import CallerError, Crashed, Internal, Invalid, ModelyardError, Unavailable, from_wire
from modelyard.jobs.lines import LineBuffer, encode
from modelyard.jobs.types import Gang
from modelyard.kinds import Cancelled, FolderView, Input, Run

# Seconds between two signs of life, or two reports of progress, that are worth telling.
_BEAT = 0.2
_TAIL = 2000
# Bytes; with less to spare a disk is full.
_FULL = 1 << 20
# Bytes that a new thread asks for at the most.
_STACK = 64 << 20


class Port(Protocol):
    """The rank's end of its conversation with the launcher."""

    def send(self, message: Mapping[str, Any]) -> None: ...
    def read(self, *, wait: bool) -> list[dict[str, Any]]:
        """Messages that have come; with `wait`, at least one."""
        ...


class SocketPort:
    """A conversation over a blocking stream socket; many threads may send."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = LineBuffer()
        self._lock = threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        line = encode(message)
        with self._lock:
            self._socket.sendall(line)

    def read(self, *, wait: bool) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        while not messages:
            try:
                data = self._socket.recv(65536, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            if not data:
                raise Crashed("The launcher of this gang is gone.")
            messages = self._buffer.feed(data)
        return messages


class RankContext:
    """`kinds.JobContext` and `kinds.Outputs` of one rank. Only rank 0's progress, metrics, outputs and checkpoints are told."""

    def __init__(self, gang: Gang, rank: int, port: Port) -> None:
        self._gang = gang
        self._rank = rank
        self._port = port
        self._asks = 0
        self._asking = threading.Lock()
        self._cancelled = False
        self._beat_at = self._progress_at = 0.0

    @property
    def job(self) -> str:
        return self._gang.job

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._gang.ranks

    @property
    def rendezvous(self) -> str:
        return f"file://{self._gang.work / '.rendezvous'}"

    @property
    def work(self) -> Path:
        return self._gang.work

    def progress(self, done: int, total: int, unit: str = "steps") -> None:
        now = time.monotonic()
        if self._rank != 0 or (done < total and now - self._progress_at < _BEAT):
            self._beat()
            return
        self._progress_at = self._beat_at = now
        self._port.send({"type": "progress", "done": int(done), "total": int(total), "unit": unit})

    def metric(self, step: int, **values: float) -> None:
        if self._rank == 0:
            self._port.send({"type": "metric", "step": int(step), "values": {name: float(v) for name, v in values.items()}})

    def log(self, line: str) -> None:
        self._port.send({"type": "log", "text": str(line)})

    def report(self, **facts: Any) -> None:
        self._port.send({"type": "report", "facts": facts})

    def check(self) -> None:
        self._beat()
        if self._asking.acquire(blocking=False):  # else a thread that asked something hears for this one too
            try:
                self._hear(self._port.read(wait=False))
            finally:
                self._asking.release()
        if self._cancelled:
            raise Cancelled

    def allow(self, times: float = 1.0) -> None:
        self._port.send({"type": "beat", "times": float(times)})

    def checkpoint(self, step: int, folder: Path, *, score: float | None = None, last: int = 1) -> None:
        if self._rank == 0:
            policy = {"score": None if score is None or not math.isfinite(score) else float(score), "last": int(last)}
            self._ask({"type": "checkpoint", "step": int(step), "folder": str(folder), **policy})

    def latest(self) -> Path | None:
        return self._gang.resume

    def submit(
        self,
        kind: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        *,
        ranks: int = 1,
        reuse: Mapping[str, Any] | None = None,
    ) -> str:
        submission = {"kind": kind, "config": dict(config), "inputs": dict(inputs), "ranks": ranks, "reuse": reuse}
        return str(self._ask({"type": "submit", "submission": submission}))

    def wait(self, job: str) -> Mapping[str, Any]:
        return dict(self._ask({"type": "wait", "job": job}))

    def watch(self, after: Mapping[str, int]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        return dict(self._ask({"type": "watch", "after": dict(after)}))

    def stop(self, job: str) -> None:
        self._ask({"type": "stop", "job": job})

    def publish(
        self,
        name: str,
        folder: Path,
        *,
        task: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        alias: str | None = None,
        version: bool = True,
    ) -> None:
        if self._rank == 0:
            facts = {"name": name, "folder": str(folder), "task": task, "metadata": dict(metadata or {}), "alias": alias}
            self._ask({"type": "output", **facts, "version": version})

    def adopt(self, name: str, job: str, output: str, *, metadata: Mapping[str, Any], alias: str | None = None) -> None:
        if self._rank == 0:
            facts = {"name": name, "output": output, "metadata": dict(metadata), "alias": alias}
            self._ask({"type": "adopt", "job": job, **facts})

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._beat_at >= _BEAT:
            self._beat_at = now
            self._port.send({"type": "beat"})

    def _ask(self, question: dict[str, Any]) -> Any:
        """Say something and wait for control's answer; raises its error here, or `Cancelled`."""
        with self._asking:
            self._asks += 1
            self._port.send({**question, "ask": self._asks})
            while True:
                answer = self._hear(self._port.read(wait=True))
                if answer is not None:
                    break
                if self._cancelled:
                    raise Cancelled
        if error := answer.get("error"):
            raise from_wire(str(error["code"]), str(error["message"]))
        return answer.get("value")

    def _hear(self, messages: list[dict[str, Any]]) -> dict[str, Any] | None:
        answer = None
        for message in messages:
            if message.get("cancel"):
                self._cancelled = True
            elif message.get("answer") == self._asks:
                answer = message
        return answer


def load(gang: Gang) -> tuple[Run, Any]:
    """The kind's function and its configuration. Raises what is to be told to the submitter."""
    try:
        return plugins.load(gang.run), plugins.load(gang.config_path).model_validate(dict(gang.config))
    except ModelyardError:
        raise
    except Exception as error:
        tail = traceback.format_exc()[-_TAIL:]
        raise Internal(f"The job kind could not be loaded: {type(error).__name__}: {error}\n{tail}") from error


def inputs(gang: Gang) -> dict[str, Input]:
    """The gang's inputs as views of their folders."""
    return {role: Input(i.reference, i.metadata, FolderView(i.folder, i.hash)) for role, i in gang.inputs.items()}


def perform(gang: Gang, run: Run, config: Any, rank: int, port: Port) -> dict[str, Any]:
    """Run the kind's function as this rank; how it ended: 'done', 'cancelled', or 'failed' with the error."""
    context = RankContext(gang, rank, port)
    try:
        run(config, inputs(gang), context, context)
    except Cancelled:
        return {"type": "cancelled"}
    except SystemExit as error:
        return _failed(Invalid(f"The code of rank {rank} called sys.exit({error.code!r})."))
    except ModelyardError as error:
        if not isinstance(error, CallerError):  # what the caller did wrong is told in a sentence
            traceback.print_exc()
        return _failed(error)
    except BaseException as error:  # noqa: BLE001 — the edge of a process that runs users' code
        traceback.print_exc()
        return _failed(_blame(error, gang, rank))
    return {"type": "done"}


def _failed(error: ModelyardError) -> dict[str, Any]:
    # The clock is the machine's: it tells which rank failed first, and which only lost its peer.
    return {"type": "failed", "at": time.monotonic(), "error": {"code": error.code, "message": error.message}}


def _blame(error: BaseException, gang: Gang, rank: int) -> ModelyardError:
    """Whose fault an exception is: the caller's where it passed through a file of the caller's or took too much memory."""
    tail = "".join(traceback.format_exception(error))[-_TAIL:].strip()
    message = f"rank {rank}: {type(error).__name__}: {error}\n{tail}"
    if _disk_full(error, gang.work):
        return Unavailable(f"The disk of the job is full: free some space, and run it again.\n{message}")
    if _no_memory(error, gang.memory):
        whose = _device(str(error)) or f"a rank may take {gang.memory} bytes"
        return Invalid(f"The job ran out of memory: {whose}.\n{message}")
    if _passed(error, [gang.work, *(i.folder for i in gang.inputs.values())]):
        return Invalid(message)
    return Internal(message)


def _no_memory(error: BaseException, bound: int) -> bool:
    """Whether an exception means that the rank may take no more memory. A thread that has no room for its stack says less."""
    said = str(error)
    if "can't start new thread" in said:
        return _held() + _STACK > bound
    return isinstance(error, MemoryError) or "allocate memory" in said or "out of memory" in said


def _device(said: str) -> str | None:
    """Which device had no more memory, and how much it has as far as that was said; None: it was the machine."""
    if not re.search(r"\b(CUDA|HIP|cuBLAS|NCCL)", said, re.IGNORECASE):
        return None
    found = re.search(r"(GPU \d+) has a total capacity of ([\d.]+ \w+)", said)
    return f"{found[1]} has {found[2]}" if found else "the rank's GPU has no more"


def _held() -> int:
    """Bytes of private memory that this process has asked for, which is what is bounded."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:")), 0)


def _disk_full(error: BaseException, work: Path) -> bool:
    """Whether an exception comes from a full disk, which libraries that write from C++ do not say."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, RuntimeError) and shutil.disk_usage(work).free < _FULL


def _passed(error: BaseException, folders: list[Path]) -> bool:
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        files.append(Path(error.filename))
    return any(folder in file.parents for file in files for folder in folders)


def main(gang: Gang, run: Run, config: Any, rank: int, connection: socket.socket, output: int) -> NoReturn:
    """Be this rank until its work is over; never returns into the launcher's code."""
    status = 1
    try:
        _settle(gang, rank, output)
        port = SocketPort(connection)
        port.send({"type": "beat"})
        ending = perform(gang, run, config, rank, port)
        _flush()
        port.send(ending)
        status = 0
    except BaseException:  # noqa: BLE001 — the edge of the process: shown, and told by the exit status
        traceback.print_exc()
    finally:
        _flush()
        os._exit(status)


def _settle(gang: Gang, rank: int, output: int) -> None:
    """Make the forked process a rank: its output goes to the launcher, a signal has it tell where it is."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # New ones: those of the launcher were made for a file, which can be sought in.
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    faulthandler.enable(all_threads=True)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    here = {"LOCAL_RANK": str(rank - gang.mine.start), "LOCAL_WORLD_SIZE": str(len(gang.mine))}
    given = {"RANK_CPUS": str(gang.each.cpus), "RANK_GPUS": str(gang.each.gpus)}
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(gang.ranks), **given, **here})


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
