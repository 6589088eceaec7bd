"""Attacks with files and names: paths that lead out, links, names that are commands, bytes that were changed."""

from __future__ import annotations

import ast
import hashlib
import http.server
import json
import os
import threading
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from attack_scene import yard_folder, yard_owner, yard_wire  # noqa: F401 - fixtures
from attack_tools import SOURCE, Wire, matmul
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modelyard
from modelyard.client import Yard
from modelyard.errors import Damaged, Invalid, ModelyardError
from modelyard.storage import Manifest
from modelyard.storage.manifest import FileEntry

EMPTY = hashlib.sha256(b"").hexdigest()
ENTRY = {"size": 0, "root": EMPTY, "chunks": [EMPTY]}
FEW = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# 7: paths

OUT = (
    "../x", "/x", "/etc/passwd", "a/../../x", "a/..", "..", ".", "", "a//b", "a/./b", "\\x", "..\\x", "C:\\x", "a\0b", "a\nb",
    "\x7f", "a/", "~/../x\0", "x" * 256, "/".join(["d"] * 600), "\ud800", "a\u2028b", "./x",
)  # fmt: skip


@pytest.mark.parametrize("path", OUT, ids=repr)
def test_a_manifest_with_a_path_that_leads_out_is_refused(wire: Wire, path: str) -> None:
    body = json.dumps({"files": {path: ENTRY}}).encode()
    reply = wire.ask("POST", "/api/artefacts", body=body)
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b", "a"), ("é", "e\u0301")])
def test_a_manifest_whose_files_would_overlay_is_refused(wire: Wire, paths: tuple[str, ...]) -> None:
    assert wire.ask("POST", "/api/artefacts", body=json.dumps({"files": dict.fromkeys(paths, ENTRY)}).encode()).status == 400
    twice = b'{"files": {"a": %b, "a": %b}}' % ((json.dumps(ENTRY).encode(),) * 2)
    assert wire.ask("POST", "/api/artefacts", body=twice).status == 400


PARTS = st.sampled_from(["a", "..", ".", "", "\\", "\0", "b c", "..a", "...", "é", "\u2024\u2024", "/", "C:", "~", "%2e%2e"])


@FEW
@given(st.lists(st.tuples(st.lists(PARTS | st.text(max_size=4), min_size=1, max_size=4)), min_size=1, max_size=4))
def test_whatever_path_is_accepted_stays_inside(paths: list[tuple[list[str]]]) -> None:
    files = {"/".join(parts): FileEntry(0, EMPTY, (EMPTY,)) for (parts,) in paths}
    try:
        manifest = Manifest(files)
    except Invalid:
        return
    for path in manifest.files:
        assert os.path.normpath(path) == path
        assert not PurePosixPath(path).is_absolute()
        assert ".." not in path.split("/")
        assert path.isprintable() or all(ord(c) > 127 for c in path if not c.isprintable())


def test_no_address_of_a_file_leads_out_of_its_artefact(owner: Yard, wire: Wire, data: Path) -> None:
    artefact = owner.version("matmul")["artefact"]
    secret = (data / "secret").read_text().strip()
    outs = (
        "../secret", "..%2fsecret", "%2e%2e/%2e%2e/secret", "/etc/passwd", "%2fetc%2fpasswd", "..%5csecret", "model.onnx%00",
        ".", "model.onnx/../../secret", "%252e%252e%252fsecret", "....//secret", "%c0%ae%c0%ae/secret",
    )  # fmt: skip
    for out in outs:
        for times in (1, 4, 9):
            reply = wire.ask("GET", f"/api/artefacts/{artefact}/files/{'../' * times if times > 1 else ''}{out}")
            assert reply.status in (400, 404), reply
            assert secret not in reply.body.decode()
            assert b"root:" not in reply.body
    for digest in ("../" + artefact, "..", artefact[:-1], artefact.upper(), f"{artefact}%2f..%2f{artefact}", f"{artefact}%00"):
        for path in (f"/api/artefacts/{digest}", f"/api/artefacts/{digest}/files/model.onnx", f"/api/blobs/sha256/{digest}"):
            assert wire.ask("HEAD" if "blobs" in path else "GET", path).status in (400, 404)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".hidden", "-x", "a\0", "A", "a\n", "x" * 64, "%2e%2e", "", "é"])
