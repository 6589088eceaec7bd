"""The gRPC port under what no client of gRPC sends: garbage, halves, drops of a request; and a replica with too much to do."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from test_serving_dataplane import INFER, Yard, request_of, rows, until
from test_serving_grpc import call, message

from modelyard.serving.grpc.server import SERVICE

PATIENCE = 2.0  # seconds a call may take
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    made = Yard(tmp_path_factory.mktemp("wires"), grpc=True, call_timeout=PATIENCE)
    try:
        made.replica("one", calls=1)
        made.process = made.gateway()
        yield made
    finally:
        made.close()


def ask(yard: Yard, **options: float) -> bytes:
    """A good call, on a connection of its own."""
    with grpc.insecure_channel(f"127.0.0.1:{yard.port + 1}") as channel:
        return call(channel, "ModelInfer", message(rows(1)).SerializeToString(), yard.key, **options)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def head(yard: Yard) -> bytes:
    """HEADERS of a call, every field as a literal."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/{SERVICE}/ModelInfer",
        ":authority": "x",
        "te": "trailers",
        "content-type": "application/grpc",
        "authorization": f"Bearer {yard.key}",
    }
    block = b"".join(b"\x10" + bytes((len(n),)) + n.encode() + bytes((len(v),)) + v.encode() for n, v in fields.items())
    return frame(HEADERS, END_HEADERS, 1, block)


class Raw:
    """A connection to the gRPC port that says what it likes."""

    def __init__(self, yard: Yard, *said: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", yard.port + 1), timeout=10)
        self._read = b""
        self.say(*said)

    def say(self, *said: bytes) -> None:
        self.socket.sendall(b"".join(said))

    def frames(self, patience: float) -> Iterator[tuple[int, int, int]]:
        """(kind, flags, stream) of what is answered, until the connection ends or the patience does."""
        gives_up = time.monotonic() + patience
        while (left := gives_up - time.monotonic()) > 0:
            while len(self._read) >= 9 and len(self._read) >= (size := 9 + int.from_bytes(self._read[:3])):
                yield self._read[3], self._read[4], int.from_bytes(self._read[5:9])
                self._read = self._read[size:]
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                return
            self._read += data

    def ended(self, patience: float) -> float:
        """Seconds until the call of stream 1 was answered or reset."""
        began = time.monotonic()
        for kind, flags, stream in self.frames(patience):
            if stream == 1 and (kind == RST or (kind == HEADERS and flags & END_STREAM)):
                return time.monotonic() - began
        raise AssertionError("the call was never ended")


def descriptors(yard: Yard) -> int:
    return len(list(Path(f"/proc/{yard.process.pid}/fd").iterdir()))


def test_garbage_ends_its_own_connection_and_nothing_else(yard: Yard) -> None:
    ask(yard)
    before, noise = descriptors(yard), random.Random(1)
    said = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise.randbytes(500),  # a TLS hello
        PREFACE + frame(SETTINGS) + b"\xff" * 100,  # a frame longer than any may be
        PREFACE + frame(SETTINGS) + frame(HEADERS, END_HEADERS, 1, noise.randbytes(200)),
        PREFACE + frame(SETTINGS) + frame(DATA, 0, 1, b"x"),  # of a stream that nobody opened
        PREFACE + frame(SETTINGS) + frame(SETTINGS, 0, 5, b"x" * 7),
        PREFACE[:10],
        *(noise.randbytes(noise.randrange(1, 2000)) for _ in range(30)),
        *(PREFACE + frame(SETTINGS) + noise.randbytes(noise.randrange(1, 2000)) for _ in range(30)),
    ]
    for data in said:
        with contextlib.suppress(ConnectionError), contextlib.closing(Raw(yard, data).socket) as connection:
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                while connection.recv(1 << 16):
                    pass
    assert ask(yard)
    assert yard.process.poll() is None
    until(lambda: descriptors(yard) <= before + 2)


def test_malformed_messages_of_a_call_by_hand(yard: Yard) -> None:
    """A length-prefixed message that lies about its length, is of an unknown kind, or is none."""
    whole = message(rows(1)).SerializeToString()
    for data in (
        b"\x00" + struct.pack(">I", 1 << 31) + whole,
        b"\x07" + struct.pack(">I", len(whole)) + whole,
        b"\x00\x00",
        b"",
    ):
        raw = Raw(yard, PREFACE, frame(SETTINGS), head(yard), frame(DATA, END_STREAM, 1, data))
        with contextlib.closing(raw.socket):
            assert raw.ended(PATIENCE + 3) < PATIENCE + 1, data[:5]
    assert ask(yard)


