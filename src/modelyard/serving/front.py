"""The gateway's own small routes as ASGI — the protocol's metadata, health, metrics — and the relay of every other path.

One table (`Front.routes`) says for each path its method, what a key must reach and what answers it, and is checked when a
`Front` is made; what is not in it goes to control, which has its own table and the same access function.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from modelyard import __version__
from modelyard.errors import Asleep, Internal, Invalid, ModelyardError, NotFound
from modelyard.serving.admission import Credentials
from modelyard.serving.exchange import is_stale
from modelyard.serving.gateway import CREDENTIALS, SMALL, Gateway, check_ready
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
_JSON = "application/json"
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_STATES = {
    DeploymentState.ready: "READY",
    DeploymentState.pending: "LOADING",
    DeploymentState.failed: "UNAVAILABLE",
    DeploymentState.asleep: "READY",
}


class NotAllowed(Exception):
    """HTTP's own complaint: this path does not answer that method."""


class Asked(NamedTuple):
    """A request that a route of the gateway's own answers. `names` are those in its path; `principal` None: it is open."""

    scope: Message
    names: Mapping[str, str]
    principal: Principal | None

    @property
    def caller(self) -> Principal:
        assert self.principal is not None, "the route declares a scope"
        return self.principal


@dataclass(frozen=True, slots=True)
class Own:
    """A route of the gateway's own: GET answers HEAD, too. `path` may hold names, as '/v2/models/{name}'; `scope` says what a
    key must reach, or that none is needed (`OPEN`)."""

    method: Literal["GET", "POST"]
    path: str
    scope: Scope | Literal["open"] | None
    answer: Callable[[Asked], Awaitable[Any]]

    @property
    def pattern(self) -> re.Pattern[bytes]:
        return re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", self.path).encode())


OPEN: Literal["open"] = "open"


def checked(routes: Iterable[Own]) -> dict[re.Pattern[bytes], Own]:
    """The routes by the pattern of their path. Raises `RuntimeError` for one that declares no scope, or a path twice."""
    table: dict[re.Pattern[bytes], Own] = {}
    for route in routes:
        if route.scope is None:
            raise RuntimeError(f"The gateway's route {route.method} {route.path} declares no scope.")
        if route.pattern in table:
            raise RuntimeError(f"The gateway has two routes of the path {route.path}.")
        table[route.pattern] = route
    return table


class Front:
    """The ASGI app of a gateway. `relay` answers what this does not; `control` tells whether control answers, and `told` what
    metrics it shows to whom."""

    def __init__(
        self, gateway: Gateway, relay: App, control: Callable[[], bool] = lambda: True, told: Told | None = None
    ) -> None:
        self._gateway, self._relay, self._control, self._told = gateway, relay, control, told
        self.routes = (
            Own("GET", "/healthz", OPEN, self._alive),
            Own("GET", "/readyz", OPEN, self._ready),
            Own("GET", "/v2/health/live", OPEN, self._live),
            Own("GET", "/v2/health/ready", OPEN, self._ready),
            Own("GET", "/metrics", Scope.infer, self._metrics),
            Own("GET", "/v2", Scope.infer, self._server),
            Own("POST", "/v2/repository/index", Scope.infer, self._index),
            *self._of_a_model("GET", "", self._model),
            *self._of_a_model("GET", "/ready", self._model_ready),
            *self._of_a_model("POST", "/infer", self._infer),
        )
        self._table = checked(self.routes)
        self._paths = frozenset(route.path.encode() for route in self.routes)

    @staticmethod
    def _of_a_model(method: Literal["GET", "POST"], end: str, answer: Callable[[Asked], Awaitable[Any]]) -> Iterator[Own]:
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            yield Own(method, path + end, Scope.infer, answer)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path: bytes = scope.get("raw_path") or b""
        if scope["type"] != "http" or not (path in self._paths or path.startswith(b"/v2/")):
            await self._pass_on(scope, receive, send)
            return
        try:
            body = await self._answer(scope, path)
        except NotAllowed as error:
            await respond(scope, send, 405, msgspec.json.encode(_error(path, Invalid(str(error)))), _JSON, {})
        except ModelyardError as error:
            await _refuse(scope, send, path, error)
        else:
            text = isinstance(body, bytes)
            await respond(scope, send, 200, body if text else msgspec.json.encode(body), _TEXT if text else _JSON, {})

    async def _pass_on(self, scope: Message, receive: Receive, send: Send) -> None:
        """Leave a request to control. A long body takes room there while it comes: only for a key that is known."""
        try:
            if scope["type"] == "http" and _is_long(scope):
                await self._principal(scope, Scope.infer)  # control asks for the scope that its route needs
        except ModelyardError as error:
            await _refuse(scope, send, scope["raw_path"], error)
        else:
            await self._relay(scope, receive, send)

    async def _answer(self, scope: Message, path: bytes) -> Any:
        found = next(((route, match) for pattern, route in self._table.items() if (match := pattern.fullmatch(path))), None)
        needed = found[0].scope if found else Scope.infer  # what there is not is told to whoever has a key
        principal = await self._principal(scope, needed) if isinstance(needed, Scope) else None
        if found is None:
            raise NotFound(f"There is nothing at {path[:100].decode('ascii', 'replace')}.")
        route, match = found
        if route.method != ("GET" if scope["method"] == "HEAD" else scope["method"]):
            raise NotAllowed(f"This path answers {route.method} only.")
        return await route.answer(Asked(scope, {name: _segment(raw) for name, raw in match.groupdict().items()}, principal))

    async def _alive(self, asked: Asked) -> dict[str, str]:
        return {"status": "ok"}

    async def _live(self, asked: Asked) -> dict[str, bool]:
        return {"live": True}

    async def _ready(self, asked: Asked) -> dict[str, str]:
        """Ready is who answers calls: within the grace neither control nor the database must be there. It is told."""
        self._gateway.check_open()
        seen = {"control": self._control(), "database": self._gateway.sees_database}
        return {"status": "ready", **{what: "ok" if there else "gone" for what, there in seen.items()}}

    async def _server(self, asked: Asked) -> dict[str, Any]:
        return {"name": "modelyard", "version": __version__, "extensions": EXTENSIONS}

    async def _index(self, asked: Asked) -> list[dict[str, str]]:
        return [_indexed(route) for route in self._gateway.routes(asked.caller.project)]

    async def _model(self, asked: Asked) -> dict[str, Any]:
        route = await self._route(asked)
        if not route.metadata:  # no replica has told its tensors yet
            check_ready(route)
        return described(route)

    async def _model_ready(self, asked: Asked) -> dict[str, Any]:
        route = await self._route(asked)
        trial = {"trial": tried.reference} if (tried := route.trial) and tried.endpoints else {}
        with contextlib.suppress(Asleep):  # it is as good as ready: a call waits until it is
            check_ready(route)
        return {"name": route.deployment, "ready": True, "model": route.reference, **trial}

    async def _infer(self, asked: Asked) -> None:
        """A call never comes here: `http` takes it."""
        raise Internal

    async def _metrics(self, asked: Asked) -> bytes:
        """This process's metrics and control's, and those of the calls of the caller's project; an administrator of 'default'
        sees all."""
        caller = asked.caller
        everything = caller.scope >= Scope.admin and caller.project == "default"
        told = await self._told(_credentials(asked.scope)) if self._told else None
        project = None if everything else caller.project
        families = (*self._gateway.metrics.families(project), *self._gateway.tally.families(project))
        return exposition(families, told)

    async def _principal(self, scope: Message, needed: Scope) -> Principal:
        credentials = _credentials(scope)
        return await fresh(self._gateway, credentials, self._gateway.principal, credentials, needed)

    async def _route(self, asked: Asked) -> Route:
        name, version = asked.names["name"], asked.names.get("version")
        return await fresh(self._gateway, ((b"", b""),), self._gateway.route, asked.caller.project, name, version)


