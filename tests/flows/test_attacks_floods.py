"""Attacks that want too much: deep, wide and endless bodies, shapes that multiply, images that swell, clients that dawdle."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attack_scene import yard_folder, yard_owner, yard_wire  # noqa: F401 - fixtures
from attack_tools import CALL, INFER, Wire, memory, still_answers
from PIL import Image

from modelyard.client import Yard

LIMIT = 2_000_000
IDLE = 3
SETTINGS = {"MODELYARD_BODY_LIMIT": str(LIMIT), "MODELYARD_CALL_TIMEOUT": "4", "MODELYARD_IDLE_TIMEOUT": str(IDLE)}


# 13: floods

FLOODS = {
    "brackets": b"[" * 1_900_000,
    "deep inputs": b'{"inputs":' + b"[" * 1_900_000,
    "deep data": b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":' + b"[" * 900_000 + b"]" * 900_000 + b"}]}",
    "deep parameters": b'{"inputs":[],"parameters":{"a":' + b'{"a":' * 300_000 + b"1" + b"}" * 300_000 + b"}}",
    "inputs": b'{"inputs":[' + b",".join([b'{"name":"x","shape":[1],"datatype":"FP32"}'] * 40_000) + b"]}",
    "outputs": json.dumps(CALL | {"outputs": [{"name": "y"}] * 100_000}).encode(),
    "dims": json.dumps({"inputs": [CALL["inputs"][0] | {"shape": [1] * 600_000}]}).encode(),
    "digits": b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[' + b"9" * 1_900_000 + b"]}]}",
    "names": json.dumps({"inputs": [CALL["inputs"][0] | {"name": "x" * 1_900_000}]}).encode(),
    "nothing": b"\0" * 1_900_000,
}
SHAPES = (
    [2**62, 3],
    [2**63, 3],
    [2**64, 3],
    [10**30, 3],
    [2**31, 2**33],
    [-1, 3],
    [0, 3],
    [1.5, 3],
    ["1", 3],
    [True, 3],
    [[1], 3],
    None,
    {},
    "1,3",
    [3],
    [1, 3, 1],
    [2**40, 3],
    [float("nan"), 3],
)
NUMBERS = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"1" + b"0" * 400,
    b"0x1",
    b"1_0",
    b"01",
    b"null",
    b'"1"',
    b"true",
    b"{}",
    b"",
)


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_json_is_refused_small_and_soon(wire: Wire, data: Path, flood: str) -> None:
    still_answers(wire)
    before, began = memory(data), time.monotonic()
    reply = wire.ask("POST", INFER, body=FLOODS[flood])
    assert reply.status == 400
    assert len(reply.body) < 4096
    assert time.monotonic() - began < 3
    assert memory(data) - before < 300 << 20
    still_answers(wire)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_shape_allocates(wire: Wire, data: Path, shape: Any) -> None:
    before = memory(data)
    given_ = CALL["inputs"][0] | {"shape": shape}
    binary = {name: value for name, value in given_.items() if name != "data"} | {"parameters": {"binary_data_size": 2**40}}
    for body in (given_, binary):
        text = json.dumps({"inputs": [body]}).encode()
        reply = wire.ask("POST", INFER, [("Inference-Header-Content-Length", str(len(text)))], text)
        assert reply.status == 400
    assert memory(data) - before < 100 << 20


@pytest.mark.parametrize("number", NUMBERS)
def test_no_number_is_taken_for_another(wire: Wire, number: bytes) -> None:
    assert wire.ask("POST", INFER, body=json.dumps(CALL).encode().replace(b"[1, 2", b"[%b, 2" % number)).status == 400


def test_ten_million_numbers_are_too_many(wire: Wire, data: Path) -> None:
    before = memory(data)
    head = f"POST {INFER} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {wire.key}\r\n".encode()
    said = wire.raw(head + b"Content-Length: 20000100\r\n\r\n" + b'{"inputs":[{"data":[' + b"1," * 1_000_000)
    assert said.startswith(b"HTTP/1.1 413 ")
    chunks = b"10000\r\n" + b"1," * 32768 + b"\r\n"
    assert wire.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks * 160).startswith(b"HTTP/1.1 413 ")
    assert memory(data) - before < 100 << 20
    still_answers(wire)


SWOLLEN = b"[" + b"[]," * 16_000_000 + b"1]"  # 48 MB that parse to a gigabyte


@pytest.mark.parametrize("path", ["/api/jobs", "/api/keys", "/api/deployments", "/api/artefacts"])
def test_a_flood_of_json_at_the_books_is_refused_small_and_soon(wire: Wire, data: Path, path: str) -> None:
    floods = [b"[" * 900_000, b'{"a":' * 150_000, b'{"files":{"a":{"size":' + b"9" * 900_000 + b"}}}"]
    before = memory(data)
    for body in [*floods, *([SWOLLEN] if path != "/api/artefacts" else [])]:
        began = time.monotonic()
        reply = wire.json("POST", path, body)
        assert reply.status == (413 if body is SWOLLEN else 400)
        assert len(reply.body) < 4096
        assert time.monotonic() - began < 3
    assert memory(data) - before < 100 << 20
    still_answers(wire)


def bomb(width: int, height: int, packed: bytes = b"") -> bytes:
    """A small PNG that says it is large."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("L", (8, 8)).save(out, "PNG")
    return out.getvalue()


