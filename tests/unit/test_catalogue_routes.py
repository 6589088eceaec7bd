"""The doors of the catalogue, called in process: uploads, downloads, names, and who may."""

import asyncio
import hashlib

import httpx
import pytest
from fastapi import FastAPI

from modelyard.catalogue import service
from modelyard.catalogue.evaluations import record
from modelyard.catalogue.routes import routes
from modelyard.catalogue.types import Parent
from modelyard.db import Base, Database
from modelyard.storage import CHUNK, Artefacts, batches
from modelyard.tenancy import ledger
from modelyard.tenancy.access import KeyRing, load_keys
from modelyard.tenancy.routes import check_routes, install
from modelyard.tenancy.service import create_key, create_project
from modelyard.tenancy.types import Scope
from modelyard.testing import MemoryStore

PEPPER = b"pepper"


class Desk:
    """The app with its state, and callers of two projects."""

    def __init__(self, folder):
        self.app = app = FastAPI()
        app.include_router(routes)
        install(app)
        check_routes(app, {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc"})
        self.db = app.state.db = Database(f"sqlite:///{folder / 'books.db'}")
        self.store = MemoryStore()
        app.state.artefacts = Artefacts(self.store, folder / "cache")
        app.state.in_use = lambda _, version: "deployment 'd'" if version.name == "served" else None
        Base.metadata.create_all(self.db.engine)
        with self.db.begin() as session:
            for project in ("p", "q"):
                create_project(session, project)
            self.keys = {name: create_key(session, name[0], scope, PEPPER).key for name, scope in SCOPES.items()}
            app.state.keyring = KeyRing(PEPPER, load_keys(session))

    def __call__(self, method, path, key="p-write", **options):
        headers = {"Authorization": f"Bearer {self.keys[key]}", **options.pop("headers", {})}

        async def send():
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, f"/api/{path}", headers=headers, **options)

        return asyncio.run(send())

    def version(self, name="m", kind="model", project="p", **more):
        with self.db.begin() as session:
            return service.register(session, project, kind=kind, name=name, artefact=more.pop("artefact"), **more)

    def audited(self, project="p"):
        with self.db.read() as session:
            return {(entry["action"], entry["subject"]) for entry in ledger.audit_log(session, project)}


SCOPES = {"p-write": Scope.write, "p-infer": Scope.infer, "q-write": Scope.write}


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path)
    yield made
    made.db.close()


def digest(data):
    return hashlib.sha256(data).hexdigest()


def upload(desk, files, key="p-write"):
    for data in files.values():
        assert desk("PUT", f"blobs/sha256/{digest(data)}", key, content=data).status_code == 201
    entries = {path: {"size": len(data), "root": digest(data), "chunks": [digest(data)]} for path, data in files.items()}
    answer = desk("POST", "artefacts", key, json={"files": entries})
    assert answer.status_code == 201, answer.text
    return answer.json()["hash"]


@pytest.fixture
def artefact(desk):
    return upload(desk, {"a b/é#?.bin": b"0123456789", "empty": b""})


def test_an_upload_goes_on_where_it_stopped(desk):
    path = f"blobs/sha256/{digest(b'x')}"
    assert desk("HEAD", path).status_code == 404
    assert desk("PUT", path, content=b"x").json() == {"hash": digest(b"x"), "size": 1}
    assert desk("HEAD", path).status_code == 200
    assert desk("HEAD", path, "q-write").status_code == 404


def test_blobs_are_checked(desk):
    wrong = desk("PUT", f"blobs/sha256/{digest(b'x')}", content=b"y")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (400, "invalid_request")
    assert desk("PUT", "blobs/sha256/nonsense", content=b"y").status_code == 400
    assert desk("HEAD", "blobs/sha256/nonsense").status_code == 400
    assert not desk.store.objects


def packed(*blobs, names=None):
    return b"".join(batches.packed(name, data) for name, data in zip(names or map(digest, blobs), blobs, strict=True))


