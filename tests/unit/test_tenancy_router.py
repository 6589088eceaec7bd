"""No route without a scope, no request past its scope, and not a byte of a body read before that is settled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, Response, WebSocket
from starlette.applications import Starlette
from tenancy_web import Web, error

from modelyard.tenancy.router import Caller, Routes, check_routes
from modelyard.tenancy.types import Scope

METHODS = ("get", "head", "put", "post", "patch", "delete")


def every_scope() -> Routes:
    more = Routes(prefix="/things")
    for scope in Scope:
        for method in METHODS:
            getattr(more, method)(f"/{scope.name}", scope=scope)(whose)
    return more


def whose(caller: Caller) -> dict[str, str]:
    return {"project": caller.project, "scope": caller.scope.name}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    web = Web(tmp_path_factory.mktemp("web"), every_scope())
    yield web
    web.db.close()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("have", list(Scope))
@pytest.mark.parametrize("need", list(Scope))
def test_a_key_reaches_what_its_scope_reaches(web: Web, method: str, have: Scope, need: Scope):
    answer = web.ask(method.upper(), f"/things/{need.name}", f"team:{have.name}")
    if have >= need:
        assert answer.status_code == 200
        assert method == "head" or answer.json() == {"project": "team", "scope": have.name}
    else:
        assert answer.status_code == 403
        assert method == "head" or error(answer) == (403, "insufficient_scope")


@pytest.mark.parametrize("method", [*METHODS, "options", "trace", "invented"])
@pytest.mark.parametrize(
    "path", ["/things/infer", "/api/keys", "/api/whoami", "/no/such/path", "/", "//api/keys", "/api/keys/"]
)
def test_without_a_key_nothing_is_told_not_even_what_there_is(web: Web, method: str, path: str):
    answer = web.ask(method.upper(), path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert method == "head" or error(answer) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer my_000000000000_" + "0" * 48},
        {"Authorization": "Bearer ' OR 1=1 --"},
        {"Authorization": "Basic YTpi"},
        {"x-api-key": ""},
        {"x-api-key": "my_"},
    ],
)
def test_wrong_keys(web: Web, headers: dict[str, str]):
    assert error(web.ask("GET", "/things/infer", headers=headers)) == (401, "invalid_api_key")


def test_a_key_may_come_in_either_header_but_not_two_different_ones(web: Web):
    one, other = web.keys["team", "infer"], web.keys["team", "admin"]
    assert web.ask("GET", "/things/infer", headers={"x-api-key": one}).status_code == 200
    assert web.ask("GET", "/things/infer", one, headers={"x-api-key": one}).status_code == 200
    assert web.ask("GET", "/things/infer", one, headers={"x-api-key": other}).status_code == 401


def test_pages_of_another_origin_change_nothing(web: Web):
    foreign = {"Origin": "http://evil.example"}
    assert error(web.ask("POST", "/things/infer", "admin", headers=foreign)) == (403, "insufficient_scope")
    assert web.ask("GET", "/things/infer", "admin", headers=foreign).status_code == 200
    assert web.ask("POST", "/things/infer", "admin", headers={"Origin": "http://127.0.0.1:8080"}).status_code == 200


def test_a_foreign_host_changes_nothing_where_the_server_knows_its_names(tmp_path: Path):
    web = Web(tmp_path, every_scope(), hosts=frozenset({"yard.lan"}))
    evil = {"Host": "evil.example", "Origin": "http://evil.example"}
    assert web.ask("POST", "/things/infer", "admin", headers=evil).status_code == 403
    assert web.ask("POST", "/things/infer", "admin", headers={"Host": "yard.lan:8080"}).status_code == 200
    assert web.ask("POST", "/things/infer", "admin").status_code == 200
    web.db.close()


@pytest.mark.parametrize("host", ["evil", "a/b", "x#", "127.0.0.1/things/infer?", ""])
@pytest.mark.parametrize("path", ["/things/infer", "/things/admin", "/none"])
def test_the_host_changes_no_verdict_of_a_read(web: Web, host: str, path: str):
    plain = web.ask("GET", path, "infer")
    odd = web.ask("GET", path, "infer", headers={"Host": host, "X-Forwarded-Host": "evil", "X-Forwarded-Prefix": "/things"})
    assert odd.status_code == plain.status_code
    assert "location" not in odd.headers


def test_nothing_is_read_before_the_key_is_verified(tmp_path: Path):
    more = Routes()

    @more.post("/upload", scope=Scope.write)
    async def upload(request: Request) -> dict[str, int]:
        return {"size": len(await request.body())}

    web = Web(tmp_path, more)
    read: list[None] = []

    async def endless():
        while True:
            read.append(None)
            yield b"x" * 1024

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(app=web.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/upload", content=endless(), headers={"Idempotency-Key": "k"})

    assert asyncio.run(post()).status_code == 401
    assert read == []
    web.db.close()


def test_a_body_has_a_limit(tmp_path: Path):
    more = Routes()

    @more.post("/small", scope=Scope.write, largest=10)
    async def small(request: Request) -> dict[str, int]:
        return {"size": len(await request.body())}

    @more.post("/json", scope=Scope.write, largest=10)
    def json(body: list[int]) -> dict[str, int]:
        return {"size": len(body)}

    async def chunks(text: bytes):
        for byte in text:
            yield bytes([byte])

    web = Web(tmp_path, more)
    assert web.ask("POST", "/small", "write", content=b"x" * 10).json() == {"size": 10}
    assert web.ask("POST", "/small", "write", content=chunks(b"x" * 10)).json() == {"size": 10}
    assert web.ask("POST", "/json", "write", content=b"[1,2,3]", headers={"Content-Type": "application/json"}).json() == {
        "size": 3
    }
    for path in ("/small", "/json"):
        for headers in ({}, {"Idempotency-Key": "k"}):
            assert error(web.ask("POST", path, "write", content=b"1" * 11, headers=headers)) == (413, "too_large")
            assert error(web.ask("POST", path, "write", content=chunks(b"1" * 11), headers=headers)) == (413, "too_large")
    assert error(web.ask("POST", "/small", content=b"x" * 11)) == (401, "invalid_api_key")
    web.db.close()


@pytest.mark.parametrize("method", METHODS)
def test_a_route_without_a_scope_cannot_be_declared(method: str):
    with pytest.raises(TypeError, match="scope"):
        getattr(Routes(), method)("/x")


@pytest.mark.parametrize("scope", [None, "infer", 0])
def test_a_wrong_scope_cannot_be_declared(scope: object):
    with pytest.raises(ValueError):
        Routes().get("/x", scope=scope)(whose)


def healthz() -> dict[str, str]:
    return {}


def bare() -> FastAPI:
    app = FastAPI(openapi_url=None)
    app.include_router(every_scope())
    return app


def test_routes_with_scopes_pass_the_check():
    outer = Routes(prefix="/outer")
    outer.include_router(every_scope())
    app = bare()
    app.include_router(outer)
    check_routes(app)


async def socket(websocket: WebSocket) -> None: ...


def plain(request: Request) -> Response: ...


def static(app: FastAPI, folder: Path) -> None:
    (folder / "index.html").write_text("hello")
    app.frontend("/ui", directory=folder)


def included(app: FastAPI) -> None:
    inner = APIRouter()
    inner.get("/x")(lambda: None)
    outer = Routes(prefix="/deep")
    outer.include_router(inner)
    app.include_router(outer)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda app, _: app.get("/x")(lambda: None), "/x"),
        (lambda app, _: app.add_route("/x", plain), "/x"),
        (lambda app, _: app.mount("/sub", Starlette()), "/sub"),
        (lambda app, _: app.host("sub.example", Starlette()), "Host without a path"),
        (lambda app, _: app.websocket("/ws")(socket), "/ws"),
        (lambda app, _: included(app), "/deep/x"),
        (static, "_FrontendRouteGroup"),
    ],
    ids=["route", "starlette", "mount", "host", "websocket", "included", "frontend"],
)
def test_whatever_has_no_scope_fails_at_start(tmp_path: Path, spoil, named: str):
    app = bare()
    spoil(app, tmp_path)
    with pytest.raises(RuntimeError, match=f"without a declared scope: {named}"):
        check_routes(app)


def test_the_documentation_pages_of_the_framework_fail_at_start():
    with pytest.raises(RuntimeError, match=r"/docs.*/openapi\.json"):
        check_routes(FastAPI())


def test_open_paths_are_those_listed():
    app = bare()
    app.get("/healthz")(healthz)
    check_routes(app, {"/healthz"})
    with pytest.raises(RuntimeError, match="/healthz"):
        check_routes(app, {"/health"})
