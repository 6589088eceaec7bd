"""Attacks on the wires: requests that hide in others, frames that are none, doors that should not be there."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from attack_scene import yard_folder, yard_owner, yard_wire  # noqa: F401 - fixtures
from attack_tools import CALL, INFER, Wire, eventually, memory, processes_of, still_answers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modelyard.client import Yard
from modelyard.errors import Invalid
from modelyard.jobs.lines import LineBuffer
from modelyard.serving.frames import MAX_FRAME, CallFrame, Decoder, HealthFrame, append
from modelyard.settings import Settings

FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# 13: requests in requests

HIDDEN = b"GET /api/keys HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
FRAMINGS = [
    "Content-Length: 5\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 5",
    *(
        f"Transfer-Encoding: {te}"
        for te in (
            "identity",
            "xchunked",
            "chunked, identity",
            "chunked\x0b",
            "chunked, chunked",
            "gzip, chunked",
            "identity, chunked",
            "\0chunked",
            "chunked;q=1",
            '"chunked"',
            "chunk ed",
            "chunked,",
            ",chunked x",
        )
    ),
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding:\r\n chunked",
    "Transfer_Encoding: chunked\r\nContent-Length: x",
    *(
        f"Content-Length: {cl}"
        for cl in ("+5", "-5", "5, 5", "5,5", "0x5", "5 5", "", "5\0", "5.0", "5e0", "9" * 30, "\u0665", "5\x0b")
    ),
    "Content-Length: 5\r\nContent-Length: 6",
    "Content-Length: 5\r\nContent-Length: 5",
    "Content-Length : 5",
    "Content-Length:\r\n 5",
    "X: y\nContent-Length: 5",
    "X: y\rContent-Length: 5",
    "X\0: y\r\nContent-Length: 5",
    " Content-Length: 5",
]
CHUNKS = [
    b"-1\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"ffffffffffffffffff\r\n",
    b"10000000000000000\r\n",
    b"5\nhello\n0\n\n",
    b"g\r\n",
    b"\r\n",
    b"5\r\nhelloXX0\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b'5;a="\n"\r\nhello\r\n0\r\n\r\n',
    b"5\r\r\nhello\r\n0\r\n\r\n",
    b"+5\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX: y\rZ: w\r\n\r\n",
]


@pytest.mark.parametrize("path", [INFER, "/api/keys"])
def test_an_unclear_framing_ends_the_connection(wire: Wire, path: str) -> None:
    """What two readers could read in two ways is read by neither: at most one refusal, and what follows is never answered."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {wire.key}\r\nContent-Type: application/json\r\n"
    cases = [f"{head}{framing}\r\n\r\n".encode("latin-1", "replace") + b"hello" + HIDDEN for framing in FRAMINGS]
    cases += [f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk + HIDDEN for chunk in CHUNKS]
    for case in cases:
        said = wire.raw(case, end=True)
        assert said.count(b"HTTP/1.1 ") <= 1, case
        assert not said or said.split()[1] in (b"400", b"501"), (case, said)
    still_answers(wire)


