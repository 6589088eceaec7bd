"""Everything that is not the gateway's own goes to control, over its Unix socket, as it came.

Bodies stream both ways, and the request's target goes byte for byte: no '..' is resolved here, lest the two ends disagree about
what was asked. Headers that concern one connection stay on it; who asked from where is told by us and never by the client.
Control checks keys itself: the relay adds no right and takes none.

A client that dawdles must not hold what others need. No connection to control is opened before a small body is whole; long
bodies, which stream, have connections of their own, and so has the watch.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx
import msgspec

from modelyard.errors import Invalid, ModelyardError, Unavailable
from modelyard.serving.admission import Credentials
from modelyard.serving.front import Message, Receive, Send, respond
from modelyard.serving.gateway import SMALL
from modelyard.telemetry import log
from modelyard.tenancy import door

_log = log(__name__)
# Of one connection, or ours to say.
_NOT_PASSED = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
        b"forwarded",
    }
)
# What control judges a request by: never of one connection, whatever the header Connection says.
_JUDGED_BY = frozenset(
    {b"authorization", b"x-api-key", b"host", b"origin", b"content-length", b"content-type", b"idempotency-key"}
)
# A followed job's events may be silent for as long as it likes.
_TIMEOUT = httpx.Timeout(None, connect=5.0, pool=5.0)
_WATCH = 0.5  # seconds between two looks whether control answers
_PATIENCE = 3.0  # seconds it has for that: it may be busy, or stopped
_GLANCE = 0.5  # seconds it has to tell its metrics: who scrapes waits for the gateway's
_LIMITS = httpx.Limits(max_connections=200, max_keepalive_connections=20)  # of each of the three kinds


class Relay:
    """An ASGI app in front of the one that listens on the Unix socket `socket`."""

    def __init__(self, socket: Path) -> None:
        self._short, self._long, self._own = _client(socket), _client(socket), _client(socket)
        self.answers = False
        self._seen = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since control answered; since the beginning before it ever did."""
        return time.monotonic() - self._seen

    async def watch(self) -> None:
        """Keep `answers` true to whether control does; runs until it is cancelled."""
        while True:
            began = time.monotonic()
            self.answers = await self._asked()
            if self.answers:
                self._seen = began
            await asyncio.sleep(_WATCH if self.answers else _WATCH / 10)

    async def _asked(self) -> bool:
        try:
            async with asyncio.timeout(_PATIENCE):
                return (await self._own.get("http://localhost/healthz")).is_success
        except (httpx.TransportError, TimeoutError):
            return False

    async def metrics(self, credentials: Credentials) -> bytes | None:
        """Control's own metrics as it shows them to whoever has these credentials; None where it does not answer soon."""
        try:
            async with asyncio.timeout(_GLANCE):
                answer = await self._own.get("http://localhost/metrics", headers=list(credentials))
        except (httpx.TransportError, TimeoutError):
            return None
        return answer.content if answer.is_success else None

    async def wake(self, deployment: str, credentials: Credentials) -> None:
        """Have control wake a deployment for whoever has these credentials; where it does not answer, a later call asks."""
        path = f"/api/deployments/{quote(deployment, safe='')}/wake"
        with contextlib.suppress(httpx.TransportError):
            await self._own.post(f"http://localhost{path}", headers=list(credentials))

    async def close(self) -> None:
        for client in (self._short, self._long, self._own):
            await client.aclose()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        request = _Request(receive)
        if _has_body(scope):
            await request.begin()
        if request.gone:
            return
        client = self._long if request.pending else self._short
        outgoing = client.build_request(
            scope["method"],
            "http://control",
            headers=_passed(scope),
            content=request.body() if _has_body(scope) else None,
            extensions={"target": _target(scope)},
        )
        try:
            response = await client.send(outgoing, stream=True)
        except httpx.LocalProtocolError:
            await _refuse(scope, send, Invalid("The request's headers are not valid HTTP/1.1."))
            return
        except httpx.TransportError as error:
            if not request.gone:
                _log.warning("control not reached", error=type(error).__name__)
                await _refuse(
                    scope,
                    send,
                    Unavailable("The control process does not answer; deployments do for a while. Try again shortly."),
                )
            return
        try:
            await _pass_back(scope, response, request, send)
        except httpx.TransportError as error:
            # The answer stays without its end, and the server cuts the connection: its client sees that something is missing.
            _log.warning("control was lost while it answered", error=type(error).__name__)
        finally:
            await response.aclose()


class _Request:
    """A request's body as it arrives, whether more of it is `pending`, and whether its client is `gone`."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._begun = b""
        self.pending = self.gone = False

    async def begin(self) -> None:
        """Keep what comes until the body is whole, or too long to be kept."""
        self.pending = True
        while self.pending and not self.gone and len(self._begun) <= SMALL:
            self._begun += await self._next()

    async def body(self) -> AsyncIterator[bytes]:
        if self._begun:
            yield self._begun
        while self.pending:
            piece = await self._next()
            if self.gone:
                raise httpx.ReadError("the client went away")
            if piece:
                yield piece

    async def _next(self) -> bytes:
        message = await self._receive()
        self.gone = message["type"] == "http.disconnect"
        self.pending = message.get("more_body", False)
        piece: bytes = message.get("body", b"")
        return piece

    async def left(self) -> None:
        """Return when the client goes away; for after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _client(socket: Path) -> httpx.AsyncClient:
    """No environment (proxies), no redirects, no cookies: what came is what goes."""
    transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=_LIMITS, retries=0)
    return httpx.AsyncClient(transport=transport, timeout=_TIMEOUT, trust_env=False, follow_redirects=False)


def _target(scope: Message) -> bytes:
    query: bytes = scope["query_string"]
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path


def _has_body(scope: Message) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])


def _passed(scope: Message) -> list[tuple[bytes, bytes]]:
    """The request's headers, without those of its connection and without any tale of who sent it."""
    named = {token.strip().lower() for name, value in scope["headers"] if name == b"connection" for token in value.split(b",")}
    kept = [
        (name, value)
        for name, value in scope["headers"]
        if name not in _NOT_PASSED and (name not in named or name in _JUDGED_BY) and not name.startswith(b"x-forwarded-")
    ]
    client = scope.get("client")
    kept += [(b"x-forwarded-for", str(client[0] if client else "").encode()), (b"x-forwarded-proto", scope["scheme"].encode())]
    return kept


async def _pass_back(scope: Message, response: httpx.Response, request: _Request, send: Send) -> None:
    """Stream the answer; stop asking for it when the client goes away."""
    headers = [(n.lower(), v) for n, v in response.headers.raw if n.lower() not in _NOT_PASSED]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    copying = asyncio.ensure_future(_copy(response, send))
    leaving = asyncio.ensure_future(request.left())
    try:
        await asyncio.wait([copying, leaving], return_when=asyncio.FIRST_COMPLETED)
        if copying.done():
            copying.result()
    finally:
        for task in (copying, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _copy(response: httpx.Response, send: Send) -> None:
    async for piece in response.aiter_raw():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _refuse(scope: Message, send: Send, error: ModelyardError) -> None:
    body = msgspec.json.encode(door.body(error))
    await respond(scope, send, door.status(error), body, "application/json", door.headers(error))
