"""Published doubles: the same contracts as the real things, in memory, for the product's tests and for yours."""

from __future__ import annotations

import io
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.client import Yard
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.errors import Crashed, Invalid, ModelyardError, NotFound, from_wire
from modelyard.jobs.lines import LineBuffer, encode
from modelyard.jobs.rank import load, perform
from modelyard.jobs.types import Amount, Event, Gang, GangHandle, Node, ProcessStatus, ReplicaSpec
from modelyard.storage.stores import Buffer, Staged, check_key
from modelyard.tensors import DATATYPES, Array, Call, Reply, Signature, Tensor, TensorSpec

FAKE_CARD = ModelCard(
    task="tabular-regression",
    engines=("fake",),
    files={},
    inputs=(TensorCard(name="x", datatype="FP32", shape=(-1, 2)),),
    outputs=(TensorCard(name="y", datatype="FP32", shape=(-1, 1)),),
)


@contextmanager
def yard(data: Path, *flags: str, **environment: str) -> Iterator[Yard]:
    """A real platform of its own in `data`, on a free port, ended when the block is left; spoken to as its administrator.

    `flags` go to `modelyard up`, `environment` (MODELYARD_…) to its process.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODELYARD_")}
    command = [sys.executable, "-m", "modelyard", "up", "--data", str(data), "--port", "0", "--json", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**kept, **environment}) as process:
        try:
            assert process.stdout is not None
            said = json.loads(process.stdout.readline() or '{"error": {"message": "it ended without a word"}}')
            if "error" in said:
                raise RuntimeError(f"The platform did not start: {said['error']['message']}")
            profile = json.loads((data / "profile.json").read_text())
            with Yard(profile["url"], profile["key"], data) as client:
                yield client
        finally:
            process.terminate()
            process.wait(30)


class MemoryStore:
    """An object store in a dictionary; passes the contract suite of `storage.ObjectStore`."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put(self, key: str, data: Buffer, *, create: bool = False) -> bool:
        check_key(key)
        with self._lock:
            if create and key in self.objects:
                return False
            self.objects[key] = bytes(data)
            return True

    @contextmanager
    def stage(self, *, cold: bool = False) -> Iterator[Staged]:
        yield Staged(io.BytesIO())

    def adopt(self, staged: Staged, key: str) -> None:
        staged.file.seek(0)
        self.put(key, staged.file.read())

    def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise NotFound(f"There is no object '{key}' in the store.")
        return self.objects[key]

    def get_range(self, key: str, start: int, length: int) -> bytes:
        data = self.get(key)
        if start < 0 or length < 0 or start + length > len(data):
            raise Invalid(f"The range {start}+{length} is not inside an object of {len(data)} bytes.")
        return data[start : start + length]

    def size(self, key: str) -> int | None:
        return len(self.objects[key]) if key in self.objects else None

    def list(self, prefix: str) -> Iterator[str]:
        return iter([key for key in list(self.objects) if key.startswith(f"{prefix.rstrip('/')}/")])

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def sweep(self, before: float) -> int:
        return 0