@pytest.mark.parametrize("path", [INFER, "/api/keys", "/nowhere", "/healthz"])
def test_the_next_request_begins_where_the_last_one_ended(wire: Wire, path: str) -> None:
    """Clear framings, whose bodies look like requests: one answer for each request, and none for a body."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    tail = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    for key in (f"Authorization: Bearer {wire.key}\r\n", "Authorization: Bearer wrong\r\n", ""):
        for framed in (
            f"{head}{key}Content-Length: {len(HIDDEN)}\r\n\r\n".encode() + HIDDEN,
            f"{head}{key}Transfer-Encoding: chunked\r\n\r\n{len(HIDDEN):x}\r\n".encode() + HIDDEN + b"\r\n0\r\n\r\n",
        ):
            said = wire.raw(framed + tail)
            assert said.count(b"HTTP/1.1 ") in (1, 2), said
            assert b'"scope":"admin"' not in said
            assert b"first administrator" not in said


STARTS = (
    b"",
    b"GET ",
    b"POST /v2/models/matmul/infer HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"GET / HTTP/1.1\r\nHost: h\r\n",
)


@FEW
@given(st.binary(max_size=200), st.sampled_from(STARTS))
@example(b"/readyz", b"GET ")
def test_bytes_that_are_no_http_end_their_connection_alone(wire: Wire, noise: bytes, start: bytes) -> None:
    said = wire.raw(start + noise + b"\r\n\r\n", end=True)
    assert not said or said.split()[1] in (b"400", b"401", b"404", b"405", b"431"), said


def test_endless_headers_are_cut(wire: Wire) -> None:
    said = wire.raw(b"GET /healthz HTTP/1.1\r\nHost: h\r\n" + b"X: " + b"y" * 1_000_000)
    assert said.startswith(b"HTTP/1.1 431 ")
    said = wire.raw(b"GET /healthz HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 200_000)
    assert said.startswith(b"HTTP/1.1 431 ")
    still_answers(wire)


# 14: internal wires


def sockets_of(data: Path) -> set[str]:
    """Inode numbers of the sockets that the platform's processes hold."""
    found = set()
    for pid, _ in processes_of(data):
        for fd in (Path("/proc") / str(pid) / "fd").iterdir():
            try:
                link = str(fd.readlink())
            except OSError:
                continue
            if link.startswith("socket:["):
                found.add(link[8:-1])
    return found


def test_one_port_listens_on_loopback_and_nothing_else(owner: Yard, data: Path) -> None:
    """Loopback only by default (19), and only the gateway's port."""
    held, listening = sockets_of(data), set()
    assert len(list(processes_of(data))) >= 4
    for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] in held and (words[3] == "0A" or not table.startswith("tcp")):
                address, port = words[1].split(":")
                listening.add(
                    (
                        table,
                        socket.inet_ntoa(struct.pack("<I", int(address, 16))) if len(address) == 8 else address,
                        int(port, 16),
                    )
                )
    assert listening == {("tcp", "127.0.0.1", int(owner.profile.url.rsplit(":", 1)[1]))}


def test_sockets_are_for_their_user_alone(owner: Yard, data: Path) -> None:
    run = Settings(data=data).run
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    sockets = [path for path in run.rglob("*") if stat.S_ISSOCK(path.stat().st_mode)]
    assert {path.name for path in sockets} == {"control.sock", "supervisor.sock", "replica.sock"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in sockets} == {0o600}
    paths = {
        line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()[1:] if line.split()[6] in sockets_of(data)
    }
    named = {path for path in paths if path.startswith(("/", "@")) and not path.startswith(str(run))}
    assert not named, "an abstract socket, or one outside the run folder, has no mode"
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_loopback_is_where_it_listens_until_told_otherwise() -> None:
    assert Settings.model_fields["host"].default == "127.0.0.1"


def test_nothing_unpickles_what_comes_over_a_wire() -> None:
    """No process of the platform loads the pickle of a message: only torch's own format is ever opened, after its scan."""
    check = "import sys, modelyard.app.gateway, modelyard.app.control, modelyard.serving.serve; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout.strip() == "False"
    import modelyard

    for path in Path(modelyard.__file__).parent.rglob("*.py"):
        text = path.read_text()
        for word in (
            "pickle.load",
            "pickle.Unpickler",
            "marshal.load",
            "dill",
            "cloudpickle",
            "shelve",
            "yaml.load",
            "multiprocessing",
        ):
            assert word not in text, f"{path}: {word}"


def replica_socket(data: Path) -> Path:
    return next(Settings(data=data).run.rglob("replica.sock"))


def ask_health(path: Path) -> HealthFrame:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))  # before there is a timeout: with one, a full queue is refused and not waited for
        connection.settimeout(10)
        out = bytearray()
        append(out, HealthFrame(7))
        connection.sendall(out)
        decoder, frames = Decoder(), []
        while not frames:
            frames = decoder.feed(connection.recv(65536))
        assert isinstance(frames[0], HealthFrame)
        return frames[0]


