"""A load generator for calls that come whether they are answered or not; `wrk` is the one for the most a server can answer.

`Load` is an open loop in a process of its own: arrivals at a constant rate by a timer of the kernel, latency from the moment a
call was meant to start, memory bounded whatever the server does; or, without a rate, a closed loop: each connection sends when
it was answered. It tells every call's fate: answered with which status, or lost.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import ctypes
import json
import os
import platform
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from math import log
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

PATIENCE = 65.0  # seconds an answer is waited for after the last arrival: longer than a call may take
_MOST_DUE = 100_000  # calls that wait for a connection; an open loop goes on whatever becomes of them


def short_turns(seconds: float = 2e-4) -> None:
    """Have this process take short turns at the processor where the kernel lets it ask (Linux 6.12 on, x86-64): it finds out at
    once that an answer came, whoever else computes, so that what it measures is the server's and not its own waiting."""
    asked = struct.pack("=IIQiIQQQ", 48, 0, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, int(seconds * 1e9), 0, 0)
    if platform.machine() == "x86_64":
        ctypes.CDLL(None).syscall(314, 0, asked, 0)  # sched_setattr


def request(url: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """A whole HTTP/1.1 request."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {urlsplit(url).netloc}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def requests(url: str, path: str, headers: Mapping[str, str], key: str, bodies: Iterable[bytes]) -> list[bytes]:
    """Whole requests with a key."""
    return [request(url, path, {**headers, "Authorization": f"Bearer {key}"}, body) for body in bodies]


class Histogram:
    """Times in steps of 1 %, from a microsecond on: as many counters however many calls."""

    STEP = log(1.01)

    def __init__(self, counts: Mapping[int, int] = {}) -> None:
        self.counts: dict[int, int] = dict(counts)

    def add(self, seconds: float) -> None:
        step = int(log(max(seconds, 1e-6) * 1e6) / self.STEP)
        self.counts[step] = self.counts.get(step, 0) + 1

    def merged(self, other: Histogram) -> Histogram:
        both = self.counts.keys() | other.counts.keys()
        return Histogram({step: self.counts.get(step, 0) + other.counts.get(step, 0) for step in both})

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def quantile(self, share: float) -> float:
        """Seconds that `share` of the calls did not exceed; not a number where there are none."""
        left = share * self.total
        for step in sorted(self.counts):
            left -= self.counts[step]
            if left <= 0:
                return float(1.01 ** (step + 1) * 1e-6)
        return float("nan")


class Told(msgspec.Struct):
    """What became of a load's calls. `sent`: those that arrived; `unsent`: arrived, but no connection was left for them;
    `lost`: sent and never answered; `wrong`: checked answers that were not as expected. `seconds` that calls arrived for, and
    `until` the last answer 200, both from the start. `statuses` and `times` (a histogram's
    counts of the calls answered 200) by label. `lag`: the longest, in seconds, that an arrival was noticed late."""

    sent: int = 0
    unsent: int = 0
    lost: int = 0
    checked: int = 0
    wrong: int = 0
    seconds: float = 0.0
    until: float = 0.0
    lag: float = 0.0
    cpu: float = 0.0
    statuses: dict[str, dict[int, int]] = {}
    times: dict[str, dict[int, int]] = {}

    def answers(self, status: int = 200) -> int:
        return sum(counts.get(status, 0) for counts in self.statuses.values())

    @property
    def rate(self) -> float:
        """Answers 200 a second, over all the time they took: a queue that is left behind counts against it."""
        return self.answers() / max(self.seconds, self.until)

    def refused(self) -> int:
        return sum(sum(counts.values()) for counts in self.statuses.values()) - self.answers()

    def latency(self, label: str | None = None) -> Histogram:
        """Of the calls answered 200; of one label, or of all."""
        found = Histogram()
        for name, counts in self.times.items():
            found = found.merged(Histogram(counts)) if label in (None, name) else found
        return found


class Order(msgspec.Struct):
    """What the process of a load is told. `rate` arrivals a second, or None: each of `connections` sends when it was answered.
    `turns` are indices of `requests` in the order they are sent, again and again. Every `check`th answer's first number is
    compared with `expected` of its request; 0: none."""

    host: str
    port: int
    requests: list[bytes]
    labels: list[str]
    turns: list[int]
    expected: list[float]
    connections: int
    rate: float | None = None
    seconds: float | None = None
    check: int = 0


class Load:
    """A load under way in a process of its own. Without `seconds` it goes on until `finish`. `turns` is the order of the
    requests (None: one after another), `connections` the most that may be open at once."""

    def __init__(
        self,
        url: str,
        requests: Sequence[bytes],
        *,
        connections: int = 256,
        rate: float | None = None,
        seconds: float | None = None,
        labels: Sequence[str] = (),
        turns: Sequence[int] = (),
        expected: Sequence[float] = (),
        check: int = 0,
    ) -> None:
        at = urlsplit(url)
        order = Order(
            at.hostname or "", at.port or 80, list(requests), list(labels) or [""] * len(requests),
            list(turns) or list(range(len(requests))), list(expected), connections, rate, seconds, check if expected else 0,
        )  # fmt: skip
        self._patience = (seconds or 0.0) + PATIENCE + 30.0
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        with self._process.stdin as told:
            told.write(msgspec.msgpack.encode(order))

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def wait(self) -> Told:
        """Wait for its end: its seconds are over, and every call is answered or lost."""
        assert self._process.stdout is not None
        said = self._process.stdout.read()
        if self._process.wait(self._patience):
            raise RuntimeError(f"the load generator ended with {self._process.returncode}")
        return msgspec.json.decode(said, type=Told)

    def finish(self) -> Told:
        """Send nothing more, and wait."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait()


def run(url: str, requests: Sequence[bytes], **more: Any) -> Told:
    """A load of some seconds, from its start to its end."""
    with Load(url, requests, **more) as load:
        return load.wait()


class _Connection(asyncio.Protocol):
    """Sends one request at a time; `call` is (index, meant to start) of the one that is not answered yet."""

    def __init__(self, crew: _Crew) -> None:
        self._crew = crew
        self._got = bytearray()
        self._whole = -1
        self.call: tuple[int, float] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.call is not None:
            self._write(self.call[0])

    def send(self, index: int, meant: float) -> None:
        self.call = (index, meant)
        if self._transport is not None:
            self._write(index)

    def _write(self, index: int) -> None:
        assert self._transport is not None
        self._transport.write(self._crew.order.requests[index])

    def data_received(self, data: bytes) -> None:
        got = self._got
        got += data
        if self._whole < 0:
            head = got.find(b"\r\n\r\n")
            if head < 0:
                return
            at = got.lower().find(b"content-length:", 0, head) + 15
            self._whole = head + 4 + int(got[at : got.find(b"\r", at)])
        if len(got) < self._whole or self.call is None:
            return
        call, answer, self.call = self.call, bytes(got[: self._whole]), None
        del got[: self._whole]
        self._whole = -1
        self._crew.answered(self, call, answer)

    def connection_lost(self, exc: Exception | None) -> None:
        call, self.call = self.call, None
        self._crew.closed(self, call)


class _Crew:
    """All connections, and what became of the calls."""

    def __init__(self, loop: asyncio.AbstractEventLoop, order: Order) -> None:
        self.order, self.told = order, Told()
        self._loop = loop
        self._free: deque[_Connection] = deque()
        self._open: set[_Connection] = set()
        self._due: deque[tuple[int, float]] = deque()
        self._turns, self._turn = array.array("I", order.turns), 0
        self._times: dict[str, Histogram] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.began = time.monotonic()
        self.ending = False
        self.idle = asyncio.Event()

    def arrive(self, meant: float) -> None:
        index = self._turns[self._turn]
        self._turn = (self._turn + 1) % len(self._turns)
        self.told.sent += 1
        if self._free:
            self._free.pop().send(index, meant)
        elif len(self._open) < self.order.connections:
            self._connect((index, meant))
        elif len(self._due) < _MOST_DUE:
            self._due.append((index, meant))
        else:
            self.told.unsent += 1

    def _connect(self, call: tuple[int, float]) -> None:
        connection = _Connection(self)
        connection.call = call
        self._open.add(connection)
        task = self._loop.create_task(self._opened(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _opened(self, connection: _Connection) -> None:
        try:
            await self._loop.create_connection(lambda: connection, self.order.host, self.order.port)
        except OSError:
            connection.connection_lost(None)

    def answered(self, connection: _Connection, call: tuple[int, float], answer: bytes) -> None:
        index, meant = call
        status, label, told = int(answer[9:12]), self.order.labels[index], self.told
        statuses = told.statuses.setdefault(label, {})
        statuses[status] = statuses.get(status, 0) + 1
        if status == 200:
            now = time.monotonic()
            self._times.setdefault(label, Histogram()).add(now - meant)
            told.until = now - self.began
            if self.order.check and sum(statuses.values()) % self.order.check == 0:
                self._check(index, answer)
        if self._due:
            connection.send(*self._due.popleft())
        elif self.order.rate is None and not self.ending:
            self._free.append(connection)
            self.arrive(time.monotonic())
        else:
            self._free.append(connection)
        self._look()

    def _check(self, index: int, answer: bytes) -> None:
        self.told.checked += 1
        number = json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"][0]["data"][0]
        expected = self.order.expected[index]
        self.told.wrong += abs(number - expected) > 1e-5 + 1e-3 * abs(expected)

    def closed(self, connection: _Connection, call: tuple[int, float] | None) -> None:
        self._open.discard(connection)
        with contextlib.suppress(ValueError):
            self._free.remove(connection)
        self.told.lost += call is not None
        if self._due:
            self._connect(self._due.popleft())
        elif self.order.rate is None and call is not None and not self.ending:
            self._loop.call_later(0.1, self._again)  # a server that is away is not asked as fast as it refuses
        self._look()

    def _again(self) -> None:
        if not self.ending:
            self.arrive(time.monotonic())

    def _look(self) -> None:
        if self.ending and not self._due and all(connection.call is None for connection in self._open):
            self.idle.set()

    async def end(self) -> None:
        self.ending = True
        self._look()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.idle.wait(), PATIENCE)
        self.told.lost += sum(connection.call is not None for connection in self._open)
        self.told.unsent += len(self._due)
        self.told.times = {label: times.counts for label, times in self._times.items()}


class _Timer:
    """A timer of the kernel that fires every `interval` seconds: how often it did is read, so that nothing drifts, and
    arrivals are not rounded to the event loop's milliseconds."""

    def __init__(self, interval: float) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.handle = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.handle < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        nanoseconds = int(interval * 1e9)
        pair = (nanoseconds // 10**9, nanoseconds % 10**9)
        every = (ctypes.c_long * 4)(*pair, *pair)
        self.interval, self.began = nanoseconds / 1e9, time.monotonic()
        if libc.timerfd_settime(self.handle, 0, every, None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def fired(self) -> int:
        return int.from_bytes(os.read(self.handle, 8), sys.byteorder)


async def _generate(order: Order) -> Told:
    loop = asyncio.get_running_loop()
    crew, over = _Crew(loop, order), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    if order.rate is None:
        for _ in range(order.connections):
            crew.arrive(time.monotonic())
    else:
        timer, number = _Timer(1 / order.rate), 0

        def due() -> None:
            nonlocal number
            for _ in range(timer.fired()):
                number += 1
                meant = timer.began + number * timer.interval
                crew.told.lag = max(crew.told.lag, time.monotonic() - meant)
                crew.arrive(meant)

        loop.add_reader(timer.handle, due)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(over.wait(), order.seconds)
    if order.rate is not None:
        loop.remove_reader(timer.handle)
    crew.told.seconds = time.monotonic() - crew.began
    await crew.end()
    crew.told.cpu = time.process_time()
    return crew.told


if __name__ == "__main__":
    short_turns()
    # uvloop would round no better here, and this needs nothing of the platform
    said = asyncio.run(_generate(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Order)))
    sys.stdout.buffer.write(msgspec.json.encode(said))
