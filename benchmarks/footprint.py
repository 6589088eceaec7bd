"""What the platform takes before it does anything: starting it and a replica, idle memory, a long queue.

Memory is PSS over every process of the platform, a page that several share divided among them. Which libraries gateway and
control have loaded is read from what the kernel has mapped into them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import models
import numpy as np
from record import MB, Record, median, memory_of, processes, recording, timed

from modelyard.client import Yard
from modelyard.testing import yard

HEAVY = ("torch", "onnxruntime")


def main() -> None:
    with recording("footprint", __doc__ or "") as record, tempfile.TemporaryDirectory() as folder:
        times, queued = (2, 100) if record.quick else (3, 1000)
        record.parameters = {"times": times, "queued": queued, "settle_seconds": 3}
        work = Path(folder)
        command("--help")
        helps = [timed(lambda: command("--help"))[0] for _ in range(times)]
        record.figure("modelyard --help", median(helps), "s", most=0.5, each=helps)
        start(record, work, times)
        with yard(work / "yard", MODELYARD_JOB_CPUS="1") as platform:
            platform.import_model("tiny", models.tiny(work / "tiny.onnx"))
            replicas(record, platform, times)
            idle(record, platform)
            queue(record, platform, work / "yard", queued, times)


def command(*words: str) -> None:
    """A command as whoever installed the package runs it: its modules are compiled but once."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODELYARD_")}
    environment = {name: value for name, value in kept.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-m", "modelyard", *words], check=True, capture_output=True, env=environment)


def start(record: Record, work: Path, times: int) -> None:
    """`up` in a new folder (which makes the database) and in one that has been used."""
    first, again = [], []
    for number in range(times):
        for seconds in (first, again):
            begun = time.perf_counter()
            with yard(work / f"start{number}") as platform:
                platform.whoami()
                seconds.append(time.perf_counter() - begun)
    record.figure("up to ready, new folder", median(first), "s", most=5, each=first)
    record.figure("up to ready, used folder", median(again), "s", most=5, each=again)


def replicas(record: Record, platform: Yard, times: int) -> None:
    """From the request to the moment callers are answered; and the first call after."""
    ready, called = [], []
    for number in range(times):
        seconds, _ = timed(lambda name=f"tiny{number}": platform.deploy(name, "tiny"))
        ready.append(seconds)
        called.append(timed(lambda name=f"tiny{number}": platform.predict(name, {"x": np.zeros((1, 10), np.float32)}))[0])
        platform.undeploy(f"tiny{number}")
    record.figure("replica of engine onnx: deploy to ready", median(ready), "s", most=2, each=ready)
    record.figure("replica of engine onnx: first call", 1e3 * median(called), "ms", each=called)


def idle(record: Record, platform: Yard) -> None:
    """With one small deployment, nothing asked of it."""
    platform.deploy("tiny", "tiny")
    time.sleep(record.parameters["settle_seconds"])
    found = processes(platform)
    each = [{"role": role, "pid": pid, "mb": round(memory_of(pid) / MB, 1)} for pid, role in found.items()]
    record.figure(
        "idle with one small deployment: memory (PSS)", sum(one["mb"] for one in each), "MB", most=350, processes=each
    )
    for role in ("gateway", "control"):
        pids = [pid for pid, found_role in found.items() if found_role == role]
        maps = "\n".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)
        loaded = [name for name in HEAVY if f"/{name}/" in maps]
        record.figure(
            f"{role}: model libraries loaded", len(loaded) if pids else -1, "libraries", least=0, most=0, loaded=loaded
        )


def queue(record: Record, platform: Yard, data: Path, queued: int, times: int) -> None:
    """`ps` asks for jobs under way and deployments. The queue is held up by a job that takes the only processor for long."""
    idle_ps = [timed(lambda: (platform.underway(), platform.deployments()))[0] for _ in range(2 * times)]
    blocker = block(platform, data)
    seconds, _ = timed(lambda: [submit(platform) for _ in range(queued)])
    waiting = platform.underway()["counts"]["queued"]
    sdk = [timed(lambda: (platform.underway(), platform.deployments()))[0] for _ in range(4 * times)]
    command("ps", "--data", str(data))
    cli = [timed(lambda: command("ps", "--data", str(data)))[0] for _ in range(4 * times)]
    still = platform.underway()["counts"]["queued"]
    record.figure("queue: submitting a job", 1e3 * seconds / queued, "ms")
    record.figure("queue: jobs waiting while ps is timed", min(waiting, still), "jobs", least=0.9 * queued, at_first=waiting)
    record.figure("ps, its two questions, empty queue", 1e3 * median(idle_ps), "ms")
    record.figure(f"ps, its two questions, {queued} jobs queued", 1e3 * median(sdk), "ms", most=200, each=sdk)
    record.figure(f"ps, the whole command, {queued} jobs queued", 1e3 * median(cli), "ms", most=200, each=cli)
    platform.cancel(blocker)


def submit(platform: Yard) -> str:
    target = {"kind": "dataset", "name": "digits"}
    return str(platform.submit("import-dataset", {"source": "sklearn:digits"}, {}, target=target)["id"])


SLOW = """
import time
import torch

class Slow(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(4, 3)

    def forward(self, x):
        if self.training:
            time.sleep(2)
        return self.line(x)
"""


def block(platform: Yard, data: Path) -> str:
    """A job that holds the platform's only processor until it is cancelled."""
    platform.import_dataset("iris", "sklearn:iris")
    features = [name for name, kind in platform.version("iris", "dataset")["metadata"]["features"].items() if kind == "float"]
    code = data.parent / "slow.py"
    code.write_text(SLOW)
    module = {"file": "slow.py", "name": "Slow", "inputs": features, "loss": "cross-entropy"}
    job = platform.train("slow", "iris", "module", code=code, module=module, epochs=1000, batch_size=8, wait=False)
    while platform.job(job["id"])["state"] != "running":
        time.sleep(0.1)
    return str(job["id"])


if __name__ == "__main__":
    main()