def test_a_name_is_no_path(owner: Yard, wire: Wire, name: str) -> None:
    artefact = owner.version("matmul")["artefact"]
    job = {"kind": "import-model", "inputs": {"files": f"artefact:{artefact}"}, "target": {"kind": "model", "name": name}}
    assert wire.json("POST", "/api/jobs", json.dumps(job).encode()).status == 400
    assert wire.json("POST", "/api/deployments", json.dumps({"name": name, "model": "matmul"}).encode()).status == 400
    if name not in ("x" * 64,):
        assert wire.json("POST", "/api/projects", json.dumps({"name": name}).encode()).status == 400


def test_a_file_to_import_lies_in_the_upload(owner: Yard, data: Path, tmp_path: Path) -> None:
    for file in ("../../../secret", "/etc/passwd", str(data / "secret"), "a\0.onnx"):
        with pytest.raises(Invalid):
            owner.import_model("out", matmul(tmp_path / "m.onnx"), file=file)


def test_a_fetch_from_a_hostile_platform_writes_nothing_outside(tmp_path: Path) -> None:
    """The client asks for an artefact by its hash, and the server says that it has files elsewhere."""
    data = json.dumps({"files": {"../../stolen": ENTRY}}, sort_keys=True, separators=(",", ":")).encode()
    version = {"name": "m", "artefact": hashlib.sha256(data).hexdigest(), "versions": [{"version": 1}]}

    class Hostile(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = data if "/artefacts/" in self.path else json.dumps(version).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with Yard(f"http://127.0.0.1:{server.server_address[1]}", "my_x_y") as client, pytest.raises(Invalid, match="stolen"):
            client.fetch("m@1", tmp_path / "a" / "b" / "c")
        server.shutdown()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_link_in_what_a_job_made_is_not_followed(owner: Yard, data: Path, tmp_path: Path) -> None:
    """The module runs in the sandbox and leaves a link beside the model, to a file that control could read."""
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pth")
    for target in (data / "secret", Path("/etc/hostname")):
        plant = f"import os\nos.symlink({str(target)!r}, os.path.join(os.path.dirname(__file__), 'leak'))\n"
        (tmp_path / "model.py").write_text(plant + SOURCE)
        with pytest.raises(Invalid, match="link"):
            owner.import_model("leak", tmp_path / "w.pth", module=f"{tmp_path / 'model.py'}:M")


# 15: names that are commands

SHELL = (
    "$(touch CANARY)", ";touch CANARY;", "`touch CANARY`", "|touch CANARY", "a\ntouch CANARY", "-rf", "--help",
    "&& touch CANARY", "'; touch CANARY; '", "${IFS}touch${IFS}CANARY", "%0atouch CANARY", '"$(touch CANARY)"',
)  # fmt: skip


def test_a_command_is_text_in_every_parameter(owner: Yard, wire: Wire, data: Path, tmp_path: Path) -> None:
    artefact = owner.version("matmul")["artefact"]
    running = []
    for text in SHELL:
        files, target = {"files": f"artefact:{artefact}"}, {"kind": "model", "name": "shell"}
        imported = {"kind": "import-model", "inputs": files, "target": target}
        sent = [
            ("/api/jobs", imported | {"config": {"file": text}}),
            ("/api/jobs", imported | {"config": {"task": text, "labels": [text], "file": "model.onnx"}}),
            ("/api/jobs", imported | {"config": {"module": f"{text}.py:M", "arguments": {text: text}}}),
            ("/api/jobs", imported | {"config": {"transform": {"name": text}}}),
            (
                "/api/jobs",
                {"kind": "import-dataset", "config": {"source": text}, "target": {"kind": "dataset", "name": "shell"}},
            ),
            ("/api/jobs", {"kind": text, "inputs": files, "target": {"kind": "model", "name": text}}),
            ("/api/deployments", {"name": text, "model": text, "engine": text}),
            ("/api/deployments", {"name": "shell", "model": "matmul", "engine": text}),
            ("/api/projects", {"name": text}),
            ("/api/keys", {"scope": "infer", "name": text}),
        ]
        for path, body in sent[:: 1 if text in SHELL[:2] else 3]:
            reply = wire.json("POST", path, json.dumps(body).encode())
            assert reply.status in (201, 400, 404), reply
            if path == "/api/jobs" and reply.status == 201:
                running.append(json.loads(reply.body)["id"])
        file = tmp_path / f"{text.replace('/', '')}.onnx" if "\n" not in text else tmp_path / "n.onnx"
        if text in (SHELL[0], SHELL[5]):  # as the name of an uploaded file it goes all the way through a job
            assert owner.import_model("shell", matmul(file))["name"] == "shell"
    for job in running:
        for _ in owner.follow(job):
            pass
    for folder in (data, tmp_path, Path.cwd()):
        assert not list(folder.rglob("CANARY"))
    assert not (Path.home() / "CANARY").exists()


def test_no_source_asks_a_shell() -> None:
    shells = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell"}
    for path in Path(modelyard.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in shells, f"{path}:{node.lineno}"
                assert not any(word.arg == "shell" for word in node.keywords), f"{path}:{node.lineno}"


# 21: bytes that were changed


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_a_flipped_byte_in_the_store_is_refused_by_name(owner: Yard, wire: Wire, data: Path, tmp_path: Path) -> None:
    path = matmul(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes() + b"\x32\x03own")  # a field of its own: another artefact than the others'
    version = owner.import_model("flipped", path)
    manifest = owner._wire.get(f"/api/artefacts/{version['artefact']}")
    chunk = manifest["files"]["model.onnx"]["chunks"][0]
    blob = data / "store" / "projects" / "default" / "blobs" / chunk[:2] / chunk
    flip(blob)
    address = f"/api/artefacts/{version['artefact']}/files/model.onnx"
    reply = wire.ask("GET", address)
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (500, "damaged")
    assert "model.onnx" in reply.body.decode()
    with pytest.raises(Damaged, match=r"model\.onnx"):
        owner.fetch("flipped@1", tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
    with pytest.raises(ModelyardError, match=r"model\.onnx"):
        owner.deploy("flipped", "flipped")
    owner.undeploy("flipped")
    dataset = _dataset(owner, tmp_path)
    with pytest.raises(Damaged, match=r"model\.onnx"):
        owner.optimize("flipped@1", dataset=dataset)
    flip(blob)
    assert wire.ask("GET", address).status == 200
    flip(data / "store" / "projects" / "default" / "artefacts" / f"{version['artefact']}.json")
    reply = wire.ask("GET", address)
    assert (reply.status, json.loads(reply.body)["error"]["code"]) == (500, "damaged")


def _dataset(owner: Yard, folder: Path) -> str:
    (folder / "t.csv").write_text("a,b\n" + "\n".join(f"{n},{n % 2}" for n in range(40)) + "\n")
    return str(owner.import_dataset("flipped", folder / "t.csv")["reference"])


def test_a_flipped_byte_in_the_cache_is_never_served(owner: Yard, data: Path) -> None:
    """The store is sound, so the copy is replaced before a replica sees it."""
    artefact = owner.version("matmul")["artefact"]
    cached = data / "cache" / "default" / artefact / "model.onnx"
    sound = cached.read_bytes()
    flip(cached)
    owner.deploy("again", "matmul")
    assert cached.read_bytes() == sound
    assert owner.predict("again", inputs={"x": np.ones((1, 3), np.float32)})["y"].tolist() == [[6.0, 9.0]]
    owner.undeploy("again")
