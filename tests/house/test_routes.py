"""Every route of control has a scope, and the OpenAPI document says so and says how failures look."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from modelyard.app import control, migrate
from modelyard.settings import Settings
from modelyard.tenancy.openapi import document
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


def test_the_documented_open_paths_are_the_only_ones() -> None:
    assert {"/healthz", "/readyz"} == control.OPEN
    page = (Path(__file__).parents[2] / "docs" / "app.md").read_text()
    assert all(f"`{path}`" in page for path in control.OPEN)
