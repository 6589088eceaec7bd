"""The gRPC port of a gateway: the Open Inference Protocol's service in front of the same access, routes and meter as HTTP.

A call is an `Exchange` like any other; this is its connection. Messages go through as bytes. The service is declared as one of
streams, which look the same on the wire, because then the key is judged before the message is read. `serve` loads this where
the setting `grpc` is on, and nothing else here knows gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import msgspec

from modelyard import __version__
from modelyard.errors import Asleep, Conflict, Internal, Invalid, ModelyardError, TimedOut, Unavailable
from modelyard.metrics import UNEXPECTED
from modelyard.serving.admission import Credentials
from modelyard.serving.exchange import Exchange
from modelyard.serving.front import described, fresh
from modelyard.serving.gateway import CREDENTIALS, Gateway, check_ready
from modelyard.serving.grpc import wire
from modelyard.serving.grpc.door import target
from modelyard.serving.heads import FORWARDED
from modelyard.serving.types import Route
from modelyard.telemetry import asked_by, log
from modelyard.tenancy import door as tenancy_door

SERVICE = "inference.GRPCInferenceService"
_log = log(__name__)
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_MOST = 8192  # calls at once
_STREAMS = 1024  # of them on one connection
_IDLE_MS = 300_000  # of a connection without a call
_SOON = 1.0  # seconds in which a message is whole, or slow
_SLOW = 8  # slow ones at a time: each may be as large as any
_IDENTITY = 1  # compression algorithms as bits: none alone, for what a compressed message grows to nobody knows
# Any context and metadata of grpc.aio, which has no types of its own.
Context = Any


class Refused(Exception):
    """How a call ends without an answer."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class Server:
    """Runs on the gateway's loop."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._slow: set[_Reading] = set()
        options = [
            ("grpc.max_receive_message_length", gateway.body_limit),
            ("grpc.max_send_message_length", -1),
            ("grpc.compression_enabled_algorithms_bitset", _IDENTITY),
            ("grpc.max_concurrent_streams", _STREAMS),
            ("grpc.max_connection_idle_ms", _IDLE_MS),
            ("grpc.http2.bdp_probe", 0),  # the window for what nobody asked to read yet stays small
            ("grpc.so_reuseport", 1),
        ]
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=_MOST)
        methods = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
        }
        handlers = {name: grpc.stream_unary_rpc_method_handler(self._handler(method)) for name, method in methods.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def start(self, host: str, port: int) -> None:
        """Listen, without TLS. Other gateways may listen on the same port. Raises `Conflict` where it is taken."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise Conflict(f"Port {port} of {host}, for gRPC, cannot be had.") from error
        assert bound == port
        await self._server.start()

    async def stop(self, patience: float) -> None:
        """Take no more calls, and give those under way so many seconds."""
        await self._server.stop(patience)

    def _handler(self, method: Callable[[Context], Awaitable[bytes]]) -> Callable[[Any, Context], Awaitable[bytes]]:
        """What is registered for a method: its answer, or how it was refused."""

        async def handle(_: Any, context: Context) -> bytes:
            try:
                return await method(context)
            except Refused as error:
                refused = error
            except ModelyardError as error:
                status = tenancy_door.status(error)
                self._gateway.metrics.refuse(status)
                refused = Refused(status, error.message, tenancy_door.headers(error))
            except Exception as error:  # noqa: BLE001 - the edge of a call: gRPC would tell the client what was raised
                UNEXPECTED.labels("gateway").inc()
                said = {name.decode(): value.decode() for name, value in _metadata(context)}
                _log.exception("call by gRPC failed", **asked_by(said), error=repr(error)[:500])
                refused = Refused(500, Internal().message, {})
            code = _CODES.get(refused.status, grpc.StatusCode.INTERNAL)
            trailing = tuple((name.lower(), value) for name, value in refused.headers.items())
            await context.abort(code, refused.message, trailing)
            raise AssertionError("abort raises")

        return handle

    # The service

    async def _live(self, _: Context) -> bytes:
        return wire.flag(True)

    async def _ready(self, _: Context) -> bytes:
        try:
            self._gateway.check_open()
        except Unavailable:
            return wire.flag(False)
        return wire.flag(True)

    async def _server_metadata(self, context: Context) -> bytes:
        await self._admitted(context)
        return wire.server("modelyard", __version__, ())

    async def _model_ready(self, context: Context) -> bytes:
        route = await self._route(context)
        try:
            with contextlib.suppress(Asleep):  # it is as good as ready: a call waits until it is
                check_ready(route)
        except Unavailable:
            return wire.flag(False)
        return wire.flag(True)

    async def _model_metadata(self, context: Context) -> bytes:
        route = await self._route(context)
        if not route.metadata:  # no replica has told its tensors yet
            check_ready(route)
        return wire.model(described(route))

    async def _infer(self, context: Context) -> bytes:
        gateway, began, started = self._gateway, time.time(), time.monotonic()
        sent = dict(_metadata(context))
        head = {"traceparent": sent[b"traceparent"][:FORWARDED].decode()} if b"traceparent" in sent else {}
        trace = gateway.traces.begin(head) if head or gateway.traces.sample else None
        if trace is not None:
            await context.send_initial_metadata((("traceparent", trace.header),))
        connection = _Connection()
        try:
            exchange = await self._exchange(context, connection, began, started)
        except ModelyardError as error:
            if trace is not None:
                about = {"status": tenancy_door.status(error), "door": "grpc"}
                gateway.traces.add(trace, began, time.monotonic() - started, 0.0, None, about)
            raise
        left = context.time_remaining()
        if left is not None:  # a caller with less patience than we have is one that asked longer ago
            exchange.began = min(began, time.time() + left - gateway.settings.call_timeout)
        exchange.streams = False
        exchange.id = gateway.call_id(sent.get(b"x-request-id"))
        exchange.head = {**head, "x-request-id": exchange.id}
        exchange.trace = trace
        exchange.send()
        try:
            return await connection.answered
        except asyncio.CancelledError:  # by the client, or its deadline
            exchange.abandon()
            raise
        finally:
            exchange.let_go()

    async def _exchange(self, context: Context, connection: _Connection, began: float, started: float) -> Exchange:
        """What is asked, once it may be. Its message takes room from when it is here."""
        gateway, credentials = self._gateway, await self._admitted(context)
        message = await self._message(context)
        url = target(*wire.names(message))
        exchange = Exchange(gateway, connection, url, credentials, began, started)
        try:
            exchange.expect(len(message))
            exchange.take(message)
            exchange.admission = await fresh(gateway, credentials, lambda: gateway.admit(url, credentials, time.time()))
        except BaseException:
            exchange.drop()
            raise
        return exchange

    async def _route(self, context: Context) -> Route:
        credentials = await self._admitted(context)
        principal = self._gateway.principal(credentials)
        name, version = wire.names(await self._message(context))
        return await fresh(self._gateway, credentials, self._gateway.route, principal.project, name, version or None)

    async def _admitted(self, context: Context) -> Credentials:
        """The call's credentials, once they are known to be somebody's."""
        credentials = tuple(pair for pair in _metadata(context) if pair[0] in CREDENTIALS)
        await fresh(self._gateway, credentials, self._gateway.principal, credentials)
        return credentials

    async def _message(self, context: Context) -> bytes:
        reading = _Reading(self._slow, self._gateway.settings.call_timeout)
        try:
            async with reading.time:
                message = await context.read()
        except TimeoutError as error:
            raise reading.refusal from error
        finally:
            reading.end()
        if not isinstance(message, bytes):
            raise Invalid("The call has no message.")
        return message


