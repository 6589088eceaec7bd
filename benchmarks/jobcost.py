"""What a job costs beyond its work: from submission to the first step, and from the last step to the registered version.

A short training job (module recipe, a few steps) on a platform that is ready. Where the time goes is told by the job's own
events, by marks that the model's code prints when it is imported, built and first called, and by the asker's clock.
"""

from __future__ import annotations

import re
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from record import Record, at, median, recording

from modelyard.client import Yard
from modelyard.testing import yard

CODE = """
import time
import torch

print(f"mark: imported {time.time():.6f}", flush=True)

class Marked(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(4, 3)
        self.steps = 0
        print(f"mark: built {time.time():.6f}", flush=True)

    def forward(self, x):
        if self.training:
            self.steps += 1
            if self.steps == 1:
                print(f"mark: first step {time.time():.6f}", flush=True)
            self.last = time.time()
        elif self.steps and self.steps == STEPS:
            self.steps += 1
            print(f"mark: last step {self.last:.6f}", flush=True)
        return self.line(x)
"""
_MARK = re.compile(r"mark: ([a-z ]+) ([0-9.]+)")
PHASES = {
    "asked": "",
    "queued": "asked → queued",
    "starting": "queued → starting",
    "running": "starting → ranks run (sandbox, imports)",
    "imported": "ranks run → user's code imported",
    "built": "user's code imported → network built",
    "first step": "network built → first step (data, checks, optimiser)",
    "last step": "the work: first → last step",
    "output": "last step → output (evaluation, checkpoint, artefact)",
    "succeeded": "output → registered",
    "told": "registered → told",
}


def main() -> None:
    with recording("jobcost", __doc__ or "") as record, tempfile.TemporaryDirectory() as folder:
        times = 2 if record.quick else 3
        record.parameters = {"times": times, "epochs": 2, "batch_size": 8, "dataset": "sklearn:iris"}
        work = Path(folder)
        with yard(work / "yard") as platform:
            dataset = platform.import_dataset("iris", "sklearn:iris")
            for ranks in (1, 2):
                runs = [trace(platform, dataset, work, ranks) for _ in range(times)]
                tell(record, runs, "1 rank" if ranks == 1 else f"{ranks} ranks")


def trace(platform: Yard, dataset: dict[str, Any], work: Path, ranks: int) -> dict[str, float]:
    """When a job reached each of `PHASES`, in seconds since 1970; where ranks differ, the last one."""
    rows = dataset["metadata"]["splits"]["train"]
    code = work / "marked.py"
    code.write_text(CODE.replace("STEPS", str(2 * -(-rows // 8))))
    names = [name for name, kind in dataset["metadata"]["features"].items() if kind == "float"]
    module = {"file": "marked.py", "name": "Marked", "inputs": names, "loss": "cross-entropy"}
    found = {"asked": time.time()}
    job = platform.train(
        "marked",
        "iris",
        "module",
        ranks=ranks,
        code=code,
        module=module,
        epochs=2,
        batch_size=8,
        checkpoint_every=2,
        wait=False,
    )
    platform.wait(job["id"])
    found["told"] = time.time()
    for event in platform.events(job["id"]):
        if event["type"] == "state":
            found[event["state"]] = at(event)
        elif event["type"] == "output":
            found["output"] = at(event)
        elif event["type"] == "log" and (mark := _MARK.search(event["text"])):
            found[mark[1]] = max(found.get(mark[1], 0.0), float(mark[2]))
    return found


def tell(record: Record, runs: list[dict[str, float]], what: str) -> None:
    def took(start: str, end: str) -> list[float]:
        return [run[end] - run[start] for run in runs]

    before, after = took("asked", "first step"), took("last step", "succeeded")
    record.figure(f"{what}: submit to first step", median(before), "s", each=before)
    record.figure(f"{what}: last step to registered", median(after), "s", each=after)
    both = [a + b for a, b in zip(before, after, strict=True)]
    record.figure(f"{what}: beyond the work", median(both), "s", most=8, each=both)
    for start, end in pairwise(PHASES):
        record.figure(f"{what}: … {PHASES[end]}", median(took(start, end)), "s")


if __name__ == "__main__":
    main()
