"""What a replica tells of itself is read within bounds, and a probe never takes longer than it may."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress

import pytest

from modelyard.errors import Internal
from modelyard.serving import frames as f
from modelyard.serving import probe as module
from modelyard.serving.health import read
from modelyard.serving.probe import probe
from modelyard.serving.stats import resident
from modelyard.serving.types import ReplicaState

TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
GOOD = {
    "platform": "modelyard_onnx",
    "task": "tabular-regression",
    "inputs": [TENSOR],
    "outputs": [TENSOR],
    "batch": {"rows": 8, "us_a_row": 2.5},
}


def frame(**fields):
    return f.HealthFrame(1, "ready", **{"metadata": GOOD, **fields})


def test_what_an_honest_replica_tells_is_taken_as_it_is():
    found = read(frame(queue_depth=3, steps=7, stats={"memory": 5}), None)
    assert (found.metadata, found.depth, found.steps, found.memory, found.error) == (GOOD, 3, 7, 5, None)
    assert found.state == ReplicaState.ready
    assert read(f.HealthFrame(1, "loading"), 9).metadata == {}
    without = {name: value for name, value in GOOD.items() if name != "batch"}
    assert read(frame(metadata=without), 9).metadata == without


@pytest.mark.parametrize(
    "told",
    [
        {"inputs": b"bytes, which no JSON holds"},
        {"inputs": [{**TENSOR, "name": b"x"}]},
        {"inputs": [{**TENSOR, "shape": [1 << 63]}]},
        {"inputs": [{**TENSOR, "more": 1}]},
        {"task": "zero\0byte"},
        {"task": "x" * 5000},
        {"anything": 1},
        {"batch": [1]},
        {"batch": {"rows": "many", "us_a_row": 1.0}},
        {"batch": {"rows": 1 << 40, "us_a_row": 1.0}},
        {"batch": {"rows": 8, "us_a_row": float("nan")}},
        {"batch": {"rows": 8, "us_a_row": float("inf")}},
    ],
)
def test_metadata_that_are_none_are_the_replicas_error(told):
    found = read(frame(metadata={**GOOD, **told}), 1)
    assert isinstance(found.error, Internal)
    assert "what no replica tells" in found.error.message
    assert json.dumps(found.metadata) == "{}"


def test_memory_is_bounded_and_measured_where_it_can_be():
    assert read(frame(stats={"memory": 1 << 62}), None).memory == 1 << 50
    for odd in (-5, "much", None, b"x"):
        assert read(frame(stats={"memory": odd}), None).memory == 0
    assert read(frame(stats={"memory": 1 << 62}), 77).memory == 77


def test_an_error_is_one_that_can_be_kept():
    found = read(frame(error=f.Fault("internal", "a\0b" + "c" * 60_000)), 1)
    assert found.error is not None
    assert "\0" not in found.error.message
    assert len(found.error.message) == 1999


class Liar:
    """Listens where a replica would, and says what it likes. A thread of this process."""

    def __init__(self, path, says, every=0.0):
        self._says, self._every = says, every
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                with connection, suppress(OSError):
                    while True:
                        connection.sendall(self._says)
                        time.sleep(self._every or 5.0)


def wire(frame):
    buffer = bytearray()
    f.append(buffer, frame)
    return bytes(buffer)


def test_one_that_keeps_saying_something_else_is_not_listened_to_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    liar = Liar(tmp_path / "s", wire(f.PartFrame(1, 0, 0, b"x")), 0.01)
    began = time.monotonic()
    assert probe(str(tmp_path / "s")) is None
    assert time.monotonic() - began < 2.0
    liar.socket.close()


def test_noise_is_an_error_of_the_replica(tmp_path):
    liar = Liar(tmp_path / "s", b"\xff" * 100)
    found = probe(str(tmp_path / "s"))
    assert found is not None
    assert isinstance(found.error, Internal)
    liar.socket.close()


def test_memory_is_the_kernels_word(tmp_path):
    liar = Liar(tmp_path / "s", wire(frame(stats={"memory": 1 << 62})))
    found = probe(str(tmp_path / "s"))
    assert found is not None
    assert found.memory == pytest.approx(resident(os.getpid()), rel=0.5)
    liar.socket.close()