def test_frames_that_are_none_end_their_connection_alone(owner: Yard, wire: Wire, data: Path) -> None:
    path, dice = replica_socket(data), random.Random(14)
    call = bytearray()
    body = json.dumps(CALL).encode()
    append(call, CallFrame(1, "default", "matmul", "1", "oip", "infer", time.time() + 5, None, {}, body))
    health = bytearray()
    append(health, HealthFrame(1))
    packed = msgspec.msgpack.encode
    seeds = [
        bytes(call),
        bytes(health),
        bytes(call) * 3,
        b"\xff" * 64,
        struct.pack("<I", 2**31),
        struct.pack("<I", MAX_FRAME + 1),
        b"\0" * 64,
    ]
    deep = b"\x91" * 60_000 + b"\xc0"
    for value in (
        packed(None),
        packed([99]),
        packed([1]),
        packed([1, "x"]),
        packed({}),
        packed([7, 2**63]),
        packed([8, -1]),
        deep,
        packed([1, 1, "p", "d", "1", "no such door", "infer", 0.0, None, {}, b"", False]),
        packed([1, 1, "p", "d", "1", "oip", "infer", 1e300, -1, {"a": "b" * 1000}, b"\xff" * 1000, False]),
    ):
        seeds.append(struct.pack("<I", len(value)) + value)
    before, pid = memory(data), owner.deployment("matmul")["replicas"][0]["pid"]
    for round_ in range(300):
        noise = bytearray(seeds[round_ % len(seeds)])
        for _ in range(round_ // len(seeds)):
            noise[dice.randrange(len(noise))] = dice.randrange(256)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(noise)
    eventually(lambda: ask_health(path).queue_depth == 0, 10)  # not one call is left over
    assert ask_health(path).state == "ready"
    assert owner.deployment("matmul")["replicas"][0]["pid"] == pid
    assert memory(data) - before < 50 << 20
    still_answers(wire)


@FEW
@given(st.lists(st.binary(max_size=64), max_size=8))
def test_the_frame_decoder_says_no_and_holds_little(pieces: list[bytes]) -> None:
    decoder = Decoder()
    try:
        for piece in pieces:
            decoder.feed(piece)
    except Invalid:
        return
    assert len(decoder._rest) <= MAX_FRAME + 4


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@FEW
@given(
    st.dictionaries(st.text(max_size=4), JSON, max_size=4),
    st.sampled_from(["", "1e999", "-1e400", "NaN", '"\\ud800"', '"\\udfff\\ud800"']),
)
def test_what_a_gang_says_can_be_stored_and_shown(message: dict[str, Any], odd: str) -> None:
    line = json.dumps(message | {"odd": 0}).replace('"odd": 0', f'"odd": {odd or 0}').encode() + b"\n"
    for understood in LineBuffer().feed(line):
        json.dumps(understood, allow_nan=False, ensure_ascii=False).encode()


def test_the_supervisor_outlives_nonsense(owner: Yard, wire: Wire, data: Path) -> None:
    run = Settings(data=data).run
    for noise in (
        b"\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        b'{"do": "no"}\n',
        b'{"do": ["start"]}\n',
        b'{"do": "start"}\n',
        b"\xff" * 100 + b"\n",
        b'{"do": "start", "argv": "touch x"}\n',
        b'{"do": "stop", "token": 5}\n',
        b"[" * 100_000 + b"\n",
        b"x" * (2 << 20),
        b'{"do": "list", "a": 1e999}\n',
    ):
        Wire(run / "supervisor.sock").raw(noise, end=True)
        Wire(run / "control.sock").raw(noise, end=True)
    still_answers(wire)
    assert owner.deploy("again", "matmul")["state"] == "ready"
    owner.undeploy("again")