class _Reading:
    """A message that is being read. How much of it is there gRPC does not tell, so only some may be slow at a time, whatever
    their size; they take none of the room for what is whole. `refusal` is why `time` ended."""

    def __init__(self, slow: set[_Reading], patience: float) -> None:
        self._slow = slow
        self.time = asyncio.timeout(patience)
        self.refusal: ModelyardError = TimedOut(f"The request was not whole within {patience:g} seconds.")
        self._timer = asyncio.get_running_loop().call_later(min(_SOON, patience / 2), self._note)

    def _note(self) -> None:
        if len(self._slow) >= _SLOW:
            self.refusal = Unavailable("Too many slow requests are under way; try again shortly.")
            self.time.reschedule(0.0)
        else:
            self._slow.add(self)

    def end(self) -> None:
        self._timer.cancel()
        self._slow.discard(self)


class _Connection:
    """The connection of one call: its answer is awaited."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.now = time.monotonic

    def answer(self, exchange: Exchange, status: int, head: Mapping[str, str] | None, body: bytes | bytearray) -> None:
        if self.answered.done():  # it was cancelled
            return
        if status == 200:
            self.answered.set_result(bytes(body))
        else:
            self.answered.set_exception(Refused(status, msgspec.json.decode(body)["error"], head or {}))

    def pass_on(self, exchange: Exchange, head: Mapping[str, str] | None, data: bytes, last: bool) -> None:
        raise NotImplementedError("a call by gRPC is answered whole")


def _metadata(context: Context) -> list[tuple[bytes, bytes]]:
    """What came with a call besides its message; binary values left out."""
    return [(name.encode(), value.encode()) for name, value in context.invocation_metadata() or () if isinstance(value, str)]
