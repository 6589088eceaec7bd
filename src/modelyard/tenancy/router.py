"""How control's routes are declared and guarded. It knows no room.

Every room declares its routes on `Routes`, each with the scope it needs. Authorisation hangs on the matched route itself
and runs before a byte of the body is read; `check_routes` refuses to start an app with a route that has none.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from functools import partial
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, FastAPI, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.routing import APIRoute, APIRouter, iter_route_contexts
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import BaseRoute
from starlette.types import Message

from modelyard import telemetry
from modelyard.db import joined
from modelyard.errors import Invalid
from modelyard.tenancy import access, door, idempotency
from modelyard.tenancy.types import Principal, Scope

LARGEST_BODY = 1 << 20  # JSON takes some twenty times its size once parsed; uploads say that they need more
LARGEST_NUMBER = (1 << 63) - 1  # where a database's whole numbers end
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
Value = TypeVar("Value")
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def principal(request: Request) -> Principal:
    """Who is asking; the route has verified it."""
    return cast(Principal, request.state.principal)


Caller = Annotated[Principal, Depends(principal)]


def answered(request: Request, value: Value) -> Value:
    """Say, inside the transaction that does a route's work, what the route is going to return: a repeat of the request gets
    it even if this process dies right after the commit. Gives the value back."""
    if (promised := getattr(request.state, "promised", None)) is not None:
        promised.append(value)
    return value


class Route(APIRoute):
    """A route with a declared scope. `secret`: its answer is shown once and never kept, not even for a repeat.
    `largest`: bytes its body may have."""

    def __init__(self, *args: Any, scope: Scope, secret: bool = False, largest: int = LARGEST_BODY, **options: Any) -> None:
        self.scope = Scope(scope)
        self.secret = secret
        self.largest = largest
        described = {"x-scope": self.scope.name, **(options.pop("openapi_extra", None) or {})}
        super().__init__(*args, openapi_extra=described, **options)

    def get_route_handler(self) -> Handler:
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            telemetry.bind(request.headers)  # each request is a task of its own
            # Sync work that may touch the database: a thread, never the loop.
            request.state.principal = await run_in_threadpool(authorise, request, self.scope)
            request = _bounded(request, self.largest)
            if self.body_field is not None:
                await request.check_type()
            if request.method == "POST" and "idempotency-key" in request.headers:
                return await self._once(request, inner)
            return await inner(request)

        return handler

    async def _once(self, request: Request, inner: Handler) -> Response:
        db, slot = request.app.state.db, await _slot(request, self.path_format)
        kept = await run_in_threadpool(idempotency.claim, db, slot)
        if kept is not None:
            return Response(kept.body, kept.status, {"Idempotency-Replayed": "true"}, kept.media)
        promised = request.state.promised = list[Any]()
        try:
            with joined(lambda session: slot.confirm(session, self._promised(promised))):
                response = await inner(request)
        except BaseException:
            await run_in_threadpool(idempotency.release, db, slot)
            raise
        if isinstance(response, StreamingResponse) or response.status_code >= 400:
            await run_in_threadpool(idempotency.release, db, slot)
        elif self.secret or not promised:  # else it is kept already
            await run_in_threadpool(idempotency.keep, db, slot, None if self.secret else _answer(response))
        return response

    def _promised(self, values: list[Any]) -> idempotency.Answer | None:
        """The answer of which a route said that it would give it."""
        if self.secret or not values:
            return None
        return _answer(JSONResponse(jsonable_encoder(values[-1]), self.status_code or 200))


def authorise(request: Request, scope: Scope) -> Principal:
    """The principal of a request, if its key is valid and reaches `scope`. Raises `Unauthorized` or `Forbidden`."""
    headers, state = request.headers, request.app.state
    door.check_source(request.method, headers.get("host"), headers.get("origin"), getattr(state, "hosts", None))
    token = access.token_of(headers.getlist("authorization"), headers.getlist("x-api-key"))
    found = cast(Principal, state.keyring.verify(token, time.time()))
    state.keyring.require(found, scope)
    return found


def _bounded(request: Request, largest: int) -> _StrictRequest:
    """The same request, whose body may be read up to `largest` bytes."""
    length, seen = request.headers.get("content-length", ""), 0
    if length.isdecimal() and int(length) > largest:
        raise HTTPException(413)

    async def receive() -> Message:
        nonlocal seen
        message = await request.receive()
        seen += len(message.get("body", b""))
        if seen > largest:
            raise HTTPException(413)  # the one error that FastAPI lets pass while it reads a body
        return message

    return _StrictRequest(request.scope, receive)


class _StrictRequest(Request):
    """A request whose JSON can be stored and shown again: no number that is none or that no float holds, no half of a
    character. What it raises is the one error that FastAPI lets pass while it reads a body."""

    async def json(self) -> Any:
        try:
            value = await super().json()
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except RecursionError as error:
            raise HTTPException(400, "The body is not valid JSON: it is nested too deeply.") from error
        except ValueError as error:
            raise HTTPException(400, f"The body is not valid JSON: {error}.") from error
        return value

    async def check_type(self) -> None:
        """Refuse a body that does not say it is JSON, for what it is: FastAPI would take its bytes for a string. JSON that
        comes without its type is refused, too: a web page may send such to other sites unasked."""
        said = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if said == "application/json" or (said.startswith("application/") and said.endswith("+json")) or not await self.body():
            return
        await self.json()
        raise HTTPException(400, "The body is JSON that is not said to be: send it with Content-Type: application/json.")


async def _slot(request: Request, route: str) -> idempotency.Slot:
    name = request.headers["idempotency-key"]
    if not 1 <= len(name) <= 255 or not name.isascii() or not name.isprintable():
        raise Invalid("The header Idempotency-Key is not valid: expected 1 to 255 printable ASCII characters.")
    asked = hashlib.sha256(f"{request.method} {request.scope['path']}?".encode())
    asked.update(request.scope["query_string"] + b"\n" + await request.body())
    caller = principal(request)
    return idempotency.Slot(caller.project, caller.key, route, name, asked.hexdigest())


def _answer(response: Response) -> idempotency.Answer:
    return idempotency.Answer(response.status_code, response.headers.get("content-type"), bytes(response.body))


class Routes(APIRouter):
    """A router whose every route declares the scope it needs: `@routes.get("/api/x", scope=Scope.infer)`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"redirect_slashes": False, **options})

    def get(self, path: str, *, scope: Scope, **options: Any) -> Callable[[Endpoint], Endpoint]:  # type: ignore[override]
        return self._declare("GET", path, scope, options)

    def head(self, path: str, *, scope: Scope, **options: Any) -> Callable[[Endpoint], Endpoint]:  # type: ignore[override]
        return self._declare("HEAD", path, scope, options)

    def put(self, path: str, *, scope: Scope, **options: Any) -> Callable[[Endpoint], Endpoint]:  # type: ignore[override]
        return self._declare("PUT", path, scope, options)

    def post(self, path: str, *, scope: Scope, **options: Any) -> Callable[[Endpoint], Endpoint]:  # type: ignore[override]
        return self._declare("POST", path, scope, options)

    def patch(self, path: str, *, scope: Scope, **options: Any) -> Callable[[Endpoint], Endpoint]:  # type: ignore[override]
        return self._declare("PATCH", path, scope, options)

    def delete(self, path: str, *, scope: Scope, **options: Any) -> Callable[[Endpoint], Endpoint]:  # type: ignore[override]
        return self._declare("DELETE", path, scope, options)

    def _declare(self, method: str, path: str, scope: Scope, options: dict[str, Any]) -> Callable[[Endpoint], Endpoint]:
        ours = {name: options.pop(name) for name in ("secret", "largest") if name in options}
        route = cast(type[APIRoute], partial(Route, scope=scope, **ours))

        def declare(endpoint: Endpoint) -> Endpoint:
            self.add_api_route(path, endpoint, methods=[method], route_class_override=route, **options)
            return endpoint

        return declare


def check_routes(app: FastAPI, open_paths: Collection[str] = ()) -> None:
    """Raises `RuntimeError` unless every route of the app, mounts, websockets and docs included, declares a scope or is one
    of `open_paths`. Call it when the app is complete, before it serves."""
    # Pages served by `app.frontend` are kept apart, in a private list.
    every = [*app.routes, *(route for route in app.router._iter_low_priority_routes() if isinstance(route, BaseRoute))]
    unguarded = [shown for route, shown in _all(every) if not isinstance(route, Route) and shown not in open_paths]
    if unguarded:
        raise RuntimeError(f"Routes without a declared scope: {', '.join(sorted(unguarded))}. Declare them on tenancy.Routes.")


def _all(routes: Iterable[BaseRoute]) -> Iterable[tuple[BaseRoute, str]]:
    for context in iter_route_contexts(list(routes)):
        yield context.original_route, context.path or f"{type(context.original_route).__name__} without a path"
