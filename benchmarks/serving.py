"""Requests a second and processor time a call of the model 10 → 20 → 1, beside FastAPI + uvicorn + onnxruntime by hand.

wrk drives each server in turn with 1,024 distinct bodies, one row each; answers are sampled against onnxruntime, and the
platform's ledger must have counted what was sent. The platform checks keys, counts and settles every call; the peer
does none of that. wrk is Debian's: `apt-get install wrk`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import models
import numpy as np
import onnxruntime
from record import HERE, Record, busy_seconds, cpu_of, memory_of, recording, supervisor_of, tree

from modelyard.client import Yard
from modelyard.testing import yard

CONNECTIONS = (1, 32, 128)
BODIES = 1024
SAMPLES = 64
Row = Sequence[float]

# Each connection's requests walk through all bodies; wrk runs this in its one thread.
LUA = """
local bodies = {}
for line in io.lines(%(bodies)s) do bodies[#bodies + 1] = line end
local headers = {["content-type"] = "application/json"%(header)s}
local ready, at = {}, 0
function init(args)
  for i, body in ipairs(bodies) do ready[i] = wrk.format("POST", %(path)s, headers, body) end
end
function request() at = at %% #ready + 1; return ready[at] end
function done(s, l, r)
  local e = s.errors
  io.write(string.format(
    '\\n@@{"requests":%%d,"us":%%d,"p50":%%.4f,"p99":%%.4f,"errors":%%d,"refused":%%d}\\n',
    s.requests, s.duration, l:percentile(50) / 1000, l:percentile(99) / 1000,
    e.connect + e.read + e.write + e.timeout, e.status))
end
"""


@dataclass(frozen=True)
class Server:
    """A server to measure: where, how a row is asked of it, how its answer is read, and its processes' first."""

    name: str
    url: str
    path: str
    pid: int
    headers: Mapping[str, str]
    body: Callable[[Row], Any]
    read: Callable[[Any], float]


def main() -> None:
    if shutil.which("wrk") is None:
        sys.exit("serving.py drives the servers with wrk: apt-get install wrk (Debian, Ubuntu), then run it again.")
    with recording("serving", __doc__ or "") as record, tempfile.TemporaryDirectory() as folder:
        seconds, warm = (2, 1) if record.quick else (5, 2)
        record.parameters = {"seconds": seconds, "warm": warm, "bodies": BODIES, "rows_a_call": 1, "connections": CONNECTIONS}
        model = models.tiny(Path(folder) / "tiny.onnx")
        rows = np.random.default_rng(1).normal(size=(BODIES, 10)).astype(np.float32)
        with yard(Path(folder) / "yard") as platform:
            platform.import_model("tiny", model)
            platform.deploy("tiny", "tiny")
            measure_platform(record, platform, model, rows)
        for workers in (2, 1):
            with by_hand(model, workers) as server:
                measure(record, server, model, rows)
        compare(record)


def measure_platform(record: Record, platform: Yard, model: Path, rows: np.ndarray) -> None:
    key = platform.create_key("infer", name="bench")["key"]
    profile = platform.profile
    server = Server(
        "modelyard", profile.url, "/v2/models/tiny/infer", supervisor_of(platform), {"Authorization": f"Bearer {key}"},
        lambda row: {"inputs": [{"name": "x", "shape": [1, 10], "datatype": "FP32", "data": list(row)}]},
        lambda body: float(body["outputs"][0]["data"][0]),
    )  # fmt: skip
    answered = measure(record, server, model, rows)
    counted = told(server)
    ledger = settled(platform, counted)
    record.figure(
        "modelyard: calls in the ledger - calls the gateway counted", ledger - counted, "calls", least=0, most=0, ledger=ledger
    )
    # wrk leaves when its time is over, with a call under way on each connection: those are counted too.
    left = 32 + sum(CONNECTIONS)
    record.figure("modelyard: calls in the ledger - answers wrk counted", ledger - answered, "calls", least=0, most=left)


def told(server: Server) -> int:
    """Calls by the gateway's own counters, once none is under way."""
    time.sleep(0.5)
    text = httpx.get(f"{server.url}/metrics", headers=server.headers, trust_env=False).raise_for_status().text
    return int(sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("modelyard_calls_total{")))


def settled(platform: Yard, least: int, patience: float = 10.0) -> int:
    """Calls in the ledger, once they have been written down."""
    deadline = time.monotonic() + patience
    while True:
        counted = sum(row["calls"] for row in platform.usage() if row["kind"] == "serving")
        if counted >= least or time.monotonic() > deadline:
            return int(counted)
        time.sleep(0.2)


