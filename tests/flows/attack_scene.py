"""The scenes of the attacks, as fixtures: a platform that serves one graph (`data`, `owner`, `wire`), and one with one of each
thing, all named by a canary, a stranger, and keys (`scene`). A test file imports those that it or they ask for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from attack_tools import Wire, routes, serve_matmul

from modelyard.client import Yard
from modelyard.tenancy.router import Route
from modelyard.testing import yard

CANARY = "canary-7f3a91"  # the owner's every name holds it
CALL = b'{"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}'
PREDICT = b'{"instances": [[1, 2, 3]]}'
# What the gateway answers itself, besides the open paths.
GATEWAYS = (
    "/metrics",
    "/v2",
    "/v2/repository/index",
    *(f"/v2/models/{{deployment}}{rest}" for rest in ("", "/ready", "/infer")),
    *(f"/v2/models/{{deployment}}/versions/{{ref}}{rest}" for rest in ("", "/ready", "/infer")),
    "/v1/models/{deployment}:predict",
)


@dataclass(frozen=True)
class Scene:
    """The owner (project default) with one of each thing, a stranger's project, and keys."""

    owner: Yard
    data: Path
    artefact: str
    blob: str
    job: str
    spare: str
    keys: dict[str, str]
    stranger: str
    wire: Wire
    control: Wire
    table: list[tuple[str, str, Route | None]]

    def path(self, template: str) -> str:
        """A route's path, its parameters named for the owner's things. A parameter that is new here must be added."""
        names = dict.fromkeys(("name", "deployment", "alias"), CANARY) | {"ref": "1", "path:path": "model.onnx"}
        names |= {"job": self.job, "key": self.spare, "digest": self.blob if "/blobs/" in template else self.artefact}
        query = f"?hashes={self.blob}" if template == "/api/blobs" else ""
        return re.sub(r"\{([^}]+)\}", lambda match: names[match[1]], template) + query


@pytest.fixture(name="data", scope="module")
def yard_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scene") / "yard"


@pytest.fixture(name="owner", scope="module")
def yard_owner(data: Path, request: pytest.FixtureRequest) -> Iterator[Yard]:
    """The owner of a platform in `data` that serves 'matmul'; the module's SETTINGS, where it has any, are the platform's."""
    with yard(data, **getattr(request.module, "SETTINGS", {})) as client:
        serve_matmul(client, data.parent, "matmul")
        yield client


@pytest.fixture(name="wire", scope="module")
def yard_wire(owner: Yard) -> Wire:
    return Wire(owner.profile.url, owner.profile.key)


@pytest.fixture(name="scene", scope="module")
def yard_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    with yard(folder / "yard") as owner:
        artefact = serve_matmul(owner, folder, CANARY)
        (folder / "table.csv").write_text("a,b\n" + "\n".join(f"{n},{n % 2}" for n in range(40)) + "\n")
        owner.import_dataset(CANARY, folder / "table.csv")
        owner.set_alias(f"{CANARY}@1", CANARY)
        made = {scope: owner.create_key(scope, name=f"{CANARY}-{scope}")["key"] for scope in ("infer", "write")}
        manifest = owner._wire.get(f"/api/artefacts/{artefact}")
        yield Scene(
            owner=owner,
            data=folder / "yard",
            artefact=artefact,
            blob=manifest["files"]["model.onnx"]["chunks"][0],
            job=owner.jobs()[0]["id"],
            spare=owner.create_key("infer", name=CANARY)["id"],
            keys=made | {"admin": owner.profile.key},
            stranger=owner.create_project("stranger")["key"]["key"],
            wire=Wire(owner.profile.url, owner.profile.key),
            control=Wire(folder / "yard" / "run" / "control.sock", owner.profile.key),
            table=routes(folder / "table"),
        )