def test_many_small_blobs_come_in_one_request_and_may_come_again(desk):
    blobs = (b"", b"one", b"two", b"one")
    for _ in range(2):
        answer = desk("PUT", "blobs", content=packed(*blobs))
        assert (answer.status_code, answer.json()) == (201, {"blobs": 3})
    assert {key.rpartition("/")[2]: data for key, data in desk.store.objects.items()} == {digest(data): data for data in blobs}
    assert desk("HEAD", f"blobs/sha256/{digest(b'two')}", "q-write").status_code == 404
    assert desk("PUT", "blobs", "p-infer", content=packed(b"x")).status_code == 403
    assert desk("PUT", "blobs", content=b"").json() == {"blobs": 0}


def test_many_small_blobs_are_had_in_one_answer(desk):
    for name, data in ((digest(data), data) for data in (b"", b"one", b"two")):
        desk("PUT", f"blobs/sha256/{name}", content=data)
    asked = ",".join(map(digest, (b"two", b"", b"one")))
    answer = desk("GET", f"blobs?hashes={asked}")
    assert {name: bytes(data) for name, data in batches.unpacked(answer.content)} == {
        digest(data): data for data in (b"two", b"", b"one")
    }
    assert desk("GET", f"blobs?hashes={asked}", "q-write").status_code == 404
    assert desk("GET", f"blobs?hashes={asked}", "p-infer").status_code == 403
    assert desk("GET", "blobs?hashes=nonsense").status_code == 400
    (key,) = (key for key in desk.store.objects if key.endswith(digest(b"two")))
    desk.store.objects[key] = b"bad"
    assert desk("GET", f"blobs?hashes={asked}").json()["error"]["code"] == "damaged"
    desk.store.objects[key] = bytes(batches.MOST + 1)
    assert desk("GET", f"blobs?hashes={asked}").status_code == 413


