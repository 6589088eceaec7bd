"""How long a slow client is borne with: decisions over a clock, asked about twice a second for every connection by `http`.

A client that does nothing is soon idle. One that does a little, for ever, is held to a pace instead: a request that goes to
control takes room there, and an answer that nobody reads takes memory here.
"""

from __future__ import annotations

import asyncio
import fcntl
import select
import struct
import termios
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl

RATE = 1 << 10  # bytes a second: a body slower than this over its patience is no upload


def unread(transport: asyncio.Transport) -> int:
    """Bytes that arrived on a connection and were not looked at yet: a turn of the loop may be long, and who is thought to be
    idle may just have asked."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return 0
    found: int = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))[0]
    return found


def hung_up(transport: asyncio.Transport) -> bool:
    """Whether the other end of a connection has closed, which nobody is told of while nothing is read."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)  # errors and POLLHUP are told unasked
    return bool(poll.poll(0))


class Upload:
    """The body of one request. It begins with all the patience there is, and each byte earns some back."""

    __slots__ = ("_received", "_until")

    def __init__(self) -> None:
        self._received, self._until = 0, 0.0

    def is_late(self, now: float, patience: float, received: int, held: bool) -> bool:
        """Whether a body of which `received` bytes came is given up; never while it is `held`: it is we who do not read."""
        earned = (received - self._received) / RATE
        begins = not self._until or held
        self._received, self._until = received, now + patience if begins else min(now + patience, self._until + earned)
        return now > self._until


class Reader:
    """What a client takes of its answers."""

    __slots__ = ("_moved", "_pending")

    def __init__(self, now: float) -> None:
        self._pending, self._moved = 0, now

    def is_stuck(self, now: float, patience: float, pending: int) -> bool:
        """Whether of the `pending` bytes it took none for too long."""
        if not pending or pending < self._pending:
            self._moved = now
        self._pending = pending
        return now - self._moved > patience


class Flow(FlowControl):
    """Reading goes on only while it `may`: uvicorn would have it go on whenever an app asks for a body or has answered."""

    def __init__(self, transport: asyncio.Transport, may: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._may = may

    def resume_reading(self) -> None:
        if self._may():
            super().resume_reading()
