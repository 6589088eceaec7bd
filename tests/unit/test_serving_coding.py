"""Packed bodies: what headers ask for, and bodies that are not what they say."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib

import pytest

from modelyard.errors import Invalid, TooLarge, Unavailable
from modelyard.serving import coding

LIMIT = 1_000_000


@pytest.mark.parametrize(
    ("accepted", "least"),
    [
        ("", None),
        ("gzip", 1024),
        ("GZip", 1024),
        ("x-gzip", 1024),
        ("gzip, deflate, br, zstd", 1024),
        ("br", None),
        ("*", 1024),
        ("*;q=0", None),
        ("*;q=0.5, gzip;q=0", None),
        ("gzip;q=0", None),
        ("gzip;q=0.000", None),
        ("gzip ; q = 0.001", 1024),
        ("gzip;q=1.000, identity;q=0.5", 1024),
        ("gzip;q=0.5, identity", None),
        ("gzip;q=0.5, identity;q=0.5", 1024),
        ("gzip, identity;q=0", 0),
        ("gzip;q=0.1, *;q=0", 0),
        ("identity;q=0", None),
        ("gzip;q=2", None),
        ("gzip;q=", None),
        ("gzip;level=1", None),
        (",,;;==,gzip", 1024),
        ("gzip," * 1000, None),
    ],
)
def test_what_a_client_accepts(accepted, least):
    assert coding.smallest(accepted) == least


@pytest.mark.parametrize(
    ("given", "packed"), [("", None), ("identity", None), ("gzip", "gzip"), ("Identity, GZIP", "gzip"), ("gzip,br", "gzip, br")]
)
def test_what_is_told_of_a_body(given, packed):
    head = {"content-encoding": given, "accept-encoding": "br"}
    coding.tell(head, 7)
    assert head == ({} if packed is None else {"content-encoding": packed, "body-limit": "7"})


@pytest.mark.parametrize(
    ("accepted", "events"),
    [
        ("", False),
        ("*/*", False),
        ("text/event-stream", True),
        ("Text/Event-Stream; q=0.5, */*", True),
        ("text/event-stream;q=0", False),
        ("application/json, text/event-stream", False),
        ("application/json;q=0.9, text/event-stream", True),
        ("text/event-streams", False),
        ("text/event-stream" + " " * 1000, False),
    ],
)
def test_who_asks_for_events(accepted, events):
    assert coding.wants_events(accepted) == events
    head = {"accept": accepted}
    coding.tell(head, 7)
    assert head == ({"accept": "text/event-stream"} if events else {})


def test_events_are_not_packed():
    assert coding.wants_packing({"gzip-from": "0"}, None, b"")
    assert not coding.wants_packing({"gzip-from": "0"}, {"content-type": "text/event-stream"}, b"x" * 2000)


def test_a_body_comes_out_as_it_was():
    body = random.Random(1).randbytes(100_000)
    for level in (0, 1, 9):
        assert coding.unpack("gzip", LIMIT, gzip.compress(body, level)) == body
    assert coding.unpack("x-gzip", LIMIT, gzip.compress(b"")) == b""
    head, packed = coding.pack(None, body)
    assert head == {"content-type": "application/json", "content-encoding": "gzip", "vary": "accept-encoding"}
    assert gzip.decompress(packed) == body
    assert coding.pack({"content-type": "x", "a": "b"}, body)[0]["content-type"] == "x"


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
def test_the_limit_is_that_of_the_unpacked_body(size):
    packed = gzip.compress(b"\0" * size)
    if size <= LIMIT:
        assert len(coding.unpack("gzip", LIMIT, packed)) == size
    else:
        with pytest.raises(TooLarge, match="larger than 1000000 bytes once it is unpacked"):
            coding.unpack("gzip", LIMIT, packed)


def test_a_bomb_is_refused_and_takes_no_memory():
    bomb = gzip.compress(b"\0" * 300_000_000, 9)
    assert len(bomb) < 400_000
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            coding.unpack("gzip", LIMIT, bomb)
        assert tracemalloc.get_traced_memory()[1] < 5 * LIMIT
    finally:
        tracemalloc.stop()


WHOLE = gzip.compress(b'{"inputs": []}', mtime=0)


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("gzip", b"", "ends too early"),
        ("gzip", WHOLE[:-1], "ends too early"),
        ("gzip", WHOLE[:12], "ends too early"),
        ("gzip", WHOLE + b"x", "expected one member"),
        ("gzip", WHOLE * 2, "expected one member"),
        ("gzip", b'{"inputs": []}', "not the gzip"),
        ("gzip", zlib.compress(b"{}"), "not the gzip"),
        ("gzip", WHOLE[:-8] + bytes(8), "not the gzip"),
        ("br", WHOLE, "Content-Encoding is 'br'; expected gzip, or none"),
        ("gzip, gzip", gzip.compress(WHOLE, mtime=0), "expected gzip, or none"),
    ],
)
def test_what_is_not_gzip_is_said(name, body, says):
    with pytest.raises(Invalid, match=says):
        coding.unpack(name, LIMIT, body)


def test_unpacked_bodies_share_a_bounded_room():
    room, head, packed = coding.Room(), {"content-encoding": "gzip", "body-limit": "1000"}, gzip.compress(b"x" * 1000)
    for _ in range(8):
        room.unpack(head, packed)
    with pytest.raises(Unavailable):
        room.unpack(head, packed)
    room.give(1000)
    room.unpack(head, packed)
