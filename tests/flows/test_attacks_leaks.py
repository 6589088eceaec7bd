"""Attacks that only listen: errors and logs that would tell of the machine, of keys, or of others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from attack_scene import yard_folder, yard_owner, yard_wire  # noqa: F401 - fixtures
from attack_tools import CALL, INFER, Wire, eventually

from modelyard.client import Yard

# 18: what errors tell


BODIES = (
    b"",
    b"{",
    b"[1]",
    b'{"kind":1,"name":[],"scope":{},"files":{"a":1}}',
    b'"\\ud800"',
    b'{"kind":"\\ud800","name":"\\u0000"}',
)
BOOKS = (
    "jobs",
    "jobs/x",
    "keys",
    "keys/x",
    "models/x",
    "deployments",
    "deployments/x",
    "projects",
    "models/matmul/aliases/x",
    "artefacts",
    "blobs/sha256/x",
    "nowhere",
)
QUERIES = (
    f"jobs?limit={10**30}",
    f"audit?before={10**30}",
    f"audit?before=-{10**30}",
    "usage?since=x",
    "usage?group_by=x",
    "usage?since=0001-01-01T00:00:00%2B14:00",
    "usage?until=9999-12-31T23:59:59-14:00",
    "jobs?state=x",
)
RANGES = ("bytes=999-", "bytes=-0", "bytes=5-1", f"bytes={10**30}-", "x")


def provoked(job: str, artefact: str) -> Iterator[tuple[str, str, bytes, list[tuple[str, str]]]]:
    """(method, path, body, headers) of what goes wrong in every way."""
    body = json.dumps(CALL).encode()
    for bad in (b"", b"{", b"\xff", b"null", body[:-3], b'{"inputs":[{}]}'):
        yield "POST", INFER, bad, []
        yield "POST", INFER, bad, [("Inference-Header-Content-Length", "7")]
    yield "POST", INFER, body, [("Content-Encoding", "gzip")]
    for path in ("/v2/models/none/infer", f"{INFER}?x=%ff", "/v2/models/matmul/versions/9/infer"):
        yield "POST", path, body, []
    for method in ("POST", "PUT", "GET", "DELETE"):
        for path in BOOKS:
            for bad in BODIES:
                yield method, f"/api/{path}", bad, [("Content-Type", "application/json")]
    for query in (*QUERIES, f"jobs/{job}/events?after={10**30}"):
        yield "GET", f"/api/{query}", b"", []
    for asked in RANGES:
        yield "GET", f"/api/artefacts/{artefact}/files/model.onnx", b"", [("Range", asked)]


def test_no_error_tells_of_the_machine_or_of_others(owner: Yard, wire: Wire, data: Path) -> None:
    stranger = owner.create_project("stranger")["key"]["key"]
    artefact = owner.version("matmul")["artefact"]
    pepper = (data / "secret").read_text().strip()
    never = [
        (wire.key or "").split("_")[2],
        pepper,
        str(data),
        str(Path(__file__).parents[2]),
        "/usr/",
        "/tmp/",
        "/home/",
        "modelyard.db",
        ".sock",
        "sqlite",
        "sqlalchemy",
        "SELECT ",
        "INSERT ",
        "Traceback",
        'File "',
        "site-packages",
        ".py",
        "0x7f",
    ]
    for method, path, sent, headers in provoked(owner.jobs()[0]["id"], artefact):
        for key in (None, wire.key, stranger):
            reply = wire.ask(method, path, headers, sent, key=key)
            assert reply.status < 500, f"{method} {path} {sent!r}: {reply}"
            if reply.status >= 400:
                said = reply.body.decode()
                told = json.loads(said)["error"] if reply.status != 416 else {}
                assert isinstance(told, str if path.startswith("/v2") else dict)
                named = [] if key != stranger or "matmul" in path or artefact in path else ["matmul", artefact]
                for word in never + named:
                    assert word not in said, f"{method} {path} {sent!r}: {said}"


def test_a_number_that_json_lacks_spoils_no_list(wire: Wire) -> None:
    for odd in ("NaN", "Infinity", "1e999", '"\\ud800"'):
        for body in (
            f'{{"kind": "import-dataset", "timeout": {odd}}}',
            f'{{"kind": "import-dataset", "config": {{"source": {odd}}}}}',
        ):
            assert wire.json("POST", "/api/jobs", body.encode()).status == 400
    assert wire.ask("GET", "/api/jobs").status == 200


def test_no_log_holds_a_key_or_what_a_caller_sent(owner: Yard, wire: Wire, data: Path) -> None:
    made = owner.create_key("write")
    sent = "canary-in-a-prompt"
    given_ = CALL["inputs"][0] | {"name": sent}
    assert wire.ask("POST", INFER, body=json.dumps({"inputs": [given_]}).encode(), key=made["key"]).status == 400
    assert wire.ask("GET", f"/api/jobs?state={sent}", key=made["key"]).status == 400
    wire.ask("GET", "/api/whoami", key=made["key"][:-3])
    owner.revoke_key(made["id"])
    eventually(lambda: wire.ask("GET", "/api/whoami", key=made["key"]).status == 401, 2)
    logs = [path.read_text(errors="replace") for path in (data / "logs").iterdir()]
    assert len(logs) >= 3
    for word in (sent, made["key"].split("_")[2], (wire.key or "").split("_")[2]):
        assert not any(word in log for log in logs), word