def test_a_batch_that_is_wrong_anywhere_stores_nothing(desk):
    names = [digest(b"good"), digest(b"bad")]
    for body, said in (
        (packed(b"good", b"bed", names=names), names[1]),
        (packed(b"good", b"bad")[:-1], "ends 2 bytes into the blob"),
        (packed(b"good") + b"x", "within a header"),
    ):
        answer = desk("PUT", "blobs", content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
        assert said in answer.json()["error"]["message"]
    assert desk("PUT", "blobs", content=bytes(batches.MOST + 1)).status_code == 413
    assert not desk.store.objects


@pytest.mark.parametrize("announced", [True, False])
def test_a_blob_has_at_most_one_chunk(desk, announced):
    piece = bytes(1 << 20)

    async def body():
        for _ in range(65):
            yield piece

    headers = {"Content-Length": str(CHUNK + 1)} if announced else {}
    answer = desk("PUT", f"blobs/sha256/{digest(b'')}", content=body(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_a_full_chunk_passes(desk):
    data = bytes(CHUNK)
    assert desk("PUT", f"blobs/sha256/{digest(data)}", content=data).status_code == 201


def test_a_manifest_is_checked_and_audited(desk, artefact):
    assert ("artefact.create", artefact) in desk.audited()
    missing = {"files": {"f": {"size": 1, "root": digest(b"z"), "chunks": [digest(b"z")]}}}
    refused = desk("POST", "artefacts", json=missing)
    assert (refused.status_code, digest(b"z") in refused.json()["error"]["message"]) == (400, True)
    assert desk("POST", "artefacts", content=b"{").status_code == 400
    escape = {"files": {"../f": {"size": 0, "root": digest(b""), "chunks": [digest(b"")]}}}
    assert desk("POST", "artefacts", json=escape).status_code == 400
    assert len(desk.audited()) == 1


def test_the_same_artefact_again_is_the_same(desk, artefact):
    manifest = desk("GET", f"artefacts/{artefact}").json()
    assert desk("POST", "artefacts", json=manifest).json()["hash"] == artefact
    assert set(manifest["files"]) == {"a b/é#?.bin", "empty"}


def test_a_repeated_upload_takes_effect_once(desk, artefact):
    manifest = desk("GET", f"artefacts/{artefact}").json()
    answers = [desk("POST", "artefacts", json=manifest, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert [(answer.status_code, answer.json()["hash"]) for answer in answers] == [(201, artefact)] * 2
    with desk.db.read() as session:
        assert len(ledger.audit_log(session, "p")) == 2


def test_files_come_whole_or_in_parts(desk, artefact):
    path = f"artefacts/{artefact}/files/a%20b/%C3%A9%23%3F.bin"
    whole = desk("GET", path)
    assert (whole.status_code, whole.content, whole.headers["content-length"]) == (200, b"0123456789", "10")
    assert (whole.headers["etag"], whole.headers["x-content-type-options"]) == (f'"{digest(b"0123456789")}"', "nosniff")
    part = desk("GET", path, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"234", "bytes 2-4/10")
    assert desk("GET", path, headers={"Range": "bytes=10-"}).status_code == 416
    empty = desk("GET", f"artefacts/{artefact}/files/empty")
    assert (empty.status_code, empty.content) == (200, b"")


def test_missing_files_say_what_there_is_and_no_path_leaves_the_artefact(desk, artefact):
    for path in ("emtpy", "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd", "a b", "%00"):
        answer = desk("GET", f"artefacts/{artefact}/files/{path}")
        assert answer.status_code == 404
    assert "Did you mean 'empty'?" in desk("GET", f"artefacts/{artefact}/files/emtpy").json()["error"]["message"]
    other = artefact[:-1] + ("0" if artefact[-1] != "0" else "1")
    for unknown in (f"artefacts/{other}", f"artefacts/{other}/files/empty"):
        answer = desk("GET", unknown)
        assert answer.status_code == 404
        assert f"Did you mean '{artefact}'? The newest are: " in answer.json()["error"]["message"]


def test_a_damaged_file_is_an_error_that_names_it_and_no_place(desk, artefact, tmp_path):
    for key in list(desk.store.list("projects/p/blobs")):
        desk.store.put(key, b"012345678!")
    answer = desk("GET", f"artefacts/{artefact}/files/a%20b/%C3%A9%23%3F.bin")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "damaged")
    assert "a b/é#?.bin" in answer.json()["error"]["message"]
    assert str(tmp_path) not in answer.text


@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_names_versions_aliases_and_lineage(desk, artefact, kind):
    one, two = (desk.version(kind=kind, artefact=artefact, task="t", metadata={"n": n}, job=f"j{n}") for n in (1, 2))
    assert [row["latest"] for row in desk("GET", f"{kind}s").json()] == [2]
    moved = desk("PUT", f"{kind}s/m/aliases/best", json={"version": 1})
    assert (moved.status_code, moved.json()["aliases"]) == (200, ["best"])
    shown = desk("GET", f"{kind}s/m").json()
    assert ([v["reference"] for v in shown["versions"]], shown["aliases"]) == (["m@1", "m@2"], {"best": 1})
    version = desk("GET", f"{kind}s/m/versions/best").json()
    assert version == {
        "kind": kind,
        "name": "m",
        "version": 1,
        "reference": "m@1",
        "artefact": artefact,
        "task": "t",
        "metadata": {"n": 1},
        "job": "j1",
        "created": one.created.isoformat(),
        "aliases": ["best"],
    }
    assert desk("GET", f"{kind}s/m/versions/2").json()["reference"] == two.reference
    tree = desk("GET", f"{kind}s/m/versions/2/lineage").json()
    assert (tree["hash"], tree["job"], tree["parents"]) == (artefact, "j2", [])
    assert desk("DELETE", f"{kind}s/m/versions/1").status_code == 409, "an alias points to it"
    extra = desk.version(kind=kind, artefact=artefact)
    gone = desk("DELETE", f"{kind}s/m/versions/{extra.number}")
    assert gone.json() == {"kind": kind, "name": "m", "deleted": [3]}
    assert (f"{kind}.delete", "m@3") in desk.audited()
    gone = desk("DELETE", f"{kind}s/m")
    assert gone.json() == {"kind": kind, "name": "m", "deleted": [1, 2]}
    assert {(f"{kind}.alias", "m@best"), (f"{kind}.delete", "m")} <= desk.audited()
    assert desk("GET", f"{kind}s").json() == []


def test_what_was_found_of_a_version_is_shown_to_its_project(desk, artefact):
    version = desk.version(artefact=artefact)
    inputs = {"original": Parent.of("original", version), "dataset": Parent("dataset", "dataset", "d", 1, artefact)}
    said = {"baseline": "original", "dataset": "dataset", "split": "report", "evidence": {"rows": 3}}
    with desk.db.begin() as session:
        record(session, "p", "j1", said, inputs, artefact)
    [found] = desk("GET", "models/m/versions/1/evaluations").json()
    assert (found["candidate"], found["baseline_reference"], found["evidence"]) == (artefact, "m@1", {"rows": 3})
    assert desk("GET", "models/m/versions/2/evaluations").status_code == 404
    assert desk("GET", "models/m/versions/1/evaluations", "q-write").status_code == 404


def test_datasets_are_no_models(desk, artefact):
    desk.version(kind="dataset", artefact=artefact)
    assert desk("GET", "datasets/m").status_code == 200
    assert desk("GET", "models/m").status_code == 404


def test_what_is_served_is_not_deleted(desk, artefact):
    desk.version(name="served", artefact=artefact)
    answer = desk("DELETE", "models/served")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    assert desk("GET", "models/served").status_code == 200
    assert ("model.delete", "served") not in desk.audited()


@pytest.mark.parametrize("body", [{}, {"version": 0}, {"version": "x"}, {"version": 1, "more": 1}, []])
def test_bad_alias_requests_are_refused(desk, artefact, body):
    desk.version(artefact=artefact)
    assert desk("PUT", "models/m/aliases/best", json=body).status_code == 400


def requests(artefact):
    """Every route of the catalogue: (method, path, what it needs to be asked rightly)."""
    yield "HEAD", f"blobs/sha256/{digest(b'')}", {}
    yield "GET", f"blobs?hashes={digest(b'')}", {}
    yield "GET", f"artefacts/{artefact}", {}
    yield "GET", f"artefacts/{artefact}/files/empty", {}
    for kind in ("datasets", "models"):
        yield "GET", f"{kind}/m", {}
        yield "GET", f"{kind}/m/versions/1", {}
        yield "GET", f"{kind}/m/versions/best/lineage", {}
        yield "PUT", f"{kind}/m/aliases/best", {"json": {"version": 1}}
        yield "DELETE", f"{kind}/m", {}


def test_another_projects_things_are_not_there(desk, artefact):
    for kind in ("dataset", "model"):
        desk.version(kind=kind, artefact=artefact)
    for method, path, options in requests(artefact):
        answer = desk(method, path, "q-write", **options)
        assert answer.status_code == 404, (method, path, answer.text)
    for method, path, options in requests(artefact):
        if "best" not in path or method == "PUT":
            assert desk(method, path, **options).status_code == 200, (method, path)
    assert desk("GET", "models", "q-write").json() == []


def test_a_key_that_only_infers_may_nothing_here(desk, artefact):
    extra = [
        ("PUT", f"blobs/sha256/{digest(b'x')}", {"content": b"x"}),
        ("POST", "artefacts", {"json": {}}),
        ("GET", "models", {}),
    ]
    for method, path, options in [*requests(artefact), *extra]:
        assert desk(method, path, "p-infer", **options).status_code == 403