def test_images_that_swell_are_refused(owner: Yard, wire: Wire, data: Path, tmp_path: Path) -> None:
    """A deployment that takes images is sent bombs; the model behind it is the smallest that takes them."""
    (tmp_path / "model.py").write_text(
        "import torch\nclass M(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.w = torch.nn.Parameter(torch.ones(64, 2))\n"
        "    def forward(self, pixels):\n        return pixels.flatten(1) @ self.w\n"
    )
    header = json.dumps({"w": {"dtype": "F32", "shape": [64, 2], "data_offsets": [0, 512]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 512)
    transform = {"name": "image", "height": 8, "width": 8, "channels": 1, "labels": ["a", "b"], "output": "output"}
    module = f"{tmp_path / 'model.py'}:M"
    owner.import_model(
        "images",
        tmp_path / "w.safetensors",
        module=module,
        inputs=["pixels:FP32[-1,1,8,8]"],
        task="image-classification",
        labels=["a", "b"],
        transform=transform,
    )
    owner.deploy("images", "images")

    def send(images: list[bytes]) -> int:
        texts = [base64.b64encode(image).decode() for image in images]
        body = {"inputs": [{"name": "image", "shape": [len(texts)], "datatype": "BYTES", "data": texts}]}
        return wire.ask("POST", "/v2/models/images/infer", body=json.dumps(body).encode()).status

    assert send([picture()]) == 200
    before = memory(data)
    swollen = zlib.compress(b"\0" * 50_000_000, 9)
    for image in (
        bomb(50_000, 50_000),
        bomb(2**31 - 1, 2**31 - 1),
        bomb(0, 1),
        bomb(7000, 7000, swollen),
        bomb(6000, 6000),
        picture()[:40],
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a" + b"\xff" * 8,
        b"",
        b"II*\0" + b"\0" * 99,
    ):
        assert send([image]) == 400
    send([bomb(8, 8, swollen)])  # its pixels are there; what swells behind them is never unpacked
    assert send([picture()] * 5 + [bomb(50_000, 50_000)]) == 400
    assert send([bomb(6000, 6000, zlib.compress(b"\0" * 36_006_000, 9))] * 35) == 400  # each is allowed, all are not
    assert memory(data) - before < 400 << 20
    assert send([picture()]) == 200
    owner.undeploy("images")


def head(path: str, length: int, key: str | None = None) -> bytes:
    who = f"Authorization: Bearer {key}\r\n" if key else ""
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{who}Content-Length: {length}\r\n\r\n".encode()


# What dawdlers send at first, given a key, and the status they are shown out with.
DAWDLERS: dict[str, tuple[Callable[[str], bytes], bytes]] = {
    "calls": (lambda key: head(INFER, 1000, key) + b"{", b"408"),
    "jobs without a key": (lambda _: head("/api/jobs", 1000) + b"{", b"408"),
    "jobs": (lambda key: head("/api/jobs", 1000, key) + b"{", b"408"),
    "uploads without a key": (lambda _: head("/api/jobs", 10**7) + b"x" * 70_000, b"401"),
    "uploads": (lambda key: head("/api/blobs", 10**7, key) + b"x" * 70_000, b"408"),
}


@pytest.mark.parametrize("dawdler", DAWDLERS)
def test_slow_bodies_end_and_hold_nobody_up(wire: Wire, dawdler: str) -> None:
    """More clients that never finish than the gateway has connections to control; half of them drip. Others are served
    meanwhile, and those are shown out."""
    begin, status = DAWDLERS[dawdler]
    assert wire.key
    slow = [wire.connect() for _ in range(220)]
    for connection in slow:
        connection.sendall(begin(wire.key))
    times, began = [], time.monotonic()
    while time.monotonic() - began < 3.8:  # the gateway's watch over control is more patient than 3 s
        for connection in slow[::2]:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"x")
        started = time.monotonic()
        still_answers(wire)
        assert json.loads(wire.ask("GET", "/readyz").body) == {"status": "ready", "control": "ok", "database": "ok"}
        times.append(time.monotonic() - started)
        time.sleep(0.1)
    assert sorted(times)[len(times) * 9 // 10] < 0.5
    for connection in slow:
        connection.settimeout(10)
        assert connection.recv(65536).startswith(b"HTTP/1.1 " + status)
        connection.close()
    assert time.monotonic() - began < 12


def test_half_a_head_and_then_silence_is_ended(wire: Wire) -> None:
    slow = [wire.connect() for _ in range(50)]
    for number, connection in enumerate(slow):
        connection.sendall(head(INFER, 1000, wire.key)[: 10 + number])
    began = time.monotonic()
    still_answers(wire)
    for connection in slow:
        assert connection.recv(65536) == b""
        connection.close()
    assert IDLE - 1 < time.monotonic() - began < IDLE + 5


@pytest.mark.parametrize("download", [False, True])
def test_who_never_reads_the_answers_is_ended(owner: Yard, wire: Wire, data: Path, tmp_path: Path, download: bool) -> None:
    if download:
        (tmp_path / "large").write_bytes(bytes(40 << 20))
        path = f"/api/artefacts/{owner.upload(tmp_path / 'large')}/files/large"
        ask = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {wire.key}\r\n\r\n".encode()
    else:
        rows = json.dumps({"inputs": [CALL["inputs"][0] | {"shape": [10_000, 3], "data": [1] * 30_000}]}).encode()
        ask = head(INFER, len(rows), wire.key) + rows
    before = memory(data)
    with wire.connect(timeout=20) as connection:
        with pytest.raises(ConnectionError):  # a TimeoutError is none
            connection.sendall(ask * ((100 << 20) // len(ask)))
        assert memory(data) - before < 100 << 20
    still_answers(wire)