@contextlib.contextmanager
def by_hand(model: Path, workers: int) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    peers = HERE / "peers"
    command = [sys.executable, str(peers / "fastapi_app.py"), str(model), str(port), str(workers)]
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(peers)}) as process:
        name = f"fastapi, {workers} worker{'s' * (workers > 1)}"
        server = Server(
            name,
            f"http://127.0.0.1:{port}",
            "/predict",
            process.pid,
            {},
            lambda row: {"x": list(row)},
            lambda b: float(b["y"][0]),
        )
        try:
            until_answering(server)
            yield server
        finally:
            process.terminate()


def until_answering(server: Server, patience: float = 30.0) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(server.url, trust_env=False)
            return
        time.sleep(0.05)
    raise TimeoutError(f"{server.name} does not answer")


def measure(record: Record, server: Server, model: Path, rows: np.ndarray) -> int:
    """All figures of one server. Returns how many calls it answered."""
    sampled = check(server, model, rows)
    answered = sampled
    warmed = load(server, rows, 32, record.parameters["warm"])["requests"]
    for connections in CONNECTIONS:
        before, busy, start = cpu(server), busy_seconds(), time.monotonic()
        said = load(server, rows, connections, record.parameters["seconds"])
        spent, wall = cpu(server) - before, time.monotonic() - start
        ok = said["requests"] - said["refused"]
        cores = {"server": spent / wall, "all": (busy_seconds() - busy) / wall, "wrk": said["wrk_cpu"] / wall}
        more = {**said, "cores": {name: round(value, 2) for name, value in cores.items()}}
        where = f"{server.name}: {connections} connection{'s' * (connections > 1)}"
        record.figure(f"{where}: requests a second", ok / (said["us"] / 1e6), "1/s", **more)
        record.figure(f"{where}: processor time a call", 1e6 * spent / max(1, ok), "µs")
        record.figure(f"{where}: errors", said["errors"] + said["refused"], "calls", most=0)
        answered += said["requests"]
    memory = sum(memory_of(pid) for pid in tree(server.pid))
    record.figure(f"{server.name}: memory (PSS)", memory / 1e6, "MB", processes=len(tree(server.pid)))
    return answered + warmed


def check(server: Server, model: Path, rows: np.ndarray) -> int:
    """Compare some answers with onnxruntime's. Returns the number of calls. Raises where one differs."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": rows})
    with httpx.Client(base_url=server.url, headers=server.headers, trust_env=False) as client:
        for at in range(0, BODIES, BODIES // SAMPLES):
            answer = server.read(client.post(server.path, json=server.body(rows[at].tolist())).raise_for_status().json())
            if not np.isclose(answer, expected[at, 0], rtol=1e-4, atol=1e-5):
                raise AssertionError(f"{server.name} answered {answer} where onnxruntime says {expected[at, 0]}")
    return SAMPLES


def load(server: Server, rows: np.ndarray, connections: int, seconds: int) -> dict[str, Any]:
    """What wrk says of some seconds of load, and the processor seconds it took itself."""
    with tempfile.TemporaryDirectory() as folder:
        bodies, script = Path(folder) / "bodies", Path(folder) / "load.lua"
        bodies.write_text("".join(json.dumps(server.body(row), separators=(",", ":")) + "\n" for row in rows.tolist()))
        header = "".join(f", [{json.dumps(name)}] = {json.dumps(value)}" for name, value in server.headers.items())
        script.write_text(LUA % {"bodies": json.dumps(str(bodies)), "header": header, "path": json.dumps(server.path)})
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "-s", str(script), server.url]
        before = os.times()
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        after = os.times()
    found = re.search(r"@@(\{.*\})", said)
    if not found:
        raise RuntimeError(f"wrk said: {said[-500:]}")
    own = after.children_user + after.children_system - before.children_user - before.children_system
    return {**json.loads(found[1]), "wrk_cpu": round(own, 2)}


def cpu(server: Server) -> float:
    return cpu_of(tree(server.pid))


def compare(record: Record) -> None:
    """The platform over the peer, at each number of connections."""
    for connections in CONNECTIONS:
        where = f"{connections} connection{'s' * (connections > 1)}"
        for workers in ("2 workers", "1 worker"):
            ours, theirs = (
                record.figures[f"{name}: {where}: requests a second"]["measured"]
                for name in ("modelyard", f"fastapi, {workers}")
            )
            record.figure(f"{where}: requests a second, modelyard / fastapi, {workers}", ours / theirs, "×")


if __name__ == "__main__":
    main()