def test_half_open_clients_are_shown_out_and_hold_nobody_up(yard: Yard) -> None:
    before = descriptors(yard)
    silent = [Raw(yard, PREFACE, frame(SETTINGS)) for _ in range(30)]
    calling = [Raw(yard, PREFACE, frame(SETTINGS), head(yard)) for _ in range(30)]  # no message ever comes
    began = time.monotonic()
    assert ask(yard, timeout=1.0)
    with ThreadPoolExecutor(30) as pool:
        ended = list(pool.map(lambda raw: raw.ended(PATIENCE + 4), calling))
    assert max(ended) > PATIENCE * 0.5
    assert time.monotonic() - began < PATIENCE + 2
    for raw in (*silent, *calling):
        raw.socket.close()
    until(lambda: descriptors(yard) <= before + 2)
    assert ask(yard)


def test_a_message_that_comes_drop_by_drop_is_not_waited_for_for_ever(yard: Yard) -> None:
    whole = message(rows(1)).SerializeToString()
    data = b"\x00" + struct.pack(">I", len(whole)) + whole
    raw, began = Raw(yard, PREFACE, frame(SETTINGS), head(yard)), time.monotonic()
    with contextlib.closing(raw.socket), contextlib.suppress(ConnectionError):
        for at in range(len(data)):
            if time.monotonic() - began > PATIENCE + 0.5:
                break
            raw.say(frame(DATA, 0, 1, data[at : at + 1]))
            if at % 10 == 0:
                assert ask(yard, timeout=1.0)
            time.sleep(0.05)
        assert raw.ended(2.0) < 1.0
    assert ask(yard)


def test_a_client_that_takes_no_answer_holds_nobody_up(yard: Yard) -> None:
    whole = message(rows(1)).SerializeToString()
    body = frame(DATA, END_STREAM, 1, b"\x00" + struct.pack(">I", len(whole)) + whole)
    no_window = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 0))
    stuck = []
    for _ in range(20):  # one after the other: the replica takes one at a time
        stuck.append(Raw(yard, PREFACE, no_window, head(yard), body))
        time.sleep(0.02)
    assert ask(yard, timeout=1.0)
    for raw in stuck:
        raw.socket.close()
    assert ask(yard)


def test_a_replica_with_too_much_to_do_refuses_at_once_by_both_protocols(yard: Yard) -> None:
    """The replica takes one call at a time; calls gather while it is stopped."""
    auth, whole = {"Authorization": f"Bearer {yard.key}"}, message(rows(1)).SerializeToString()
    before = yard.settled()
    yard.replicas["one"].send_signal(19)  # SIGSTOP
    try:
        with grpc.insecure_channel(f"127.0.0.1:{yard.port + 1}") as channel, ThreadPoolExecutor(4) as pool:
            method = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            calls = [method.future(whole, metadata=[("x-api-key", yard.key)], timeout=15) for _ in range(4)]
            posts = [pool.submit(httpx.post, yard.url + INFER, json=request_of(rows(1)), headers=auth) for _ in range(4)]
            time.sleep(0.7)
            yard.replicas["one"].send_signal(18)  # SIGCONT
            codes = [one.code() for one in calls]
            answers = [one.result() for one in posts]
    finally:
        yard.replicas["one"].send_signal(18)
    refused = [one for one in calls if one.code() != grpc.StatusCode.OK]
    assert {one.code() for one in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}, codes
    for one in refused:
        assert one.details() == "1 calls wait here already, as many as may; try again shortly."
        assert dict(one.trailing_metadata())["retry-after"] == "1"
    over = [answer for answer in answers if answer.status_code != 200]
    for answer in over:
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert "as many as may" in answer.json()["error"]
    assert len(refused) + len(over) == 7
    assert len(refused) >= 3
    after = until(lambda: (now := yard.settled())["calls"] == before["calls"] + 8 and now)
    assert (after["units"] - before["units"], after["errors"] - before["errors"]) == (1, 7)
    assert ask(yard)