class FakeEngine:
    """A `BatchEngine` without a model: every element of an output's row is the sum of that row over all inputs (of BYTES: of
    their lengths), so that answers tell which row they belong to. `delay` seconds a forward; `failure` is raised by each.
    `batches` lists the rows of every forward."""

    def __init__(
        self,
        folder: Path = Path(),
        card: ModelCard = FAKE_CARD,
        *,
        threads: int = 1,
        delay: float = 0.0,
        failure: Exception | None = None,
    ) -> None:
        self._card, self.threads = card, threads
        self.delay = delay
        self.failure = failure
        self.batches: list[int] = []
        self.closed = False

    @property
    def signature(self) -> Signature:
        return self._card.signature

    def forward(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        self.batches.append(len(next(iter(batch.values()))))
        time.sleep(self.delay)
        if self.failure is not None:
            raise self.failure
        sums = np.sum([_row_sums(array) for array in batch.values()], axis=0)
        return {spec.name: _filled(spec, sums) for spec in self.signature.outputs}

    def close(self) -> None:
        self.closed = True


class FakeStreamEngine:
    """A `StreamEngine` without a model: it reads a call's first input number by number and says the sum so far, a number and a
    unit a step, so that answers tell which call and which part they are. `steps` counts what it was asked."""

    def __init__(self, folder: Path = Path(), card: ModelCard = FAKE_CARD, *, threads: int = 1) -> None:
        self._card, self.threads = card, threads
        self._loop: dict[str, Iterator[tuple[str, Reply, bool]]] = {}
        self.steps = 0
        self.closed = False

    @property
    def signature(self) -> Signature:
        return self._card.signature

    def add(self, call: Call) -> None:
        self._loop[call.id] = self._parts(call)

    def step(self) -> list[tuple[str, Reply, bool]]:
        self.steps += 1
        said = [next(parts) for parts in self._loop.values()]
        for call in [call for call, _, last in said if last]:
            del self._loop[call]
        return said

    def cancel(self, call: str) -> None:
        self._loop.pop(call, None)

    def close(self) -> None:
        self.closed = True

    def _parts(self, call: Call) -> Iterator[tuple[str, Reply, bool]]:
        spec = self.signature.outputs[0]
        sums = np.cumsum(call.inputs[0].array, dtype=DATATYPES[spec.datatype])[: call.grant]
        for number, value in enumerate(sums, 1):
            yield call.id, Reply((Tensor(spec.name, spec.datatype, value.reshape(1, 1)),), 1), number == len(sums)
        yield call.id, Reply((), 0), True  # only where there was nothing to say


def _row_sums(array: Array) -> Array:
    numbers = np.vectorize(len, otypes=[np.int64])(array) if array.dtype == object else array
    sums: Array = numbers.reshape(len(array), -1).sum(axis=1, dtype=np.float64)
    return sums


def _filled(spec: TensorSpec, sums: Array) -> Array:
    """`sums` [n] over the shape of an output; open dims past the batch are 1."""
    rest = tuple(abs(dim) for dim in (spec.shape or (-1,))[1:])
    values = np.broadcast_to(sums.reshape(-1, *(1 for _ in rest)), (len(sums), *rest))
    if spec.datatype == "BYTES":
        return np.array([f"{value:g}".encode() for value in values.ravel()], dtype=object).reshape(values.shape)
    return values.astype(DATATYPES[spec.datatype])


class InlineExecutor:
    """An `Executor` without processes, for tests of what stands on one: ranks are threads of this process, replicas only noted.

    No sandbox, no limits, no heartbeat; what a rank prints is not captured, and `kill` lets a thread run on unheard.
    """

    def __init__(self, cpus: int = 4, nodes: Sequence[Node] = ()) -> None:
        self._nodes = tuple(nodes) or (Node("local", Amount(cpus, 0, 64 << 30)),)
        self._replicas: dict[str, ProcessStatus] = {}
        self._news = threading.Condition()
        self._told = False

    def start_gang(self, gang: Gang, instead: GangHandle | None = None) -> InlineGang:
        return InlineGang(gang, self.wake)

    def start_replica(self, spec: ReplicaSpec) -> None:
        self._replicas[spec.token] = ProcessStatus(spec.token, os.getpid(), None)

    def stop_replica(self, token: str, grace: float = 5.0) -> None:
        if token in self._replicas:
            self._replicas[token] = ProcessStatus(token, os.getpid(), 0)

    def replicas(self) -> Mapping[str, ProcessStatus]:
        return dict(self._replicas)

    def nodes(self) -> Sequence[Node]:
        return self._nodes

    def machines(self) -> Sequence[Node]:
        return self._nodes

    def end_gangs(self) -> Mapping[str, ModelyardError]:
        return {}

    def wait(self, timeout: float) -> None:
        with self._news:
            self._news.wait_for(lambda: self._told, timeout)
            self._told = False

    def wake(self) -> None:
        with self._news:
            self._told = True
            self._news.notify_all()


class InlineGang:
    """A gang of threads; implements `jobs.types.GangHandle`."""

    def __init__(self, gang: Gang, wake: Callable[[], None]) -> None:
        self._gang, self._wake = gang, wake
        self._lock = threading.Lock()
        self._events = [Event("started", {"pids": [os.getpid()] * gang.ranks})]
        self._ports = [_InlinePort(self, rank) for rank in range(gang.ranks)]
        self._endings: dict[int, Mapping[str, Any]] = {}
        self._cpu_seconds = 0.0
        self._ended = False
        for port in self._ports:
            threading.Thread(target=self._run, args=(port,), name=f"rank {port.rank}", daemon=True).start()
        wake()

    @property
    def token(self) -> str:
        return self._gang.token

    def poll(self) -> Sequence[Event]:
        with self._lock:
            events, self._events = self._events, []
        return events

    def answer(self, ask: int, value: Any, error: ModelyardError | None = None) -> None:
        number, rank = divmod(ask, self._gang.ranks)
        said = {"value": value} if error is None else {"error": {"code": error.code, "message": error.message}}
        self._ports[rank].inbox.put({"answer": number, **said})

    def cancel(self) -> None:
        for port in self._ports:
            port.inbox.put({"cancel": True})

    def kill(self) -> None:
        self.cancel()
        self._end(Crashed("The gang was ended."))

    def hear(self, rank: int, message: dict[str, Any]) -> None:
        """A rank says something."""
        kind = message.pop("type")
        if "ask" in message:
            message["ask"] = message["ask"] * self._gang.ranks + rank
        if kind != "beat":
            self._say(Event(kind, {**message, "rank": rank}))

    def _say(self, event: Event) -> None:
        with self._lock:
            if not self._ended:
                self._ended = event.type == "ended"
                self._events.append(event)
        self._wake()

    def _run(self, port: _InlinePort) -> None:
        try:
            ending = perform(self._gang, *load(self._gang), port.rank, port)
        except ModelyardError as error:
            ending = {"type": "failed", "at": 0.0, "error": {"code": error.code, "message": error.message}}
        with self._lock:
            self._endings[port.rank] = ending
            self._cpu_seconds += time.thread_time()
            endings = list(self._endings.values())
        if ending["type"] == "failed":
            self.cancel()
        if len(endings) == self._gang.ranks:
            failed = min((e for e in endings if e["type"] == "failed"), key=lambda e: e["at"], default=None)
            cause = from_wire(failed["error"]["code"], failed["error"]["message"]) if failed else None
            self._end(cause, cancelled=cause is None and any(e["type"] == "cancelled" for e in endings))

    def _end(self, error: ModelyardError | None, *, cancelled: bool = False) -> None:
        said = None if error is None else {"code": error.code, "message": error.message}
        ended = {"ok": said is None and not cancelled, "cancelled": cancelled, "error": said, "signal": None}
        self._say(Event("ended", {**ended, "cpu_seconds": self._cpu_seconds}))


class _InlinePort:
    """A rank's end of its conversation, as lines of JSON like the real one."""

    def __init__(self, gang: InlineGang, rank: int) -> None:
        self.rank = rank
        self.inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._gang = gang

    def send(self, message: Mapping[str, Any]) -> None:
        self._gang.hear(self.rank, LineBuffer().feed(encode(message))[0])

    def read(self, *, wait: bool) -> list[dict[str, Any]]:
        messages = [self.inbox.get()] if wait else []
        while not self.inbox.empty():
            messages.append(self.inbox.get())
        return messages
