"""Real replica processes spoken to in frames: ready soon with a measured batch, few threads, and standing up to models that
fail and to more calls than they can answer."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from modelyard.engines.base import ModelCard, ModuleCard, TensorCard
from modelyard.jobs.confine import SHORT
from modelyard.serving.frames import MAX_FRAME, CallFrame, Decoder, EndFrame, HealthFrame, append
from modelyard.serving.probe import probe
from modelyard.serving.types import ReplicaState

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # as the executor sets them
GOOD, NAN, RAISE, MEMORY, EXIT, SHAPE, SLEEP, BREAK = range(8)
# A module whose first number says what it does.
UNRULY = """\
import sys
import time

import torch
from torch import nn


class Unruly(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.broken = False

    def forward(self, x):
        asked = set(x[:, 0].int().tolist())
        self.broken = self.broken or 7 in asked
        if 2 in asked or self.broken:
            raise RuntimeError("no luck")
        if 3 in asked:
            torch.zeros(1 << 34).sum()
        if 4 in asked:
            sys.exit("enough")
        if 5 in asked:
            return x[:0, 1:]
        if 6 in asked:
            time.sleep(0.02 * len(x))
        return torch.where(x[:, :1] == 1, torch.nan, x[:, 1:] * self.weight)
"""


class Process:
    """A replica's process, and a gateway's end of its socket."""

    def __init__(self, folder, model, engine, settings=None):
        address = folder / f"run-{engine}-{len(list(folder.iterdir()))}" / "replica.sock"
        spec = {"token": "t", "engine": engine, "folder": str(model), "socket": str(address), "settings": settings or {}}
        argv = [sys.executable, "-m", "modelyard.serving.replica", "--spec", json.dumps(spec)]
        began = time.monotonic()
        self.process = subprocess.Popen(
            argv,
            env={**os.environ, **THREADS},
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30)),
        )
        while not ((health := probe(str(address))) and health.state == ReplicaState.ready):
            assert time.monotonic() - began < 60
            assert self.process.poll() is None
            time.sleep(0.01)
        self.ready = time.monotonic() - began
        self.worked = sum(self.threads().values())
        self.metadata = health.metadata
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(address))
        self.decoder, self.got, self.number = Decoder(), [], 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.kill()
        self.process.wait()

    def say(self, *frames):
        buffer = bytearray()
        for frame in frames:
            append(buffer, frame)
        self.socket.sendall(buffer)

    def hear(self):
        self.got += self.decoder.feed(self.socket.recv(MAX_FRAME))

    def ask(self, *questions, deadline=60.0):
        """Send calls in one write; the (values or error) of each, and the seconds it took."""
        calls = {}
        for x in questions:
            self.number += 1
            rows = np.atleast_2d(np.asarray(x, np.float32))
            given = {"name": "x", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
            body = json.dumps({"inputs": [given]}).encode()
            frame = CallFrame(self.number, "p", "d", "1", "oip", "infer", time.time() + deadline, None, {}, body)
            calls[self.number] = frame
        began = time.monotonic()
        self.say(*calls.values())
        ended = {}
        while len(ended) < len(calls):
            self.hear()
            for frame in self.got:
                if isinstance(frame, EndFrame):
                    ended.setdefault(frame.id, (frame, time.monotonic() - began))
        parts = {frame.id: json.loads(frame.data) for frame in self.got if isinstance(frame, EndFrame) and frame.data}
        self.got.clear()
        return [
            (end.error or parts[number]["outputs"][0]["data"], seconds)
            for number, (end, seconds) in ((number, ended[number]) for number in calls)
        ]

    def health(self):
        self.say(HealthFrame(1))
        while not any(isinstance(frame, HealthFrame) for frame in self.got):
            self.hear()
        [health] = [frame for frame in self.got if isinstance(frame, HealthFrame)]
        self.got.clear()
        return health

    def turns(self):
        """Seconds of the turns that each thread takes at the processor, by number; empty where the kernel does not tell."""
        files = Path(f"/proc/{self.process.pid}/task").glob("*/sched")
        told = {int(file.parent.name): file.read_text() for file in files}
        found = {number: re.search(r"^se\.slice\s*:\s*(\d+)", text, re.MULTILINE) for number, text in told.items()}
        return {number: int(match[1]) / 1e9 for number, match in found.items() if match}

    def threads(self):
        """Seconds of processor time of each thread, by number."""
        used = {}
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            fields = (task / "stat").read_text().rpartition(") ")[2].split()
            used[int(task.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return used


def unruly(folder):
    folder.mkdir()
    (folder / "model.py").write_text(UNRULY)
    torch.save({"weight": torch.ones(1)}, folder / "model.pth")
    ModelCard(
        task="tabular-regression",
        engines=("torch",),
        files={"weights": "model.pth"},
        module=ModuleCard(file="model.py", name="Unruly"),
        inputs=(TensorCard(name="x", datatype="FP32", shape=(-1, 2)),),
        outputs=(TensorCard(name="y", datatype="FP32", shape=(-1, 1)),),
    ).save(folder)
    return folder


def layers(folder, width=256, depth=8, batch="n"):
    """A stack of matrices as ONNX."""
    folder.mkdir()
    chance = np.random.default_rng(0)
    names = ["x", *(f"h{n}" for n in range(depth - 1)), "y"]
    weights = [chance.normal(0, 0.1, (width, width)).astype(np.float32) for _ in range(depth)]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[n], f"w{n}"], [names[n + 1]]) for n in range(depth)],
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, width])],
        [numpy_helper.from_array(w, f"w{n}") for n, w in enumerate(weights)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    shape = (-1 if isinstance(batch, str) else batch, width)
    tensors = {name: (TensorCard(name=name[0], datatype="FP32", shape=shape),) for name in ("x", "y")}
    ModelCard(
        task="tabular-regression", engines=("onnx",), files={"onnx": "model.onnx"}, inputs=tensors["x"], outputs=tensors["y"]
    ).save(folder)
    return folder


@pytest.fixture(scope="module")
def torch_model(tmp_path_factory):
    return unruly(tmp_path_factory.mktemp("unruly") / "model")


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory):
    return layers(tmp_path_factory.mktemp("layers") / "model")


def test_ready_soon_with_a_measured_batch_unless_it_is_told(tmp_path, onnx_model):
    with Process(tmp_path, onnx_model, "onnx") as replica:
        batch = replica.metadata["batch"]
        print(f"ready in {replica.ready:.2f} s, {replica.worked:.2f} s of them worked, {batch}")
        assert batch["rows"] in {2**n for n in range(9)}
        assert batch["us_a_row"] > 0
        assert replica.worked < 2  # what it takes where nothing else runs
        assert replica.health().stats["batches"] == 0  # measuring is no work of anybody
    with Process(tmp_path, onnx_model, "onnx", {"rows": 7}) as replica:
        assert "batch" not in replica.metadata
        width = np.ones(256)
        replica.ask(*[width] * 20)
        assert max(n for n, count in enumerate(replica.health().stats["sizes"]) if count) <= 3  # up to 8 rows


def test_a_graph_of_fixed_size_is_left_alone(tmp_path):
    with Process(tmp_path, layers(tmp_path / "model", batch=1), "onnx") as replica:
        assert "batch" not in replica.metadata
        assert len(replica.ask(*[np.ones(256)] * 5)) == 5
        assert replica.health().steps == 5


def test_the_thread_that_answers_takes_short_turns_and_the_one_that_computes_does_not(tmp_path, onnx_model):
    with Process(tmp_path, onnx_model, "onnx") as replica:
        replica.ask(np.ones(256))
        turns = replica.turns()
        if not turns:
            pytest.skip("this kernel tells no turns in /proc/PID/sched")
        assert turns.pop(replica.process.pid) == SHORT
        assert turns
        assert min(turns.values()) > SHORT


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_one_thread_computes_and_none_spins(tmp_path, engine, request):
    with Process(tmp_path, request.getfixturevalue(f"{engine}_model"), engine) as replica:
        x = np.ones(256) if engine == "onnx" else [GOOD, 1.0]
        for _ in range(5):
            replica.ask(*[x] * 300)
        busy = replica.threads()
        time.sleep(0.5)
        idle = replica.threads()
        print(engine, sorted(busy.values(), reverse=True))
        # The event loop, the loader, the engine; what libraries keep besides must sleep.
        assert sum(seconds > 0.05 for seconds in busy.values()) <= 3
        assert sum(idle.values()) - sum(busy.values()) <= 0.05


def test_what_a_model_does_wrong_is_its_calls_own_until_it_is_broken(tmp_path, torch_model):
    """Broken, it says so, gives its calls back and ends."""
    with Process(tmp_path, torch_model, "torch", {"rows": 4}) as replica:
        good, nan, raised, memory, exited, shape, after = (
            answer
            for answer, _ in replica.ask(
                [GOOD, 1], [NAN, 2], [RAISE, 3], [MEMORY, 4], [EXIT, 5], [[SHAPE, 6], [SHAPE, 6]], [GOOD, 7]
            )
        )
        assert good == [1.0]
        assert nan == [None]  # JSON's word for it
        assert raised.message == "The model failed: RuntimeError: no luck"
        assert memory.code == "internal"
        assert "memory" in memory.message
        assert exited.message == "The model failed: SystemExit: enough"
        assert "for 2 rows; expected 2 rows" in shape.message
        assert after == [7.0]
        assert replica.health().stats["failures"] == 5
        for _ in range(3):  # callers who ask for it break nothing
            replica.ask(*[[RAISE, 1]] * 20)
        assert replica.health().state == "ready"
        assert replica.ask([GOOD, 1])[0][0] == [1.0]

        errors = [answer.code for answer, _ in replica.ask([BREAK, 0], *[[GOOD, 1]] * 40)]
        assert errors[:16] == ["internal"] * 16
        assert set(errors) == {"internal", "unavailable"}  # another replica may still answer those
        health = replica.health()
        assert (health.state, health.error.code) == ("failed", "internal")
        assert health.error.message.endswith("The model failed: RuntimeError: no luck")
        assert replica.ask([GOOD, 1])[0][0].code == "unavailable"
        assert replica.process.wait(5) == 1


def test_more_than_can_be_answered_in_time_is_refused_at_once(tmp_path, torch_model):
    """20 ms a call, 200 ms allowed, 100 calls at once: about ten are answered, in time, and the rest is told at once."""
    with Process(tmp_path, torch_model, "torch", {"rows": 1, "target_us": 200_000}) as replica:
        for _ in range(5):
            replica.ask([SLEEP, 1])
        began = time.monotonic()
        answers = replica.ask(*[[SLEEP, n] for n in range(100)])
        assert time.monotonic() - began < 2
        taken = [seconds for answer, seconds in answers if isinstance(answer, list)]
        refused = [(answer, seconds) for answer, seconds in answers if not isinstance(answer, list)]
        assert 5 <= len(taken) <= 12
        assert max(taken) < 0.6
        assert {answer.code for answer, _ in refused} == {"overloaded"}
        assert "ms are allowed" in refused[0][0].message
        assert max(seconds for _, seconds in refused) < 0.1 + min(taken)
        assert replica.health().stats["refused"] == len(refused)
        assert isinstance(replica.ask([SLEEP, 1])[0][0], list)
        late = replica.ask(*[[SLEEP, n] for n in range(30)], deadline=0.1)
        assert {answer.code for answer, _ in late if not isinstance(answer, list)} <= {"overloaded", "timed_out"}
