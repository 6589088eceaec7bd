"""One inference request on an HTTP connection, from its head to its answer.

`http` makes one per request and gives it to the gateway; the router tells it what comes back. It counts the call before the
answer is written (a stream's before its end is), exactly once, whatever happens: answered, failed, late, or its client gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from modelyard.errors import Asleep, ModelyardError, Unavailable, from_wire
from modelyard.serving.admission import Admission, Credentials
from modelyard.serving.cache import Cache, Key, key_of
from modelyard.serving.coding import EVENTS
from modelyard.serving.frames import Fault, Head, Usage
from modelyard.serving.gateway import SMALL, Gateway, too_large, too_much
from modelyard.serving.router import Link, Underway
from modelyard.serving.traces import Trace
from modelyard.tenancy import door as tenancy_door

CLIENT_GONE = 499


class Connection(Protocol):
    """What an exchange needs of its HTTP connection."""

    def now(self) -> float:
        """A clock that never jumps, in seconds."""
        ...

    def answer(self, exchange: Exchange, status: int, head: Mapping[str, str] | None, body: bytes | bytearray) -> None:
        """Write the answer when it is this exchange's turn. `head` None: plain JSON."""
        ...

    def pass_on(self, exchange: Exchange, head: Mapping[str, str] | None, data: bytes, last: bool) -> None:
        """Write the next of an answer that is still being made, when it is this exchange's turn. `head`: with the first."""
        ...


