"""Attacks on what belongs to others, and on keys that are no more: every verb on another project's every thing, lists, error
texts, uploads, repeats; revoked keys in every process and open streams. Driven by the live route table."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

from attack_scene import CALL, CANARY, GATEWAYS, PREDICT, Scene, yard_scene  # noqa: F401 - a fixture
from attack_tools import eventually
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = st.sampled_from([CANARY[:-1], CANARY[:6], CANARY.upper(), f"{CANARY}x", "*", "%25", "_", "%"]) | st.text(max_size=8)
PLACES = (
    "/api/models/{}", "/api/datasets/{}", "/api/models/{}/versions/1/lineage", "/api/jobs/{}", "/api/keys/{}",
    "/api/deployments/{}", "/v2/models/{}", "/v2/models/{}/versions/1", "/api/artefacts/{}", "/api/jobs?state={}",
    "/api/usage?group_by={}",
)  # fmt: skip


# 4: another tenant's things


def bodies(scene: Scene) -> dict[tuple[str, str], list[Any]]:
    """What a stranger sends to reach the owner's things, for each route that takes a body."""
    job = {"kind": "train", "config": {"recipe": "image-classifier"}, "target": {"kind": "model", "name": "mine"}}
    code = {"kind": "import-model", "target": {"kind": "model", "name": "mine"}}
    return {
        ("POST", "/api/jobs"): [
            job | {"inputs": {"dataset": f"dataset:{CANARY}@1"}},
            job | {"inputs": {"dataset": f"dataset:{CANARY}@{CANARY}"}},
            code | {"inputs": {"files": f"artefact:{scene.artefact}"}},
            code | {"inputs": {"files": f"model:{CANARY}@1"}},
        ],
        ("POST", "/api/deployments"): [{"name": "mine", "model": f"{CANARY}@1"}, {"name": CANARY, "model": CANARY}],
        ("POST", "/api/deployments/{name}/feedback"): [{"items": [{"version": "1", "score": 1.0}]}],
        ("PUT", "/api/datasets/{name}/aliases/{alias}"): [{"version": 1}],
        ("PUT", "/api/models/{name}/aliases/{alias}"): [{"version": 1}],
        ("PUT", "/api/projects/{name}/gate"): [{"gate": {"max_accuracy_drop": 1.0}}, {"gate": None}],
    }


# Routes that make or list a caller's own things, and so do not answer 404: tried one by one below.
OWN = {
    ("POST", "/api/keys"), ("GET", "/api/keys"), ("POST", "/api/projects"), ("GET", "/api/projects"), ("GET", "/api/whoami"),
    ("GET", "/api/usage"), ("GET", "/api/audit"), ("PUT", "/api/blobs"), ("PUT", "/api/blobs/sha256/{digest}"),
    ("POST", "/api/artefacts"),
    ("GET", "/api/datasets"), ("GET", "/api/models"), ("GET", "/api/jobs"), ("GET", "/api/jobs/underway"),
    ("GET", "/api/deployments"),
    ("GET", "/api/openapi.json"), ("GET", "/metrics"),
}  # fmt: skip


def test_every_verb_on_another_projects_thing_finds_nothing(scene: Scene) -> None:
    sent, tried = bodies(scene), 0
    before = json.dumps([scene.owner.models(), scene.owner.datasets(), scene.owner.deployments(), scene.owner.keys()])
    for method, path, route in scene.table:
        if route is None or (method, path) in OWN:
            continue
        for body in sent.get((method, path), [None]):
            reply = scene.wire.json(method, scene.path(path), json.dumps(body or {}).encode(), key=scene.stranger)
            assert reply.status == 404, f"{method} {path} {body}: {reply}"
            tried += 1
    assert tried >= 25
    assert before == json.dumps([scene.owner.models(), scene.owner.datasets(), scene.owner.deployments(), scene.owner.keys()])


def test_the_data_plane_finds_nothing_of_another_project(scene: Scene) -> None:
    for path in GATEWAYS[3:]:
        body = {"infer": CALL, "predict": PREDICT}.get(path.replace(":", "/").rpartition("/")[2], b"")
        method = "POST" if body else "GET"
        assert scene.wire.ask(method, scene.path(path), body=body, key=scene.stranger).status == 404
        assert scene.wire.ask(method, scene.path(path), body=body).status == 200
    for name in (f"default.{CANARY}", f"default%2f{CANARY}", f"default:{CANARY}", f"{CANARY}%00", f"..%2f{CANARY}"):
        assert scene.wire.ask("POST", f"/v2/models/{name}/infer", body=CALL, key=scene.stranger).status == 404


