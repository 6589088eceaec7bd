"""One end of a connection between a gateway and a replica: frames in, frames out, many calls at once.

`router` and `replica` each hold one end. All frames of one turn of the event loop leave in one write, or as soon as they fill
one, so that neither end waits for the other to be through with many calls. Bodies larger than a frame are cut, and the pieces
of several bodies take turns, so that a small call never waits behind a large one. It knows frames and a transport, and nothing
of what the calls are about.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

import msgspec

from modelyard.errors import Invalid
from modelyard.serving.frames import PIECE, BodyFrame, CallFrame, Decoder, Frame, HealthFrame, PartFrame, append

# Bytes handed to the transport at a time while pieces of large bodies wait.
_WINDOW = 256 << 10
# Bytes that are worth a write of their own: of calls, and of answers, for which a gateway has more to do.
CALLS, ANSWERS = 8 << 10, 2 << 10
# Bytes in one read after which others have their turn: more is coming.
LARGE_READ = 64 << 10


class _Body:
    """What is left of a body that leaves in pieces, and the frames of its call that must follow it."""

    __slots__ = ("at", "data", "first", "then")

    def __init__(self, first: CallFrame | PartFrame) -> None:
        self.first, self.at = first, PIECE
        self.data = memoryview(first.data)
        self.then: list[Frame] = []

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def next(self) -> Frame:
        first, piece = self.first, cast(bytes, self.data[self.at : self.at + PIECE])  # the encoder copies it
        self.at += PIECE
        if isinstance(first, CallFrame):
            return BodyFrame(first.id, piece, self.left > 0)
        return PartFrame(first.id, first.seq, 0, piece, None, self.left > 0)


class Channel(asyncio.Protocol):
    """`received` is called with each frame, `closed` once with the reason (None: the peer closed). Frames sent before the
    connection is made wait for it; `burst` bytes of them leave before their turn of the loop is over, so that the peer works on
    them meanwhile."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        received: Callable[[Frame], None],
        closed: Callable[[Exception | None], None],
        burst: int = CALLS,
    ) -> None:
        self._loop, self._received, self._closed, self._burst = loop, received, closed, burst
        self._transport: asyncio.Transport | None = None
        self._decoder = Decoder()
        self._buffer = bytearray()
        self._bodies: dict[int, _Body] = {}
        self._turns: deque[int] = deque()
        self._scheduled = False
        self._paused = False
        self._broken: Exception | None = None

    @property
    def backlog(self) -> int:
        """Bytes the peer has not taken yet."""
        written = self._transport.get_write_buffer_size() if self._transport else 0
        return len(self._buffer) + written + sum(body.left for body in self._bodies.values())

    @property
    def unread(self) -> int:
        """Bytes of frames that wait until the peer reads what was written; bodies that leave in pieces wait elsewhere."""
        return len(self._buffer)

    def send(self, frame: Frame) -> None:
        """Send a frame with this turn of the loop; behind its call's body where that still leaves in pieces."""
        if self._bodies and not isinstance(frame, HealthFrame):
            body = self._bodies.get(frame.id)
            if body is not None:
                body.then.append(frame)
                return
        append(self._buffer, frame)
        if len(self._buffer) >= self._burst and self._may_write:
            self._write()
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def send_whole(self, frame: CallFrame | PartFrame) -> None:
        """Send a CALL or a PART whose data may be larger than a frame. `frame` itself is not changed."""
        if len(frame.data) <= PIECE:
            self.send(frame)
            return
        self.send(msgspec.structs.replace(frame, data=frame.data[:PIECE], more=True))
        self._bodies[frame.id] = _Body(frame)
        self._turns.append(frame.id)

    def drop(self, call: int) -> None:
        """Send no more of a call's body, but what follows it: the call was given up."""
        body = self._bodies.pop(call, None)
        for frame in body.then if body is not None else ():
            self.send(frame)

    def close(self) -> None:
        """Close once what was sent is written."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        self._scheduled = False
        if not self._may_write:
            return
        self._take_turns()
        if self._buffer:
            self._write()
        if self._turns and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    @property
    def _may_write(self) -> bool:
        """Not before there is a connection nor while it is full: connection_made and resume_writing come back. Nor where the
        peer died in this turn: connection_lost ends what was to be sent."""
        return self._transport is not None and not self._paused and not self._transport.is_closing()

    def _write(self) -> None:
        whole, self._buffer = self._buffer, bytearray()
        cast(asyncio.Transport, self._transport).write(whole)

    def _take_turns(self) -> None:
        """One piece of each body in turn, until the window is full."""
        while self._turns and len(self._buffer) < _WINDOW:
            call = self._turns.popleft()
            body = self._bodies.get(call)
            if body is None:
                continue
            append(self._buffer, body.next())
            if body.left > 0:
                self._turns.append(call)
                continue
            del self._bodies[call]
            for frame in body.then:
                append(self._buffer, frame)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._burst // 2)  # uvloop keeps less until its turn is over
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            frames = self._decoder.feed(data)
        except Invalid as error:
            self._broken = error
            cast(asyncio.Transport, self._transport).abort()
            return
        for frame in frames:
            self._received(frame)
        transport = self._transport
        if len(data) >= LARGE_READ and transport is not None and not transport.is_closing():
            transport.pause_reading()
            self._loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._bodies.clear()
        self._turns.clear()
        self._closed(self._broken or exc)