class Exchange(Underway):
    """`began` is a time.time(), `started` the connection's clock, both at the request's head."""

    admission: Admission | None = None
    trace: Trace | None = None  # where it is sampled
    refusal: ModelyardError | None = None
    response: bytes | bytearray | None = None
    link: Link | None = None
    body: bytes | bytearray = b""
    keep_alive = True
    whole = False
    in_pieces = False  # the body was not whole with the head
    streams = True  # parts may be passed on before the end
    leave: Callable[[], None] | None = None  # while it is held for what sleeps
    open = False  # more follows what is in `response`
    held = 0  # bytes of room that the answer takes beyond `SMALL`
    _size, _reserved, _passed = 0, SMALL, 0
    _answered = _gone = _passing = False
    _answer_head: Head = None
    _answer: bytes | bytearray = b""
    _key: Key | None = None

    def __init__(
        self, gateway: Gateway, connection: Connection, url: bytes, credentials: Credentials, began: float, started: float
    ) -> None:
        self._gateway, self._connection = gateway, connection
        self.url, self.credentials, self.began, self.started = url, credentials, began, started
        self.head: dict[str, str] = {}
        self.id = ""

    def expect(self, size: int) -> None:
        """The body will have `size` bytes. Raises `TooLarge`, or `Unavailable` where bodies already take all there is."""
        if size > self._gateway.body_limit:
            raise too_large(self._gateway.body_limit)
        if size > self._reserved:
            self._gateway.reserve(size - self._reserved)
            self._reserved = size

    def take(self, data: bytes) -> None:
        """The next bytes of the body. Raises as `expect`."""
        self._size += len(data)
        limit = self._gateway.body_limit
        if self._size > limit:
            raise too_large(limit)
        if self._size > self._reserved:
            self.expect(min(2 * self._size, limit))
        if not self.body:
            self.body = data
        elif isinstance(self.body, bytearray):
            self.body += data
        else:
            self.body = bytearray(self.body) + data

    def drop(self) -> None:
        """The body is of no more use."""
        self.body = b""
        if self._reserved > SMALL:
            self._gateway.release(self._reserved - SMALL)
            self._reserved = SMALL

    def send(self) -> None:
        """Give the whole request to a replica, where its answer is not known already."""
        admission = self.admission
        assert admission is not None
        if self.trace is not None:
            self.trace.sent = self._connection.now()
        if admission.cache is not None and self._known(admission, admission.cache):
            return
        self._gateway.send(self, admission, self.head, self.body, self.began)

    def _known(self, admission: Admission, cache: Cache) -> bool:
        """Answer from memory where the same was asked before. Such a call is counted; it used nothing."""
        route, envelope = admission.route, admission.envelope
        self._key = key_of(route.project, route.deployment, route.identity, envelope.door, envelope.verb, self.head, self.body)
        kept = cache.get(self._key)
        if kept is None:
            admission.cell.misses += 1
            return False
        admission.cell.hits += 1
        seconds = self._connection.now() - self.started
        try:
            self._hold(len(kept.body))
        except ModelyardError as error:
            self.refuse(error)
            return True
        self._answered = True
        self._gateway.settle(admission, Usage(), 200, len(self.body), len(kept.body), seconds, compared=False)
        if self.trace is not None:
            self.trace.sent = 0.0
            self._traced(self.trace, 200, seconds)
        self._connection.answer(self, 200, kept.head, kept.body)
        self.drop()
        return True

    def refuse(self, error: ModelyardError) -> None:
        """Answer a request that never became a call."""
        self._answered = True
        self.drop()
        status = tenancy_door.status(error)
        self._gateway.metrics.refuse(status)
        if self.trace is not None:
            self._traced(self.trace, status, self._connection.now() - self.started)
        door = self._gateway.door(self.url)
        self._connection.answer(self, status, tenancy_door.headers(error), door.error(error))

    def abandon(self) -> None:
        """The client is gone. A call that was sent is cancelled and still counted when the replica has said what it used."""
        self._gone = True
        if self.leave is not None:
            self.leave()
        if self.link is not None and not self._answered:
            self.link.cancel(self)
        else:
            self.drop()
        self.let_go()

    def let_go(self) -> None:
        """The answer is written, or of no more use."""
        self._answer = b""
        if self.held:
            self._gateway.release(self.held)
            self.held = 0

    # Underway

    def part(self, data: bytes, head: Head) -> None:
        if head is not None:
            head = self._begin(head)
        if self._passing:
            self._pass_on(head, data)
        elif not self._answer:
            self._answer = data
        else:
            self._add(data)

    def _begin(self, head: dict[str, str]) -> Head:
        """The answer's head; None for a second one: a replica runs users' code, and would end the message where it likes."""
        if self._answer_head is not None or self._answer:
            return None
        self._answer_head = head
        self._passing = self.streams and head.get("content-type") == EVENTS
        return head

    def _add(self, data: bytes) -> None:
        """The next bytes of an answer that is no longer small. One that is too large, or finds no room, is an error at once."""
        if self._answered or self._gone:
            return
        try:
            self._hold(len(self._answer) + len(data))
        except ModelyardError as error:
            assert self.link is not None
            self.link.cancel(self)
            self.late(Fault(error.code, error.message))
            return
        if not isinstance(self._answer, bytearray):
            self._answer = bytearray(self._answer)
        self._answer += data

    def _hold(self, size: int) -> None:
        """The answer has `size` bytes by now. Raises `Internal`, or `Unavailable` where others take all there is."""
        if size <= SMALL + self.held:
            return
        limit = self._gateway.body_limit
        if size > limit:
            raise too_much(limit)
        more = min(2 * size, limit) - SMALL - self.held
        self._gateway.reserve(more)
        self.held += more

    def restart(self) -> bool:
        self._answer_head = None
        self.let_go()
        return not self._gone and not self._answered and not self._passing

    def ended(self, usage: Usage, error: Fault | None) -> None:
        if self._answered:  # as late
            self._count(usage, 0, 0, calls=0)
        elif error is not None:
            self._fail(usage, error)
        else:
            self._count(usage, CLIENT_GONE if self._gone else 200, self._passed or len(self._answer))
            if self._passing:
                self._pass_on(None, b"", last=True)
            else:
                self._connection.answer(self, 200, self._answer_head, self._answer)
                if not self._gone:  # else what came after that is a fragment
                    self._show()
                self._answer = b""
        self.drop()
        if len(self.frame.data) > SMALL:  # its room is given back, and its turn may be long in coming
            self.frame = msgspec.structs.replace(self.frame, data=b"")

    def _show(self) -> None:
        """Keep the answer, and show it to the release on trial, where the deployment wants that."""
        admission = self.admission
        assert admission is not None
        if admission.cache is not None and self._key is not None:
            admission.cache.put(self._key, self._answer_head, bytes(self._answer))
        if admission.shadow is not None:
            self._gateway.mirror(self, admission, self._answer, self._answer_head)

    def late(self, error: Fault) -> None:
        if not self._answered:
            self._fail(Usage(), error)
            self.drop()
            self.frame = msgspec.structs.replace(self.frame, data=b"")  # `ended` may be long in coming

    def _fail(self, usage: Usage, fault: Fault) -> None:
        assert self.admission is not None
        error = from_wire(fault.code, fault.message)
        status = tenancy_door.status(error)
        body = self.admission.door.error(error)
        self._count(usage, CLIENT_GONE if self._gone else status, self._passed + len(body))
        if self._passing:  # the status is written; what went wrong is the last event
            self._pass_on(None, b"data: %b\n\n" % body, last=True)
        else:
            self._connection.answer(self, status, tenancy_door.headers(error), body)
        self._answered = True
        self.let_go()

    def _pass_on(self, head: Mapping[str, str] | None, data: bytes, last: bool = False) -> None:
        """Give the client a piece of the answer that it can use before the end."""
        if not self._gone and not self._answered:
            self._passed += len(data)
            self._connection.pass_on(self, head, data, last)

    def _count(self, usage: Usage, status: int, size: int, calls: int = 1) -> None:
        assert self.admission is not None
        seconds = self._connection.now() - self.started
        received = len(self.frame.data) if calls else 0
        self._gateway.settle(self.admission, usage, status, received, size, seconds, calls)
        if self.trace is not None and calls:
            self._traced(self.trace, status, seconds)

    def _traced(self, trace: Trace, status: int, seconds: float) -> None:
        """Tell the spans of a sampled call."""
        about: dict[str, str | int] = {"status": status, "call": self.id}
        if self.admission is not None:
            route, door = self.admission.route, self.admission.envelope.door
            about |= {"project": route.project, "deployment": route.deployment, "version": self.admission.version, "door": door}
        sent = trace.sent - self.started if trace.sent else 0.0
        self._gateway.traces.add(trace, time.time() - seconds, seconds, sent, self.times, about)


def is_stale(error: ModelyardError, credentials: Credentials) -> bool:
    """Whether a refusal may come from a memory that is behind the database: then it is worth a look."""
    return error.code in _STALE and bool(credentials)


_STALE = {"invalid_api_key", "not_found", Unavailable.code, Asleep.code}
