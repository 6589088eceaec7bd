"""Every route of control and of the gateway has a scope, and the OpenAPI document says so and says how failures look."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelyard.app import control, migrate
from modelyard.serving.follower import State
from modelyard.serving.front import OPEN, Front, Message, Own, Receive, Send, checked
from modelyard.serving.gateway import Gateway
from modelyard.serving.meter import Meters
from modelyard.serving.router import Router
from modelyard.settings import Settings
from modelyard.tenancy.access import KeyRecord, KeyRing, digest
from modelyard.tenancy.openapi import document
from modelyard.tenancy.types import Scope
from modelyard.testing import InlineExecutor


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = Settings(data=tmp_path_factory.mktemp("yard"))
    migrate.run(settings)
    app = control.build(settings, InlineExecutor())
    try:
        return document(app)
    finally:
        app.state.db.close()


def operations(described: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{method} {path}", op) for path, ops in described["paths"].items() for method, op in ops.items()]


def test_every_operation_names_its_scope(described: dict[str, Any]) -> None:
    assert len(operations(described)) > 25
    assert not [name for name, op in operations(described) if op.get("x-scope") not in {"infer", "write", "admin"}]


def test_failures_have_one_shape(described: dict[str, Any]) -> None:
    for name, operation in operations(described):
        assert "422" not in operation["responses"], name
        assert operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")


def test_what_takes_a_body_describes_it(described: dict[str, Any]) -> None:
    verbs = {f"post /api/deployments/{{name}}/{verb}" for verb in ("promote", "rollback", "wake")}
    bare = {"post /api/jobs/{job}/cancel", *verbs}
    for name, operation in operations(described):
        if name.split()[0] in ("post", "put") and name not in bare:
            assert "requestBody" in operation, name


def test_operations_are_unique_and_references_resolve(described: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, operation in operations(described)]
    assert len(set(names)) == len(names)
    known = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}
    assert set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(described))) <= known


def test_every_operation_is_explained(described: dict[str, Any]) -> None:
    assert not [name for name, op in operations(described) if not op.get("description")]


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Front:
    """A gateway's front, without replicas and with one key of no scope but infer."""

    async def relay(scope: Message, receive: Receive, send: Send) -> None:
        raise AssertionError(f"{scope['path']} is the gateway's own")

    folder = tmp_path_factory.mktemp("gateway")
    meters = Meters(folder / "meters", lambda _: None, lambda _: {}, lambda _: None)
    keyring = KeyRing(b"p" * 32)
    with asyncio.Runner() as runner:
        gateway = Gateway(keyring, (), Router(runner.get_loop()), meters, Settings(data=folder))
    gateway.apply(State(1, [KeyRecord("k1", "team", Scope.infer, digest(b"p" * 32, "s" * 48))], []))
    return Front(gateway, relay)


def status(front: Front, method: str, path: str, **headers: str) -> int:
    async def ask() -> int:
        transport = httpx.ASGITransport(app=front)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return (await client.request(method, path, headers=headers)).status_code

    return asyncio.run(ask())


def test_every_route_of_the_gateway_asks_for_the_scope_that_it_declares(front: Front) -> None:
    assert len(front.routes) > 10
    key = f"my_k1_{'s' * 48}"
    for route in front.routes:
        path = re.sub(r"{\w+}", "1", route.path)
        if route.scope == OPEN:
            assert status(front, route.method, path) == 200, path
            continue
        assert isinstance(route.scope, Scope), path
        assert status(front, route.method, path) == 401, path
        reaches = route.scope <= Scope.infer
        assert (status(front, route.method, path, authorization=f"Bearer {key}") != 403) == reaches, path


def test_a_route_of_the_gateway_without_a_scope_fails_at_the_start(front: Front) -> None:
    first = front.routes[0]
    with pytest.raises(RuntimeError, match="GET /new declares no scope"):
        checked([*front.routes, Own("GET", "/new", None, first.answer)])
    with pytest.raises(RuntimeError, match="two routes of the path /healthz"):
        checked([*front.routes, first])


def test_the_open_paths_of_the_gateway_are_documented(front: Front) -> None:
    pages = "".join((Path(__file__).parents[2] / "docs" / page).read_text() for page in ("app.md", "oip.md"))
    unguarded = {route.path for route in front.routes if route.scope == OPEN}
    assert unguarded == control.OPEN | {"/v2/health/live", "/v2/health/ready"}
    assert all(path in pages for path in unguarded)


def test_the_documented_open_paths_are_the_only_ones() -> None:
    assert {"/healthz", "/readyz"} == control.OPEN
    page = (Path(__file__).parents[2] / "docs" / "app.md").read_text()
    assert all(f"`{path}`" in page for path in control.OPEN)
