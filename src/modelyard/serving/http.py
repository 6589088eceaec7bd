"""The gateway's HTTP/1.1: uvicorn's httptools protocol, which takes the inference requests before ASGI sees them.

A POST that a door answers becomes an `Exchange` and leaves as frames; every other request goes the ordinary way to the ASGI
app; `turns` answers them in order. llhttp is strict about framing (a length given twice, or beside chunks, ends the
connection), and nothing here is lenient about it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import httptools

from modelyard.errors import Invalid, ModelyardError, NotFound, TooLarge
from modelyard.serving import heads
from modelyard.serving.channel import LARGE_READ
from modelyard.serving.exchange import Exchange, is_stale
from modelyard.serving.gateway import SMALL
from modelyard.serving.heads import Known
from modelyard.serving.patience import RATE, Flow, Reader, hung_up, unread
from modelyard.serving.turns import MAX_PIPELINED, Turns

MAX_HEAD = 64 << 10  # bytes of a request's line and headers
_READ = 256 << 10  # the most that arrives in one piece


class InferenceProtocol(Turns):
    """A connection, and what is parsed of it. `incoming` is the exchange whose body is being read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.incoming: Exchange | None = None
        self._reader = Reader(self.now())
        self._in_head = True
        self._skip = False  # the message being parsed is not to be acted on
        self._completed = self._fed = self._body = 0
        self._between = True  # the parser is between two messages
        self._known: Known | None = None
        self._plain: Exchange | None = None  # the exchange that was begun last, if its head may be known again

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = Flow(transport, self._may_read)
        self.since = self.now()

    def connection_lost(self, exc: Exception | None) -> None:
        for turn in self.turns:
            if isinstance(turn, Exchange):
                turn.abandon()
            else:
                turn[0].disconnected = True
                turn[0].message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if self._dropping:
            return
        known = self._known
        if known is not None and len(data) <= self.gateway.small and self._repeat(known, data):
            return
        completed, between, self._plain = self._completed, self._between, None
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._break(400, "The request is not valid HTTP/1.1.")
        if self.incoming is not None:
            self.incoming.in_pieces = True
            if len(data) >= LARGE_READ and not self.flow.read_paused:
                self.flow.pause_reading()  # until the next turn of the loop: uvloop would read up to 8 MB while all others wait
                self.loop.call_soon(self._read_on)
        if completed != self._completed:
            self._fed = 0
            if between and self._between and completed + 1 == self._completed:
                self._remember(data)
            return
        # What is neither body nor the framing of (at worst one-byte) chunks is headers or trailers.
        self._fed += len(data)
        if self._fed - 8 * self._body > MAX_HEAD + _READ * (not self._in_head):
            self._break(431, f"The request's headers are larger than {MAX_HEAD} bytes.")

    def _read_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        """The client does not read: take no more of its requests."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.flow.resume_reading()

    def shutdown(self) -> None:
        """The server ends: answer what was asked, and close."""
        self._last = True
        if not self.turns:
            self.transport.close()
            return
        turn = self.turns[-1]
        (turn if isinstance(turn, Exchange) else turn[0]).keep_alive = False

    def sweep(self, now: float, patience: float) -> None:
        """Called about twice a second with the loop's clock: end what is idle, what never is whole, and who never reads."""
        idle = self.gateway.settings.idle_timeout
        stuck = self._reader.is_stuck(now, idle, self.transport.get_write_buffer_size())
        if stuck or (self._held and hung_up(self.transport)):
            self.transport.abort()
        elif self.incoming is not None and now - self.incoming.started > patience and not self._held:
            self._break(408, f"The request was not whole within {patience:g} seconds.")
        elif self._uploads() and self._upload.is_late(now, patience, self._body, self.flow.read_paused):
            self._break(408, f"The request's body stopped, or came slower than {RATE} bytes a second.")
        elif not self.turns and now - self.since > idle and (self.flow.read_paused or not unread(self.transport)):
            self.transport.close()

    def _uploads(self) -> bool:
        """Whether the body of an ASGI request is being read."""
        last = self.turns[-1] if self.turns else None
        return isinstance(last, tuple) and last[0].more_body

    # httptools callbacks

    def on_message_begin(self) -> None:
        self.url, self.headers = b"", []
        self._in_head, self._skip, self._body, self._between = True, self._last, 0, False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer, which must not pass for a header
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._skip:
            return
        if self.parser.get_http_version() not in _VERSIONS:  # llhttp takes a line without one for HTTP/0.9
            self.incoming, self._skip = None, True
            self._break(400, "The request's line names no version known here; expected HTTP/1.1.")
            return
        if heads.is_coded_twice(self.headers):
            self.incoming, self._skip = None, True
            self._break(501, "The Transfer-Encoding is not known here; expected 'chunked' alone.")
            return
        if self.parser.should_upgrade():
            self._skip = True
            return
        self.incoming = None
        if self.parser.get_method() != b"POST" or not self._begin():
            self._begin_asgi()
        if len(self.turns) > MAX_PIPELINED:
            self.flow.pause_reading()

    def on_body(self, body: bytes) -> None:
        if self._skip:
            return
        self._body += len(body)
        exchange = self.incoming
        if exchange is None:
            super().on_body(body)
        elif exchange.refusal is None:
            try:
                exchange.take(body)
            except ModelyardError as error:
                self._refuse_now(exchange, error)

    def on_message_complete(self) -> None:
        if self._skip:
            return
        self._in_head = self._between = True
        self._completed += 1
        exchange = self.incoming
        if exchange is None:
            super().on_message_complete()
            return
        self.incoming = None
        exchange.whole = True
        self._go(exchange)

    # Inference requests

    def _begin(self) -> bool:
        """Begin an exchange if the request is a call; False where it is ASGI's."""
        gateway = self.gateway
        credentials, head, special = heads.read(self.headers, gateway.headers, gateway.body_limit)
        began = time.time()
        exchange = Exchange(gateway, self, self.url, credentials, began, self.now())
        refusal: ModelyardError | None = None
        try:
            exchange.admission = gateway.admit(self.url, credentials, began)
            if exchange.admission is None:
                return False
        except ModelyardError as error:
            refusal = error
        exchange.streams = self.parser.get_http_version() == "1.1"
        exchange.keep_alive = self.parser.should_keep_alive() and exchange.streams
        self._last = not exchange.keep_alive
        exchange.id = head["x-request-id"] = gateway.call_id(special.get(b"x-request-id"))
        exchange.head = head
        if "traceparent" in head or gateway.traces.sample:
            exchange.trace = gateway.traces.begin(head)
        self.incoming = exchange
        self.turns.append(exchange)
        if refusal is not None and is_stale(refusal, credentials) and gateway.may_wait(refusal, exchange):
            self._wait(exchange, special, refusal)
        elif refusal is not None or special.keys() - heads.PLAIN or int(special.get(b"content-length", b"0")) > gateway.small:
            self._judge(exchange, special, refusal)
        elif exchange.keep_alive and exchange.trace is None:
            self._plain = exchange
        return True

    def _repeat(self, known: Known, data: bytes) -> bool:
        """Begin an exchange whose head is the same as before; parsing it again would say the same. False where it must be
        parsed after all."""
        if not self._between or self._last or len(self.turns) >= MAX_PIPELINED:
            return False
        body = known.body(data)
        if body is None:
            return False
        began = time.time()
        try:
            admission = self.gateway.admit(known.url, known.credentials, began)
        except ModelyardError:
            return False
        exchange = Exchange(self.gateway, self, known.url, known.credentials, began, self.now())
        exchange.admission = admission
        exchange.id = self.gateway.call_id(known.call_id)
        exchange.head = {**known.forwarded, "x-request-id": exchange.id}
        if self.gateway.traces.sample:
            exchange.trace = self.gateway.traces.begin(exchange.head)
        exchange.body, exchange.whole = body, True
        self.turns.append(exchange)
        exchange.send()
        return True

    def _remember(self, data: bytes) -> None:
        """`data` was one whole request."""
        exchange, start = self._plain, len(data) - self._body
        if exchange is not None and data.find(heads.END) + len(heads.END) == start:  # nothing follows its body
            told = dict(self.headers).get(b"x-request-id")
            forwarded = {name: value for name, value in exchange.head.items() if name != "x-request-id"}
            self._known = Known.of(data[:start], exchange.url, exchange.credentials, forwarded, told)

    def _wait(self, exchange: Exchange, special: Mapping[bytes, bytes], refusal: ModelyardError | None) -> None:
        """Hold a request until the gateway knows more, or a deployment is awake."""
        self._held += 1
        self.flow.pause_reading()
        self.gateway.wait(refusal, exchange, lambda seen: self._look_again(exchange, special, seen))

    def _look_again(self, exchange: Exchange, special: Mapping[bytes, bytes], seen: bool) -> None:
        """The memory is now what the database was after this request came, if that was `seen`."""
        self._held -= 1
        self.flow.resume_reading()
        if self.transport.is_closing() or exchange.refusal is not None:
            return
        refusal: ModelyardError | None = None
        before = exchange.admission
        try:
            exchange.admission = self.gateway.admit(exchange.url, exchange.credentials, time.time(), before is not None)
        except ModelyardError as error:
            if self.gateway.may_wake(error, exchange):
                self._wait(exchange, special, error)
                return
            taken = before is not None and before.group.newest.up and isinstance(error, NotFound)
            if not taken:  # by who would have taken it before the routes changed
                refusal = self.gateway.after_look(error, exchange.credentials, seen)
        self._judge(exchange, special, refusal)
        if exchange.whole:
            self._go(exchange)

    def _go(self, exchange: Exchange) -> None:
        """Send or refuse a whole request, once it is known which."""
        if exchange.refusal is not None:
            exchange.refuse(exchange.refusal)
        elif exchange.admission is not None:
            if exchange.in_pieces and exchange.admission.group.newest.gone:  # the routes changed while the body came
                exchange.in_pieces = False
                self._wait(exchange, {}, None)
            else:
                exchange.send()

    def _judge(self, exchange: Exchange, special: Mapping[bytes, bytes], refusal: ModelyardError | None) -> None:
        """What the headers say of the body. A refusal is answered when a small body is whole, else at once."""
        expects = special.get(b"expect", b"").lower() == b"100-continue"
        length, chunked = int(special.get(b"content-length", b"0")), b"transfer-encoding" in special
        if refusal is None:
            try:
                exchange.expect(length)
            except ModelyardError as error:
                refusal = error
        if refusal is None:
            if expects and self.turns[0] is exchange and not exchange.whole:
                self.transport.write(heads.CONTINUE)
        elif exchange.whole or (length <= SMALL and not expects and not chunked and not isinstance(refusal, TooLarge)):
            exchange.refusal = refusal
        else:
            self._refuse_now(exchange, refusal)

    def _refuse_now(self, exchange: Exchange, error: ModelyardError) -> None:
        """Refuse before the body is whole; the connection ends, because its next bytes are still that body."""
        exchange.refusal, exchange.keep_alive = error, False
        self._last = self._skip = True
        self.incoming = None
        exchange.refuse(error)

    # What cannot be parsed

    def _decline_upgrade(self, rest: bytes) -> None:
        """No upgrade is offered here, so the request is served as if it had not asked; llhttp stopped at it."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._break(400, "This is no proxy.")
            return
        lines = heads.without_upgrade(self.headers, self.parser.should_keep_alive())
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, self.url, version, lines, rest))

    def _break(self, status: int, message: str) -> None:
        """The connection's bytes make no sense any more: answer so in turn, and end it."""
        if self._dropping or self.transport.is_closing():
            return
        self._dropping = self._last = True
        exchange, self.incoming = self.incoming, None
        if exchange is None:
            if self._uploads() and self.cycle.response_started:
                self.transport.abort()
                return
            if self._uploads():
                self.turns.pop()
                self.cycle.disconnected = True  # so hears its app
                self.cycle.message_event.set()
            exchange = Exchange(self.gateway, self, self.url, (), time.time(), self.now())
            exchange.id = self.gateway.call_id(None)
            self.turns.append(exchange)
        exchange.refusal, exchange.keep_alive = Invalid(message), False
        exchange.drop()
        self.gateway.metrics.refuse(status)
        self.answer(exchange, status, None, self.gateway.door(exchange.url).error(exchange.refusal))


_VERSIONS = frozenset({"1.0", "1.1"})
