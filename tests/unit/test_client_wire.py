from __future__ import annotations

import json

import httpx
import pytest

from modelyard import errors
from modelyard.client import wire


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
    refused, broken, slow = httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.ReadTimeout("slow")
    assert wire.may_repeat(refused, repeatable=False)
    assert wire.may_repeat(broken, repeatable=True)
    assert not wire.may_repeat(broken, repeatable=False)
    assert not wire.may_repeat(slow, repeatable=True)


def test_a_broken_transport_says_what_to_do() -> None:
    assert "modelyard up" in wire.failure(httpx.ConnectError("refused"), "http://a").message
    assert isinstance(wire.failure(httpx.ReadTimeout("slow"), "http://a"), errors.TimedOut)
    assert isinstance(wire.failure(httpx.ReadError("reset"), "http://a"), errors.Unavailable)


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
def test_proxies_are_left_out_on_loopback_alone(url: str, loopback: bool) -> None:
    assert wire.is_loopback(url) is loopback
