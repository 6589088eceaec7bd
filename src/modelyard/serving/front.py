"""The gateway's own small routes as ASGI — the protocol's metadata, health, metrics — and the relay of every other path.

One table says for each path what answers it and whether it needs a key; what is not in it goes to control, which has its own
table and the same access function.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from modelyard import __version__
from modelyard.errors import Invalid, ModelyardError, NotFound
from modelyard.serving.exchange import is_stale
from modelyard.serving.gateway import CREDENTIALS, Credentials, Gateway, check_ready
from modelyard.serving.metrics import exposition
from modelyard.serving.types import DeploymentState, Route
from modelyard.tenancy import door
from modelyard.tenancy.types import Principal, Scope

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
P = ParamSpec("P")
T = TypeVar("T")
App = Callable[[Message, Receive, Send], Awaitable[None]]
Told = Callable[[Credentials], Awaitable[bytes | None]]

EXTENSIONS = ("binary_tensor_data",)
_MODEL = re.compile(rb"/v2/models/([^/]+)(?:/versions/([^/]+))?(/ready|/infer)?")
_JSON = "application/json"
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_STATES = {DeploymentState.ready: "READY", DeploymentState.pending: "LOADING", DeploymentState.failed: "UNAVAILABLE"}


class NotAllowed(Exception):
    """HTTP's own complaint: this path does not answer that method."""


class Front:
    """The ASGI app of a gateway. `relay` answers what this does not; `control` tells whether control answers, and `told` what
    metrics it shows to whom."""

    def __init__(
        self, gateway: Gateway, relay: App, control: Callable[[], bool] = lambda: True, told: Told | None = None
    ) -> None:
        self._gateway, self._relay, self._control, self._told = gateway, relay, control, told
        self._open: dict[bytes, Callable[[], Any]] = {
            b"/healthz": lambda: {"status": "ok"},
            b"/readyz": self._ready,
            b"/v2/health/live": lambda: {"live": True},
            b"/v2/health/ready": self._ready,
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path: bytes = scope.get("raw_path") or b""
        if scope["type"] != "http" or not (path in self._open or path in (b"/metrics", b"/v2") or path.startswith(b"/v2/")):
            await self._relay(scope, receive, send)
            return
        try:
            body = await self._answer(scope, path)
        except NotAllowed as error:
            await respond(scope, send, 405, msgspec.json.encode(_error(path, Invalid(str(error)))), _JSON, {})
        except ModelyardError as error:
            body = msgspec.json.encode(_error(path, error))
            await respond(scope, send, door.status(error), body, _JSON, door.headers(error))
        else:
            text = isinstance(body, bytes)
            await respond(scope, send, 200, body if text else msgspec.json.encode(body), _TEXT if text else _JSON, {})

    async def _answer(self, scope: Message, path: bytes) -> Any:
        method, reads = scope["method"], scope["method"] in ("GET", "HEAD")
        if path in self._open:
            _allow(reads, "GET")
            return self._open[path]()
        principal = await self._principal(scope)
        if path == b"/metrics":
            _allow(reads, "GET")
            return await self._metrics(scope, principal)
        if path == b"/v2":
            _allow(reads, "GET")
            return {"name": "modelyard", "version": __version__, "extensions": EXTENSIONS}
        if path == b"/v2/repository/index":
            _allow(method == "POST", "POST")
            return [_indexed(route) for route in self._gateway.routes(principal.project)]
        match = _MODEL.fullmatch(path)
        if match is None:
            raise NotFound(f"There is nothing at {path[:100].decode('ascii', 'replace')}.")
        name, version, what = match.groups()
        _allow(reads and what != b"/infer", "POST" if what == b"/infer" else "GET")
        route = await self._route(principal, _segment(name), None if version is None else _segment(version))
        if what == b"/ready":
            check_ready(route)
            return {"name": route.deployment, "ready": True}
        if not route.metadata:  # no replica has told its tensors yet
            check_ready(route)
        return described(route)

    def _ready(self) -> dict[str, str]:
        """Ready is who answers calls: within the grace neither control nor the database must be there. It is told."""
        self._gateway.check_open()
        seen = {"control": self._control(), "database": self._gateway.sees_database}
        return {"status": "ready", **{what: "ok" if there else "gone" for what, there in seen.items()}}

    async def _metrics(self, scope: Message, principal: Principal) -> bytes:
        """This process's metrics and control's, and those of the calls of the caller's project; an administrator of 'default'
        sees all."""
        everything = principal.scope >= Scope.admin and principal.project == "default"
        told = await self._told(_credentials(scope)) if self._told else None
        return exposition(self._gateway.metrics.families(None if everything else principal.project), told)

    async def _principal(self, scope: Message) -> Principal:
        credentials = _credentials(scope)
        return await fresh(self._gateway, credentials, self._gateway.principal, credentials)

    async def _route(self, principal: Principal, name: str, version: str | None) -> Route:
        return await fresh(self._gateway, ((b"", b""),), self._gateway.route, principal.project, name, version)


async def fresh(gateway: Gateway, credentials: Credentials, look: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `look` finds; where that may be out of date, what it finds after a look at the database."""
    try:
        return look(*args, **kwargs)
    except ModelyardError as error:
        if not is_stale(error, credentials):
            raise
    looked: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    gateway.refresh(lambda seen: None if looked.done() else looked.set_result(seen))
    seen = await looked
    try:
        return look(*args, **kwargs)
    except ModelyardError as error:
        raise gateway.after_look(error, credentials, seen) from None


async def respond(scope: Message, send: Send, status: int, body: bytes, media: str, headers: dict[str, str]) -> None:
    """A whole answer; to HEAD without its body."""
    all_headers = [(b"content-type", media.encode()), (b"content-length", str(len(body)).encode())]
    all_headers += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _credentials(scope: Message) -> Credentials:
    return tuple((name, value) for name, value in scope["headers"] if name in CREDENTIALS)


def _error(path: bytes, error: ModelyardError) -> dict[str, Any]:
    return {"error": error.message} if path.startswith(b"/v2") else door.body(error)


def _allow(allowed: bool, method: str) -> None:
    if not allowed:
        raise NotAllowed(f"This path answers {method} only.")


def _segment(raw: bytes) -> str:
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def described(route: Route) -> dict[str, Any]:
    """A model as the protocol tells of it."""
    metadata = route.metadata
    return {
        "name": route.deployment,
        "versions": [route.version],
        "platform": metadata.get("platform", ""),
        "inputs": metadata.get("inputs", []),
        "outputs": metadata.get("outputs", []),
    }


def _indexed(route: Route) -> dict[str, str]:
    return {"name": route.deployment, "version": route.version, "state": _STATES[route.state], "reason": route.error or ""}
