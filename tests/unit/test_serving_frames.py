"""The frame decoder takes any pieces, refuses what is no frame, and never holds more than one unfinished frame."""

from __future__ import annotations

import contextlib
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import Invalid
from modelyard.serving import frames as f

IDS = st.integers(0, 2**64 - 1)
TEXT = st.text(max_size=40)
HELD = st.integers(0, 2**31)
USED = st.integers(0, 2**36)
USAGE = st.builds(f.Usage, USED, USED)
FAULT = st.none() | st.builds(f.Fault, TEXT, TEXT)
HEAD = st.dictionaries(TEXT, TEXT, max_size=3)
DATA = st.binary(max_size=300)
FRAMES = st.one_of(
    st.builds(f.CallFrame, IDS, TEXT, TEXT, TEXT, TEXT, TEXT, st.floats(0, 1e12), st.none() | IDS, HEAD, DATA, st.booleans()),
    st.builds(f.BodyFrame, IDS, DATA, st.booleans()),
    st.builds(f.PartFrame, IDS, IDS, IDS, DATA, st.none() | HEAD, st.booleans()),
    st.builds(f.MoreFrame, IDS, st.integers(0, 1 << 36)),
    st.builds(f.GrantFrame, IDS, IDS),
    st.builds(f.EndFrame, IDS, USAGE, HELD, FAULT, st.none() | DATA, st.none() | HEAD),
    st.builds(f.CancelFrame, IDS),
    st.builds(f.HealthFrame, IDS, TEXT, st.dictionaries(TEXT, TEXT, max_size=3), FAULT, HELD, HELD, st.dictionaries(TEXT, IDS)),
    st.builds(f.SubcallFrame, IDS, IDS, TEXT, st.none() | TEXT, TEXT, TEXT, HEAD, DATA, st.booleans()),
)


def wire(*frames: f.Frame) -> bytes:
    buffer = bytearray()
    for frame in frames:
        f.append(buffer, frame)
    return bytes(buffer)


@given(st.lists(FRAMES, max_size=6), st.data())
def test_any_pieces_give_the_same_frames(sent, data):
    stream = wire(*sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder, got = f.Decoder(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:stop])
    assert got == sent


def test_one_byte_at_a_time():
    sent = [f.BodyFrame(1, b"x" * 50_000, more=True), f.CancelFrame(2)]
    decoder, got = f.Decoder(), []
    for byte in wire(*sent):
        got += decoder.feed(bytes([byte]))
    assert got == sent


@given(st.binary(max_size=400))
def test_garbage_is_refused_or_waited_for(garbage):
    decoder = f.Decoder()
    with contextlib.suppress(Invalid):
        decoder.feed(garbage)
    assert len(decoder._rest) <= f.MAX_FRAME + 4


@given(st.lists(FRAMES, min_size=1, max_size=3), st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_never_escapes_as_another_error(sent, at, value):
    stream = bytearray(wire(*sent))
    stream[at % len(stream)] = value
    with contextlib.suppress(Invalid):
        f.Decoder().feed(bytes(stream))


def test_a_replica_of_an_older_platform_is_understood():
    """It outlives the control and the gateway that are replaced, and tells no counters."""
    old = msgspec.msgpack.encode([8, 1, "ready", {}, None, 3, 5])
    [health] = f.Decoder().feed(struct.pack("<I", len(old)) + old)
    assert health == f.HealthFrame(1, "ready", {}, None, 3, 5, {})


def test_an_announced_giant_is_refused_before_it_comes():
    with pytest.raises(Invalid, match="announced a frame of 65537 bytes; at most 65536"):
        f.Decoder().feed(struct.pack("<I", 65_537))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode([99, 1]),
        msgspec.msgpack.encode({"a": 1}),
        msgspec.msgpack.encode([7, "text"]),
        msgspec.msgpack.encode([7, 1]) + b"\x00",
        b"\x92\x07" + b"\x91" * 60_000,
        b"\x93\x08\x01\xa2\xff\xfe",
    ],
    ids=["empty", "reserved", "unknown number", "map", "wrong type", "more behind", "deep", "not text"],
)
def test_what_is_no_frame(payload):
    with pytest.raises(Invalid, match="no frame"):
        f.Decoder().feed(struct.pack("<I", len(payload)) + payload)


def test_a_frame_that_is_too_long_is_not_begun():
    buffer = bytearray(b"kept")
    with pytest.raises(Invalid, match="does not fit"):
        f.append(buffer, f.BodyFrame(1, b"x" * f.MAX_FRAME))
    assert buffer == b"kept"


def test_a_frame_that_cannot_be_encoded_leaves_nothing_behind():
    buffer = bytearray(b"before")
    for frame in (f.GrantFrame(1, 1 << 70), f.CancelFrame(-(1 << 70))):
        with pytest.raises(OverflowError):
            f.append(buffer, frame)
        assert buffer == b"before"


@pytest.mark.parametrize(
    "frame",
    [
        f.EndFrame(1, f.Usage(-1), 0),
        f.EndFrame(1, f.Usage(1 << 40), 0),
        f.EndFrame(1, f.Usage(1, 1 << 40), 0),
        f.EndFrame(1, f.Usage(), -1),
        f.EndFrame(1, f.Usage(), 1 << 40),
        f.HealthFrame(1, queue_depth=-1),
        f.HealthFrame(1, steps=-1),
    ],
)
def test_what_cannot_have_been_is_no_frame(frame):
    buffer = bytearray()
    f.append(buffer, frame)
    with pytest.raises(Invalid):
        f.Decoder().feed(bytes(buffer))
