"""The management API of artefacts, datasets and models: uploads, downloads, names, versions, aliases, lineage.

Bytes move between the request and the store first; what the catalogue then says about them, audit included, is one transaction.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, StreamingResponse

from modelyard.catalogue import ranges, service
from modelyard.catalogue.evaluations import evaluations
from modelyard.catalogue.types import AliasRequest, Kind
from modelyard.errors import NotFound
from modelyard.storage import CHUNK, Manifest, Staged, batches
from modelyard.tenancy.ledger import audit
from modelyard.tenancy.routes import Caller, Routes, answered
from modelyard.tenancy.types import Principal, Scope

__all__ = ["routes"]

routes = Routes(prefix="/api", tags=["catalogue"])
LARGEST_MANIFEST = 32 << 20  # bytes of JSON: that of 100,000 files with paths of 150 letters
PIECE = 1 << 20
KINDS: dict[str, Kind] = {"datasets": "dataset", "models": "model"}
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


async def body(request: Request) -> bytes:
    """The body in one piece; the route bounds it. One that was read before is not copied."""
    parts = [part async for part in request.stream() if part]
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def staged(request: Request) -> AsyncIterator[Staged]:
    """The body as it came, in the store and not in memory; gone in the end, unless the route has it adopted."""
    with request.app.state.artefacts.stage() as place:
        held = bytearray()
        async for part in request.stream():
            held += part
            if len(held) >= PIECE:
                await run_in_threadpool(place.write, held)
                held = bytearray()
        await run_in_threadpool(place.write, held)
        yield place


def kind_of(request: Request) -> Kind:
    """Which of the two twin sets of routes was matched, as it is declared (never as it was asked for)."""
    return KINDS[request.scope["route"].path.split("/")[2]]


def _bytes(media: str) -> dict[str, Any]:
    """For the OpenAPI document: a body that is read as it comes."""
    schema = {"type": "string", "format": "binary"} if media == "octet-stream" else {"type": "object"}
    return {"requestBody": {"required": True, "content": {f"application/{media}": {"schema": schema}}}}


Body = Annotated[bytes, Depends(body)]
StagedBody = Annotated[Staged, Depends(staged)]
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
def put_blob(request: Request, caller: Caller, digest: str, data: StagedBody) -> dict[str, Any]:
    """Upload one chunk (at most 64 MiB) under its SHA-256."""
    request.app.state.artefacts.adopt_blob(caller.project, digest, data)
    return {"hash": digest, "size": data.size}


@routes.put("/blobs", scope=Scope.write, status_code=201, largest=batches.MOST, openapi_extra=_bytes("octet-stream"))
def put_blobs(request: Request, caller: Caller, data: Body) -> dict[str, Any]:
    """Upload many small chunks in one request (at most 8 MiB): of each its SHA-256 (32 bytes), its length (4, big-endian) and
    its bytes. All are verified before the first is stored."""
    return {"blobs": request.app.state.artefacts.put_blobs(caller.project, batches.unpacked(data))}


@routes.get("/blobs", scope=Scope.write, response_class=Response)
def get_blobs(request: Request, caller: Caller, hashes: str) -> Response:
    """Many small chunks in one answer (at most 8 MiB), as `PUT` takes them: those of `hashes`, SHA-256s with commas between."""
    found = request.app.state.artefacts.blobs(caller.project, hashes.split(","), batches.MOST)
    return Response(b"".join(batches.packed(digest, data) for digest, data in found), media_type="application/octet-stream")


@routes.post("/artefacts", scope=Scope.write, status_code=201, largest=LARGEST_MANIFEST, openapi_extra=_bytes("json"))
def create_artefact(request: Request, caller: Caller, data: Body) -> dict[str, Any]:
    """Make an artefact of uploaded blobs. The body is its manifest."""
    manifest = Manifest.from_bytes(data)
    state = request.app.state
    state.artefacts.publish_manifest(caller.project, manifest)
    with state.db.begin() as session:
        service.record_artefact(session, caller.project, manifest)
        audit(session, caller.project, caller.key, "artefact.create", manifest.hash, {"size": manifest.size})
        return answered(request, {"hash": manifest.hash, "size": manifest.size})


@routes.get("/artefacts/{digest}", scope=Scope.write, response_class=JSONResponse)
def artefact(request: Request, caller: Caller, digest: str) -> Response:
    """The manifest of an artefact."""
    with _there(request, caller, digest):
        manifest: Manifest = request.app.state.artefacts.manifest(caller.project, digest)
    return Response(manifest.to_bytes(), media_type="application/json")


@routes.get("/artefacts/{digest}/files/{path:path}", scope=Scope.write, response_class=StreamingResponse)
def artefact_file(request: Request, caller: Caller, digest: str, path: str) -> Response:
    """A file of an artefact; with a Range header a part of it. A body that ends early met a damaged chunk."""
    artefacts = request.app.state.artefacts
    with _there(request, caller, digest):
        file = artefacts.stat(caller.project, digest, path)
    part = ranges.asked(request.headers, file.size, file.root)
    if isinstance(part, Response):
        return part
    pieces: Iterator[bytes] = artefacts.stream(caller.project, digest, path, part.start, part.stop)
    # The first piece before the status: a file that is damaged from its start is an error, not an empty answer.
    first = next(pieces, b"")
    return StreamingResponse(chain([first], pieces), part.status, part.headers, "application/octet-stream")


@contextmanager
def _there(request: Request, caller: Principal, digest: str) -> Iterator[None]:
    """Where the store finds nothing: if it is the artefact that is unknown, say which there are, which the store cannot."""
    try:
        yield
    except NotFound:
        with request.app.state.db.read() as session:
            service.check_artefact(session, caller.project, digest)
        raise


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


@routes.get("/models/{name}/versions/{ref}/evaluations", scope=Scope.write)
def show_evaluations(request: Request, caller: Caller, name: str, ref: str) -> list[dict[str, Any]]:
    """What was found of a version beside others, newest first."""
    with request.app.state.db.read() as session:
        version = service.resolve(session, caller.project, "model", f"{name}@{ref}")
        return [found.to_json() for found in evaluations(session, caller.project, version.artefact)]


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


@twins("delete", "/{name}/versions/{ref}", scope=Scope.write)
def delete_version(request: Request, caller: Caller, kind: KindOf, name: str, ref: str) -> dict[str, Any]:
    """Delete one version, unless a deployment uses it or an alias points to it."""
    state = request.app.state
    with state.db.begin() as session:
        version = service.delete_version(session, caller.project, kind, f"{name}@{ref}", state.in_use)
        audit(session, caller.project, caller.key, f"{kind}.delete", version.reference, {"versions": [version.number]})
    return {"kind": kind, "name": name, "deleted": [version.number]}
