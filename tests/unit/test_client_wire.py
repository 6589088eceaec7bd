from __future__ import annotations

import json
from typing import Any

import httpcore
import pytest

from modelyard import errors
from modelyard.client import wire
from modelyard.client.profile import Profile


@pytest.mark.parametrize("cls", [errors.NotFound, errors.Unsafe, errors.Conflict, errors.Damaged, errors.TimedOut])
def test_an_error_comes_back_as_the_class_it_was_raised_as(cls: type[errors.ModelyardError]) -> None:
    error = wire.error_of(400, json.dumps({"error": {"code": cls.code, "message": "what"}}).encode())
    assert type(error) is cls
    assert error.message == "what"


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (400, errors.Invalid),
        (401, errors.Unauthorized),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (413, errors.TooLarge),
        (503, errors.Unavailable),
        (504, errors.TimedOut),
        (500, errors.Internal),
        (418, errors.Invalid),
    ],
)
def test_the_inference_protocol_s_errors_are_told_by_status(status: int, cls: type[errors.ModelyardError]) -> None:
    error = wire.error_of(status, b'{"error": "no model \'m\'"}')
    assert type(error) is cls
    assert error.message == "no model 'm'"


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b'{"error": null}', b"\xff"])
def test_an_answer_that_is_no_error_of_ours_still_says_its_status(content: bytes) -> None:
    error = wire.error_of(502, content)
    assert type(error) is errors.Internal
    assert "502" in error.message


def test_only_what_changes_nothing_is_sent_twice() -> None:
    refused, broken, slow = httpcore.ConnectError("refused"), httpcore.ReadError("reset"), httpcore.ReadTimeout("slow")
    assert wire.may_repeat(refused, repeatable=False)
    assert wire.may_repeat(broken, repeatable=True)
    assert not wire.may_repeat(broken, repeatable=False)
    assert not wire.may_repeat(slow, repeatable=True)


def test_a_broken_transport_says_what_to_do() -> None:
    assert "modelyard up" in wire.failure(httpcore.ConnectError("refused"), "http://a").message
    assert isinstance(wire.failure(httpcore.ReadTimeout("slow"), "http://a"), errors.TimedOut)
    assert isinstance(wire.failure(httpcore.ReadError("reset"), "http://a"), errors.Unavailable)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://127.8.8.8", True),
        ("http://[::1]:80", True),
        ("http://localhost:1", True),
        ("http://10.0.0.1", False),
        ("https://localhost.example", False),
    ],
)
def test_proxies_are_left_out_on_loopback_alone(url: str, loopback: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "proxy.lan:3128")
    monkeypatch.setenv("no_proxy", "")
    assert wire.is_loopback(url) is loopback
    assert (wire.proxy_of(url) is None) is loopback


def test_the_environment_s_proxy_is_used_with_its_password_but_not_where_it_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://me:p%40ss@proxy.lan:3128")
    monkeypatch.setenv("no_proxy", "inside.lan")
    proxy = wire.proxy_of("https://yard.example")
    assert proxy is not None
    assert (bytes(proxy.url), proxy.auth) == (b"http://proxy.lan:3128/", (b"me", b"p@ss"))
    assert wire.proxy_of("https://yard.inside.lan:8443") is None


class Spoken(httpcore.MockBackend):
    """A network that answers what it is told and keeps what was sent."""

    def __init__(self, *answers: bytes) -> None:
        super().__init__(list(answers))
        self.sent = b""

    def connect_tcp(self, host: str, port: int, **options: Any) -> httpcore.NetworkStream:
        self.address, stream, backend = (host, port), super().connect_tcp(host, port, **options), self

        class Heard(httpcore.MockStream):
            def write(self, buffer: bytes, timeout: float | None = None) -> None:
                backend.sent += buffer

        stream.__class__ = Heard
        return stream


def spoken(url: str, *answers: bytes) -> tuple[wire.Wire, Spoken]:
    network = Spoken(*answers)
    spoken = wire.Wire(Profile(url, "my_key"))
    spoken._pool = httpcore.ConnectionPool(network_backend=network)
    return spoken, network


def test_a_request_goes_with_key_host_query_and_length() -> None:
    client, network = spoken("http://[::1]:8080/below", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", b"null")
    assert client.get("/api/jobs", state="a b", limit=None) is None
    assert network.address == ("::1", 8080)
    assert network.sent.startswith(b"GET /below/api/jobs?state=a+b HTTP/1.1\r\nHost: [::1]:8080\r\n")
    assert b"Authorization: Bearer my_key\r\n" in network.sent
    client, network = spoken("http://127.0.0.1:80", b"HTTP/1.1 201 C\r\nContent-Length: 2\r\n\r\n{}")
    assert client.post("/api/jobs", {"kind": "é"}) == {}
    head, _, body = network.sent.partition(b"\r\n\r\n")
    assert json.loads(body) == {"kind": "é"}
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"Idempotency-Key: " in head
    client, network = spoken("http://127.0.0.1:80", b"HTTP/1.1 200 C\r\nContent-Length: 2\r\n\r\n{}")
    client.post("/api/jobs/x/cancel")
    assert b"Content-Length: 0\r\n" in network.sent


def test_an_answer_keeps_its_headers_in_small_letters_and_an_error_is_raised() -> None:
    client, _ = spoken("http://127.0.0.1:80", b"HTTP/1.1 200 OK\r\nX-Request-ID: 7\r\nContent-Length: 1\r\n\r\nx")
    answer = client.send("GET", "/")
    assert (answer.status, answer.headers["x-request-id"], answer.content) == (200, "7", b"x")
    client, _ = spoken("http://127.0.0.1:80", b"HTTP/1.1 302 Found\r\nLocation: http://evil\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(errors.Invalid, match="302"):
        client.send("GET", "/")
    client, _ = spoken("http://127.0.0.1:80", b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
    assert not client.exists("/api/models/none")


def test_a_body_that_ends_early_is_a_broken_connection() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
    client, _ = spoken("http://127.0.0.1:80", head, b"half")
    with pytest.raises(errors.Unavailable, match="broke"):
        list(client.download("/x", {}))
    client, _ = spoken("http://127.0.0.1:80", head, b'{"a":1}\n{')
    told = client.lines("/x", after=3)
    assert next(told) == {"a": 1}
    with pytest.raises(errors.Unavailable, match="broke"):
        next(told)


def test_lines_are_told_as_soon_as_they_are_whole() -> None:
    pieces = iter([b"one\ntw", b"o", b"\n\nthree\n", b"rest"])
    told = wire.lines_of(pieces)
    assert next(told) == b"one"
    assert next(pieces) == b"o"  # no more was read than that needed
    assert list(wire.lines_of([b"one\ntw", b"o\n", b"", b"\nthree\n"])) == [b"one", b"two", b"", b"three", b""]
