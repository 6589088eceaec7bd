"""What the attack tests share: HTTP sent byte for byte as it is told, the live route table, an ONNX graph, processes."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import onnx
from fastapi.routing import APIRoute, iter_route_contexts
from onnx import TensorProto, helper, numpy_helper

from modelyard.app.control import build
from modelyard.app.migrate import run as migrate
from modelyard.client import Yard
from modelyard.settings import Settings
from modelyard.tenancy.router import Route
from modelyard.testing import InlineExecutor

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "LOCK")
INFER = "/v2/models/matmul/infer"
CALL = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
MATRIX = np.arange(6, dtype=np.float32).reshape(3, 2)

# A module whose weights are one number, `w`.
SOURCE = """
import torch
class M(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))
    def forward(self, x):
        return x * self.w
"""


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


class Wire:
    """HTTP/1.1 over TCP or a Unix socket without a client's good manners; `key` goes as a bearer unless a call says other."""

    def __init__(self, address: str | Path, key: str | None = None) -> None:
        self.address, self.key = address, key

    @property
    def host(self) -> str:
        return "127.0.0.1" if isinstance(self.address, Path) else urlsplit(self.address).netloc

    def connect(self, timeout: float = 20.0) -> socket.socket:
        if isinstance(self.address, Path):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(self.address))  # before there is a timeout: with one, a full queue is refused
            connection.settimeout(timeout)
            return connection
        parts = urlsplit(self.address)
        return socket.create_connection((parts.hostname, parts.port), timeout)

    def raw(self, data: bytes, *, timeout: float = 10.0, end: bool = False) -> bytes:
        """Send bytes and read until the peer closes; `end` closes our half first."""
        got = b""
        with self.connect(timeout) as connection:
            try:
                connection.sendall(data)
                if end:
                    connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65536):
                    got += piece
            except (ConnectionResetError, BrokenPipeError):
                pass
        return got

    def ask(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        key: str | None = "",
        host: str | None = None,
    ) -> Reply:
        """One request on a connection of its own. `key` None: none; '': the wire's own."""
        key = self.key if key == "" else key
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.host if host is None else host}", "Connection: close"]
        lines += [f"Authorization: Bearer {key}"] if key else []
        lines += [f"{name}: {value}" for name, value in headers]
        lines += [f"Content-Length: {len(body)}"] if body or method in ("POST", "PUT", "PATCH") else []
        with self.connect() as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body)
            answer = http.client.HTTPResponse(connection, method=method)
            answer.begin()
            return Reply(answer.status, dict(answer.headers.items()), answer.read())

    def json(self, method: str, target: str, body: bytes, **rest: Any) -> Reply:
        return self.ask(method, target, [("Content-Type", "application/json")], body, **rest)


def routes(folder: Path) -> list[tuple[str, str, Route | None]]:
    """(method, path, route) of everything that control answers, read from the very app it builds."""
    settings = Settings(data=folder)
    migrate(settings, None)
    app = build(settings, InlineExecutor())
    app.state.db.close()
    found: list[tuple[str, str, Route | None]] = []
    for context in iter_route_contexts(list(app.routes)):
        route = context.original_route
        assert isinstance(route, APIRoute), f"{context.path}: not a plain route; say here how it is to be attacked"
        found += [(method, str(context.path), route if isinstance(route, Route) else None) for method in route.methods]
    return found


def matmul(path: Path, external: Mapping[str, str] | None = None) -> Path:
    """An ONNX graph y[batch, 2] = x[batch, 3] @ MATRIX; its matrix in other files where `external` says so."""
    weights = numpy_helper.from_array(MATRIX, "w")
    if external is not None:
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in external.items())
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [weights],
    )
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    return path


def serve_matmul(yard: Yard, folder: Path, name: str) -> str:
    """The graph imported and deployed under `name`; its artefact."""
    version = yard.import_model(name, matmul(folder / "matmul.onnx"))
    yard.deploy(name, name)
    return str(version["artefact"])


def eventually(true: Callable[[], bool], patience: float) -> float:
    """Seconds until `true` holds; fails after `patience`."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < patience, f"not so within {patience:g} s"
        time.sleep(0.01)
    return time.monotonic() - began


def processes_of(data: Path) -> Iterator[tuple[int, list[str]]]:
    """(pid, argv) of every process of the platform in `data`, by the folder in its arguments."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                argv = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if any(str(data) in word for word in argv):
                yield int(folder.name), argv


def memory(data: Path) -> int:
    """Bytes of memory that the platform in `data` holds now."""
    pids = [pid for pid, argv in processes_of(data) if "bwrap" not in argv[0]]
    return sum(int((Path("/proc") / str(pid) / "statm").read_text().split()[1]) for pid in pids) * os.sysconf("SC_PAGE_SIZE")


def still_answers(wire: Wire) -> None:
    """Both planes answer, and rightly."""
    reply = wire.ask("POST", INFER, body=json.dumps(CALL).encode())
    assert (reply.status, json.loads(reply.body)["outputs"][0]["data"]) == (200, [16.0, 22.0])
    assert wire.ask("GET", "/api/whoami").status == 200
