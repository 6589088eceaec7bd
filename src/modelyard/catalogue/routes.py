"""The management API of artefacts, datasets and models: uploads, downloads, names, versions, aliases, lineage.

Bytes move between the request and the store first; what the catalogue then says about them, audit included, is one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, Response
from starlette.responses import StreamingResponse

from modelyard.catalogue import ranges, service
from modelyard.catalogue.types import AliasRequest, Kind
from modelyard.storage import CHUNK, Manifest
from modelyard.tenancy.ledger import audit
from modelyard.tenancy.routes import Caller, Routes
from modelyard.tenancy.types import Scope

__all__ = ["routes"]

routes = Routes(prefix="/api", tags=["catalogue"])
KINDS: dict[str, Kind] = {"datasets": "dataset", "models": "model"}
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


async def body(request: Request) -> bytearray:
    """The body in one piece, held once; the route bounds it."""
    data = bytearray()
    async for part in request.stream():
        data += part
    return data


def kind_of(request: Request) -> Kind:
    """Which of the two twin sets of routes was matched, as it is declared (never as it was asked for)."""
    return KINDS[request.scope["route"].path.split("/")[2]]


def _bytes(media: str) -> dict[str, Any]:
    """For the OpenAPI document: a body that is read as it comes."""
    schema = {"type": "string", "format": "binary"} if media == "octet-stream" else {"type": "object"}
    return {"requestBody": {"required": True, "content": {f"application/{media}": {"schema": schema}}}}


Body = Annotated[bytearray, Depends(body)]
KindOf = Annotated[Kind, Depends(kind_of)]


def twins(method: str, path: str, scope: Scope) -> Callable[[Endpoint], Endpoint]:
    """Declare a route for datasets and for models."""

    def declare(endpoint: Endpoint) -> Endpoint:
        for plural in KINDS:
            getattr(routes, method)(f"/{plural}{path}", scope=scope)(endpoint)
        return endpoint

    return declare


@routes.head("/blobs/sha256/{digest}", scope=Scope.write)
def has_blob(request: Request, caller: Caller, digest: str) -> Response:
    """200 if this project has the blob, else 404: an upload goes on from there."""
    return Response(status_code=200 if request.app.state.artefacts.has_blob(caller.project, digest) else 404)


@routes.put("/blobs/sha256/{digest}", scope=Scope.write, status_code=201, largest=CHUNK, openapi_extra=_bytes("octet-stream"))
def put_blob(request: Request, caller: Caller, digest: str, data: Body) -> dict[str, Any]:
    """Upload one chunk (at most 64 MiB) under its SHA-256."""
    request.app.state.artefacts.put_blob(caller.project, digest, data)
    return {"hash": digest, "size": len(data)}


@routes.post("/artefacts", scope=Scope.write, status_code=201, largest=CHUNK, openapi_extra=_bytes("json"))
def create_artefact(request: Request, caller: Caller, data: Body) -> dict[str, Any]:
    """Make an artefact of uploaded blobs. The body is its manifest."""
    manifest = Manifest.from_bytes(bytes(data))
    state = request.app.state
    state.artefacts.publish_manifest(caller.project, manifest)
    with state.db.begin() as session:
        service.record_artefact(session, caller.project, manifest)
        audit(session, caller.project, caller.key, "artefact.create", manifest.hash, {"size": manifest.size})
    return {"hash": manifest.hash, "size": manifest.size}


@routes.get("/artefacts/{digest}", scope=Scope.write)
def artefact(request: Request, caller: Caller, digest: str) -> dict[str, Any]:
    """The manifest of an artefact."""
    manifest: Manifest = request.app.state.artefacts.manifest(caller.project, digest)
    return manifest.to_json()


@routes.get("/artefacts/{digest}/files/{path:path}", scope=Scope.write, response_class=StreamingResponse)
def artefact_file(request: Request, caller: Caller, digest: str, path: str) -> Response:
    """A file of an artefact; with a Range header a part of it. A body that ends early met a damaged chunk."""
    artefacts = request.app.state.artefacts
    file = artefacts.stat(caller.project, digest, path)
    part = ranges.asked(request.headers, file.size, file.root)
    if isinstance(part, Response):
        return part
    pieces: Iterator[bytes] = artefacts.stream(caller.project, digest, path, part.start, part.stop)
    # The first piece before the status: a file that is damaged from its start is an error, not an empty answer.
    first = next(pieces, b"")
    return StreamingResponse(chain([first], pieces), part.status, part.headers, "application/octet-stream")


@twins("get", "", scope=Scope.write)
def names(request: Request, caller: Caller, kind: KindOf) -> list[dict[str, Any]]:
    """All names, each with its newest version and its aliases."""
    with request.app.state.db.read() as session:
        return [name.to_json() for name in service.names(session, caller.project, kind)]


@twins("get", "/{name}", scope=Scope.write)
def show(request: Request, caller: Caller, kind: KindOf, name: str) -> dict[str, Any]:
    """A name: its versions, oldest first, and where its aliases point."""
    with request.app.state.db.read() as session:
        found = service.versions(session, caller.project, kind, name)
    aliases = {alias: version.number for version in found for alias in version.aliases}
    return {"kind": kind, "name": name, "versions": [version.to_json() for version in found], "aliases": aliases}


@twins("get", "/{name}/versions/{ref}", scope=Scope.write)
def show_version(request: Request, caller: Caller, kind: KindOf, name: str, ref: str) -> dict[str, Any]:
    """A version, by number or alias."""
    with request.app.state.db.read() as session:
        return service.resolve(session, caller.project, kind, f"{name}@{ref}").to_json()


@twins("get", "/{name}/versions/{ref}/lineage", scope=Scope.write)
def show_lineage(request: Request, caller: Caller, kind: KindOf, name: str, ref: str) -> dict[str, Any]:
    """What a version was made from, and that from what, each with its hash."""
    with request.app.state.db.read() as session:
        version = service.resolve(session, caller.project, kind, f"{name}@{ref}")
        return service.lineage(session, caller.project, version)


@twins("put", "/{name}/aliases/{alias}", scope=Scope.write)
def set_alias(request: Request, caller: Caller, kind: KindOf, name: str, alias: str, wanted: AliasRequest) -> dict[str, Any]:
    """Point an alias at a version."""
    with request.app.state.db.begin() as session:
        version = service.set_alias(session, caller.project, kind, name, alias, wanted.version)
        audit(session, caller.project, caller.key, f"{kind}.alias", f"{name}@{alias}", {"version": version.number})
    return version.to_json()


@twins("delete", "/{name}", scope=Scope.write)
def delete(request: Request, caller: Caller, kind: KindOf, name: str) -> dict[str, Any]:
    """Delete a name with all its versions, unless a deployment uses one."""
    state = request.app.state
    with state.db.begin() as session:
        numbers = service.delete(session, caller.project, kind, name, state.in_use)
        audit(session, caller.project, caller.key, f"{kind}.delete", name, {"versions": numbers})
    return {"kind": kind, "name": name, "deleted": numbers}