async def fresh(gateway: Gateway, credentials: Credentials, look: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `look` finds; where that may be out of date, what it finds after a look at the database, or once the deployment is
    awake."""
    asker = _Asker(time.time(), credentials)
    try:
        return look(*args, **kwargs)
    except ModelyardError as error:
        if not is_stale(error, credentials) or not gateway.may_wait(error, asker):
            raise
        refusal = error
    while True:
        looked: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        gateway.wait(refusal, asker, partial(_settle, looked))
        try:
            seen = await looked
        except asyncio.CancelledError:
            if asker.leave is not None:
                asker.leave()
            raise
        try:
            return look(*args, **kwargs)
        except ModelyardError as error:
            if not gateway.may_wake(error, asker):
                raise gateway.after_look(error, credentials, seen) from None
            refusal = error


@dataclass(slots=True)
class _Asker:
    began: float
    credentials: Credentials
    leave: Callable[[], None] | None = None


def _settle(looked: asyncio.Future[bool], seen: bool) -> None:
    if not looked.done():
        looked.set_result(seen)


async def respond(scope: Message, send: Send, status: int, body: bytes, media: str, headers: dict[str, str]) -> None:
    """A whole answer; to HEAD without its body."""
    all_headers = [(b"content-type", media.encode()), (b"content-length", str(len(body)).encode())]
    all_headers += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def _refuse(scope: Message, send: Send, path: bytes, error: ModelyardError) -> None:
    await respond(scope, send, door.status(error), msgspec.json.encode(_error(path, error)), _JSON, door.headers(error))


def _is_long(scope: Message) -> bool:
    return any(n == b"transfer-encoding" or (n == b"content-length" and int(v) > SMALL) for n, v in scope["headers"])


def _credentials(scope: Message) -> Credentials:
    return tuple((name, value) for name, value in scope["headers"] if name in CREDENTIALS)


def _error(path: bytes, error: ModelyardError) -> dict[str, Any]:
    return {"error": error.message} if path.startswith(b"/v2") else door.body(error)


def _segment(raw: bytes) -> str:
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def described(route: Route) -> dict[str, Any]:
    """A model as the protocol tells of it."""
    metadata = route.metadata
    return {
        "name": route.deployment,
        "versions": list(route.versions),
        "platform": metadata.get("platform", ""),
        "inputs": metadata.get("inputs", []),
        "outputs": metadata.get("outputs", []),
    }


def _indexed(route: Route) -> dict[str, str]:
    return {"name": route.deployment, "version": route.version, "state": _STATES[route.state], "reason": route.error or ""}
