"""Replicas that say what no replica says, before a real gateway process: it answers, stays small, and books nothing false."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import httpx
import pytest
from test_serving_dataplane import INFER, Yard, request_of, rows, until

from modelyard.db import bump, now
from modelyard.serving.frames import (
    MAX_FRAME,
    PIECE,
    CallFrame,
    CancelFrame,
    Decoder,
    EndFrame,
    HealthFrame,
    PartFrame,
    Usage,
    append,
)
from modelyard.serving.stats import resident
from modelyard.serving.tables import ReplicaRow
from modelyard.serving.types import ReplicaState

MIB = 1 << 20


class Liar:
    """A replica's end of the wire: `answers(frame)` are the frames it says to one, without end where they are."""

    def __init__(self, path: Path, answers) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.address, self._answers = str(path), answers
        self.cancelled = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self):
        self._listener.close()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection):
        decoder = Decoder()
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(MAX_FRAME):
                for frame in decoder.feed(data):
                    if isinstance(frame, HealthFrame):
                        self._say(connection, HealthFrame(frame.seq, "ready"))
                    elif isinstance(frame, CancelFrame):
                        self.cancelled.set()
                    elif isinstance(frame, CallFrame):
                        threading.Thread(target=self._answer, args=(connection, frame), daemon=True).start()

    def _answer(self, connection, frame):
        with contextlib.suppress(OSError):
            for answer in self._answers(self, frame):
                self._say(connection, answer)

    def _say(self, connection, frame):
        buffer = bytearray()
        append(buffer, frame)
        connection.sendall(buffer)


@pytest.fixture
def yard(tmp_path):
    made = Yard(tmp_path)
    made.process = made.gateway()
    yield made
    made.close()


@pytest.fixture
def client(yard):
    with httpx.Client(base_url=yard.url, headers={"Authorization": f"Bearer {yard.key}"}, timeout=30) as client:
        yield client


def route_to(yard: Yard, liar: Liar) -> None:
    with yard.db.begin() as session:
        session.add(
            ReplicaRow(
                token="liar", project="default", deployment=yard.deployment, generation=1, model="simple", version=1,
                state=ReplicaState.ready, address=liar.address, started=now(), changed=now(), signature={},
            )
        )  # fmt: skip
        bump(session)


def test_an_answer_without_end_costs_the_gateway_no_memory(yard, client):
    def endless(liar, call):
        while not liar.cancelled.is_set():
            yield PartFrame(call.id, 0, 0, b"x" * PIECE)
        for _ in range(2000):  # 112 MB more, though it was cancelled
            yield PartFrame(call.id, 0, 0, b"x" * PIECE)
        yield EndFrame(call.id, Usage(3, 5), 0)

    liar = Liar(yard.settings.run / "liar.sock", endless)
    route_to(yard, liar)
    before = resident(yard.process.pid)
    response = client.post(INFER, json=request_of(rows(1)))
    assert response.status_code == 500
    assert "larger than 2000000 bytes (body_limit)" in response.json()["error"]
    until(lambda: yard.used()["calls"] == 1 and yard.used()["units"] == 3)
    assert yard.used()["errors"] == 1
    assert resident(yard.process.pid) - before < 40 * MIB
    liar.close()


def test_false_usage_is_not_booked_and_stops_nobodys(yard, client):
    liar = Liar(yard.settings.run / "liar.sock", lambda liar, call: [EndFrame(call.id, Usage(1 << 63, 5), 0, None, b"{}")])
    route_to(yard, liar)
    assert client.post(INFER, json=request_of(rows(1))).status_code == 503

    def state():
        with yard.db.read() as session:
            return session.get_one(ReplicaRow, "liar").state

    until(lambda: state() == ReplicaState.distrusted)
    yard.replica("honest")
    assert client.post(INFER, json=request_of(rows(4))).status_code == 200
    until(lambda: yard.used()["units"] == 4)
    assert yard.used()["calls"] == 2
    liar.close()
