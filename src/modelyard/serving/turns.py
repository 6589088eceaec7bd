"""Answers in order: the turns that the requests of one HTTP connection take, whether they are calls or ASGI's.

Both kinds may follow each other, pipelined too. `http` parses them and appends each; what is answered too early waits here.
It is uvicorn's protocol class, whose own queue would let ASGI requests pass calls.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from modelyard.errors import Unavailable
from modelyard.serving import heads
from modelyard.serving.exchange import Exchange
from modelyard.serving.gateway import SMALL, Gateway
from modelyard.serving.heads import Defaults
from modelyard.serving.patience import Upload

MAX_PIPELINED = 64  # requests of one connection that may wait for their turn before reading stops
LINGER = 3.0  # seconds that what a refused client still sends is read and dropped, so that it sees the answer


class Turns(HttpToolsProtocol):
    """A connection. `turns` holds its unanswered requests in order: exchanges, and (cycle, app) of ASGI. The first is being
    answered."""

    gateway: ClassVar[Gateway]
    _defaults: ClassVar[Defaults] = Defaults()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.turns: deque[Exchange | tuple[RequestResponseCycle, Any]] = deque()
        self.now = time.monotonic  # the loop's own clock, in finer steps
        self.since = 0.0
        self._upload = Upload()
        self._last = False  # no request after this one is answered
        self._dropping = False  # nothing more is parsed
        self._held = 0  # requests that wait for the gateway to know more
        self._unread = 0  # bytes of room that answers take which the client has not read yet

    def answer(self, exchange: Exchange, status: int, head: Mapping[str, str] | None, body: bytes | bytearray) -> None:
        """Write an answer when it is its turn."""
        if self.transport.is_closing():
            return
        defaults = self.server_state.default_headers
        if exchange.trace is not None:
            head = {**(head or {}), "traceparent": exchange.trace.header}
        if head is None and status == 200 and exchange.keep_alive:
            exchange.response = self._defaults.plain(defaults, exchange.id, body)
        else:
            lines = self._defaults.lines(defaults)
            exchange.response = heads.answer(status, lines, exchange.id, exchange.keep_alive, head, body)
        if self.turns and self.turns[0] is exchange:
            self._advance()

    def pass_on(self, exchange: Exchange, head: Mapping[str, str] | None, data: bytes, last: bool) -> None:
        """Write the next of an answer that has no size yet, or keep it until it is its turn."""
        if self.transport.is_closing():
            return
        start = b""
        if head is not None:
            if exchange.trace is not None:
                head = {**head, "traceparent": exchange.trace.header}
            start = heads.begin(self._defaults.lines(self.server_state.default_headers), exchange.id, exchange.keep_alive, head)
        if exchange.response is None:
            exchange.response = bytearray()
        exchange.response += start + heads.chunk(data, last)
        exchange.open = not last
        if not self._bears(len(exchange.response) + self.transport.get_write_buffer_size()):
            self.transport.abort()  # nobody reads; that the connection is lost cancels the call
        elif self.turns and self.turns[0] is exchange:
            self._advance()

    def _bears(self, unread: int) -> bool:
        """Whether so much of a stream may be left unread; what is large takes room from the others."""
        if unread > self.gateway.body_limit:
            return False
        more = unread - SMALL - self._unread
        if more <= 0:
            return True
        try:
            self.gateway.reserve(more)
        except Unavailable:
            return False
        self._unread += more
        return True

    def _let_go(self) -> None:
        """What was written is read, or never will be."""
        if self._unread:
            self.gateway.release(self._unread)
            self._unread = 0

    def resume_writing(self) -> None:
        super().resume_writing()
        self._let_go()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._let_go()

    def _advance(self) -> None:
        """Write every answer whose turn it is; start the ASGI request whose turn it is."""
        turns = self.turns
        while turns:
            turn = turns[0]
            if not isinstance(turn, Exchange):
                super()._start_asgi_task(*turn)
                return
            if turn.response is None:
                return
            self.transport.write(turn.response)
            self.since = self.now()
            if turn.held:
                self._unread += turn.held
                turn.held = 0
                if not self.flow.write_paused:
                    self._let_go()
            if turn.open:
                turn.response = None
                return
            turns.popleft()
            if not turn.keep_alive:
                self._finish(turn.whole)
                return
        if self.flow.read_paused:
            self.flow.resume_reading()

    def _finish(self, whole: bool) -> None:
        """Close, but let a client that is still sending see its answer."""
        self._last = self._dropping = True
        if whole:
            self.transport.close()
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)

    def _may_read(self) -> bool:
        return len(self.turns) <= MAX_PIPELINED // 2 and not self._held and not self.flow.write_paused

    def _begin_asgi(self) -> None:
        """Let uvicorn see the request as if it had parsed it."""
        url, headers = self.url, self.headers
        self._upload = Upload()
        super().on_message_begin()
        self.url = url
        self.headers.extend(headers)
        self.expect_100_continue = any(n == b"expect" and v.lower() == b"100-continue" for n, v in headers)
        self.cycle = None  # type: ignore[assignment] # uvicorn would queue behind it; `turns` does
        super().on_headers_complete()
        self._last = not self.cycle.keep_alive

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.turns.append((cycle, app))
        if len(self.turns) == 1:
            super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self.turns.popleft()
        self.since = self.now()
        super().on_response_complete()
        if self.turns and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._advance()
