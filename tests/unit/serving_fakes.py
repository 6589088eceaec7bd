"""A loop and a transport without input or output, and frames as they would look on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from modelyard.serving.frames import CallFrame, Decoder, Frame


class FakeLoop:
    """Runs what was scheduled when told to; its clock moves by hand."""

    def __init__(self) -> None:
        self.clock = 100.0
        self.soon: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.later: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []
        self.tasks: list[Any] = []

    def time(self) -> float:
        return self.clock

    def call_soon(self, what: Callable[..., None], *args: Any) -> None:
        self.soon.append((what, args))

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, what: Callable[..., None], *args: Any) -> Any:
        self.later.append((delay, what, args))
        return _Handle()

    def create_task(self, coroutine: Any, **_: Any) -> Any:
        self.tasks.append(coroutine)
        coroutine.close()
        return _Task()

    def turn(self) -> None:
        """One turn: what was scheduled before it began."""
        due, self.soon = self.soon, []
        for what, args in due:
            what(*args)

    def settle(self) -> None:
        while self.soon:
            self.turn()


class _Handle:
    def cancel(self) -> None: ...


class _Task:
    def add_done_callback(self, _: Any) -> None: ...


class FakeTransport(asyncio.Transport):
    """Keeps what is written; `protocol` hears of full buffers when `limit` bytes wait."""

    def __init__(self, protocol: Any = None, limit: int | None = None) -> None:
        super().__init__()
        self.protocol, self.limit = protocol, limit
        self.written = bytearray()
        self.writes: list[int] = []
        self.waiting = 0
        self.closed = self.aborted = self.eof = False
        self.reading = True
        self.extra: dict[str, Any] = {"sockname": ("127.0.0.1", 8080), "peername": ("127.0.0.1", 5555)}

    def write(self, data: Any) -> None:
        assert not self.closed, "written after close"
        self.written += data
        self.writes.append(len(data))
        self.waiting += len(data)
        if self.limit is not None and self.waiting >= self.limit:
            self.protocol.pause_writing()

    def drained(self) -> None:
        self.waiting = 0
        self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def take(self) -> bytes:
        taken, self.written = bytes(self.written), bytearray()
        return taken

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.extra.get(name, default)


async def eventually(condition: Callable[[], Any]) -> None:
    """Wait some seconds at most until it holds."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not come to be")


def call(number: int, data: bytes = b"", **changed: Any) -> CallFrame:
    fields: dict[str, Any] = {
        "project": "p",
        "deployment": "d",
        "version": "1",
        "door": "oip",
        "verb": "infer",
        "deadline": 2e9,
        "grant": None,
        "head": {},
    }
    return CallFrame(number, **{**fields, **changed}, data=data)


def frames(data: bytes) -> list[Frame]:
    return Decoder().feed(data)