def test_lists_sums_and_metrics_hold_nothing_of_another_project(scene: Scene) -> None:
    scene.wire.ask("POST", f"/v2/models/{CANARY}/infer", body=CALL)
    for method, path in [*sorted(OWN), ("POST", "/v2/repository/index")]:
        if method == "GET" or path.startswith("/v2"):
            reply = scene.wire.ask(method, path, key=scene.stranger)
            assert reply.status == (403 if path == "/api/projects" else 200)
            for secret in (CANARY, scene.artefact, scene.job, scene.spare):
                assert secret not in reply.body.decode(), f"{method} {path} shows {secret}"
    mine = scene.wire.json("POST", "/api/projects", b'{"name": "more"}', key=scene.stranger)
    assert mine.status == 403


def test_uploads_tell_nothing_of_what_others_have(scene: Scene) -> None:
    """A blob is a project's own: no probing for content, no artefact of another's blobs."""
    unknown = hashlib.sha256(b"nobody has this").hexdigest()

    def asked(blob: str) -> tuple[int, int, str]:
        head = scene.wire.ask("HEAD", f"/api/blobs/sha256/{blob}", key=scene.stranger)
        entry = {"size": 126, "root": blob, "chunks": [blob]}
        made = scene.wire.ask("POST", "/api/artefacts", body=json.dumps({"files": {"a": entry}}).encode(), key=scene.stranger)
        return head.status, made.status, made.body.decode().replace(blob, "BLOB")

    assert asked(scene.blob) == asked(unknown)
    assert asked(unknown)[:2] == (404, 400)


def test_a_repeated_request_of_another_is_another_request(scene: Scene) -> None:
    head = [("Idempotency-Key", "the-same"), ("Content-Type", "application/json")]
    job = json.dumps({"kind": "import-model", "inputs": {"files": f"artefact:{scene.artefact}"},
                      "target": {"kind": "model", "name": f"{CANARY}-2"}}).encode()  # fmt: skip
    assert scene.wire.ask("POST", "/api/jobs", head, job).status == 201
    reply = scene.wire.ask("POST", "/api/jobs", head, job, key=scene.stranger)
    assert (reply.status, "Idempotency-Replayed" in reply.headers) == (404, False)


@FEW
@given(
    name=NAMES,
    where=st.sampled_from(PLACES),
    method=st.sampled_from(["GET", "DELETE", "HEAD"]),
)
def test_no_error_names_another_projects_things(scene: Scene, name: str, where: str, method: str) -> None:
    target = where.format("".join(f"%{byte:02x}" for byte in name.encode("utf-8", "surrogatepass")))
    reply = scene.wire.ask(method, target, key=scene.stranger)
    assert reply.status < 500, f"{method} {target}: {reply}"
    said = reply.body.decode().replace(f"{CANARY}x", "")
    assert CANARY not in said, f"{method} {target}: {said}"
    assert scene.artefact not in said


# 5: stale keys


def test_a_revoked_key_is_refused_within_a_second_in_every_process(scene: Scene) -> None:
    made = scene.owner.create_key("admin")
    asks = [("GET", "/api/whoami", b""), ("POST", f"/v2/models/{CANARY}/infer", CALL), ("GET", f"/v2/models/{CANARY}", b"")]
    key = made["key"]
    assert all(scene.wire.ask(method, path, body=body, key=key).status == 200 for method, path, body in asks)
    assert scene.control.ask("GET", "/api/whoami", key=key).status == 200
    stop, failures = threading.Event(), []

    def busy() -> None:  # a key in use is in every cache
        while not stop.is_set():
            for method, path, body in asks:
                if scene.wire.ask(method, path, body=body, key=key).status not in (200, 401):
                    failures.append(path)

    user = threading.Thread(target=busy)
    user.start()
    scene.owner.revoke_key(made["id"])
    began = time.monotonic()
    for method, path, body in asks:
        eventually(lambda m=method, p=path, b=body: scene.wire.ask(m, p, body=b, key=key).status == 401, 1.5)  # type: ignore[misc]
    assert time.monotonic() - began < 1.0
    assert scene.control.ask("GET", "/api/whoami", key=key).status == 401
    stop.set()
    user.join()
    assert not failures


def test_an_open_stream_ends_with_its_key(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import time\ntime.sleep(30)\n")
    (tmp_path / "w.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    made = scene.owner.create_key("write")
    job = scene.owner.import_model("slow", tmp_path / "w.safetensors", module=f"{tmp_path / 'model.py'}:M", wait=False)["id"]
    ended = threading.Event()

    def follow() -> None:
        try:
            scene.wire.ask("GET", f"/api/jobs/{job}/events?follow=true", key=made["key"])
        finally:
            ended.set()

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    eventually(lambda: scene.owner.job(job)["state"] == "running", 20)
    assert not ended.is_set()
    scene.owner.revoke_key(made["id"])
    assert ended.wait(1.0)
    assert scene.owner.cancel(job)["id"] == job
    follower.join()
