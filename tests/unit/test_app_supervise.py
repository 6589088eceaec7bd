from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from modelyard.app import supervise
from modelyard.app.process import SETTINGS
from modelyard.errors import Conflict, Crashed, Invalid
from modelyard.settings import Settings


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("", "127.0.0.1"),
        ("::", "[::1]"),
        ("fe80::1", "[fe80::1]"),
        ("yard.lan", "yard.lan"),
    ],
)
def test_a_host_is_shown_as_a_client_here_reaches_it(host: str, shown: str) -> None:
    assert supervise._shown(host) == shown


def test_settings_travel_whole_and_not_where_others_can_read_them(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, database="postgresql://me:secret@db/yard")
    assert Settings.model_validate_json(supervise.environment(settings)[SETTINGS]) == settings
    words = supervise.command("gateway", settings, "7")
    assert words[-3:] == ["gateway", str(tmp_path), "7"]
    assert not any("secret" in word for word in words)


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        (json.dumps({"error": {"code": "conflict", "message": "a newer schema"}}), Conflict, "newer schema"),
        ("Killed", Crashed, "exit 9"),
        ("", Crashed, "exit 9"),
        ('["error"]', Crashed, "exit 9"),
    ],
)
def test_what_the_migration_failed_with_is_raised_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, error: type[Exception], message: str
) -> None:
    def ran(words: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(words, 9, said.encode())

    monkeypatch.setattr(supervise.subprocess, "run", ran)
    with pytest.raises(error, match=message):
        supervise._prepare(Settings(data=tmp_path), "http://127.0.0.1:1")


def test_the_port_for_grpc_is_the_next_one_and_kept(tmp_path: Path) -> None:
    with contextlib.ExitStack() as held:
        listener = supervise.bind(Settings(data=tmp_path, port=0, grpc=True), held)
        host, port = listener.getsockname()
        with pytest.raises(OSError, match="in use"):
            socket.create_server((host, port + 1)).close()
        with socket.socket() as gateway:  # as gRPC listens
            gateway.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            gateway.bind((host, port + 1))
            gateway.listen()
            socket.create_connection((host, port + 1)).close()
            gateway.accept()[0].close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port + 1))


@pytest.mark.parametrize("shared", [False, True])
def test_a_taken_port_for_grpc_is_refused_and_named(tmp_path: Path, shared: bool) -> None:
    with contextlib.ExitStack() as held:
        listener = supervise.bind(Settings(data=tmp_path, port=0, grpc=True), held)
        port = listener.getsockname()[1]
    with socket.create_server(("127.0.0.1", port + 1), reuse_port=shared), contextlib.ExitStack() as held:
        with pytest.raises(Conflict, match=rf"Port {port + 1} of 127.0.0.1, for gRPC, cannot be had"):
            supervise.bind(Settings(data=tmp_path, port=port, grpc=True), held)
        supervise.bind(Settings(data=tmp_path, port=port), held)  # without gRPC nobody asks for it


def test_grpc_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(Invalid, match=r"modelyard\[grpc\]"), contextlib.ExitStack() as held:
        supervise.bind(Settings(data=tmp_path, port=0, grpc=True), held)
