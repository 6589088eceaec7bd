"""What an asynchronous checkpoint of a network of 50 million parameters (600 MB with AdamW's state) every 50 steps costs of
the steps a second: one rank, two ranks that hold everything, two that hold halves.

The 25 steps that a checkpoint is taken before, and during which it is written and stored, are compared with the 25 after
them, which are free of one: so both sides are of one process, by turns, a minute apart at most. What the first takes longer
is what one checkpoint costs; that all of it is in there is a figure of its own.
"""

from __future__ import annotations

import csv
import re
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from peers.large import EVERY, WINDOW
from record import HERE, Record, cpu_of, median, processes, recording

from modelyard.client import Yard
from modelyard.testing import yard

BATCH = 2  # rows of a rank, of 64 tokens each
MESHES = {"1 rank": (1, "data"), "2 ranks": (2, "data"), "2 ranks, shard=2": (2, "shard=2")}
MOST, WITHIN = 0.03, 0.8
_SAID = re.compile(r"step ([0-9]+) began at ([0-9.]+) ([0-9.]+)")


def main() -> None:
    with recording("checkpointing", __doc__ or "") as record, tempfile.TemporaryDirectory() as folder:
        pairs = 1 if record.quick else 3
        size = {"width": 256, "depth": 4} if record.quick else {"width": 512, "depth": 16}
        record.parameters = {
            "pairs": pairs,
            "every": EVERY,
            "rows of a rank": BATCH,
            **size,
            "threads": 1,
            "optimiser": "adamw",
        }
        with yard(Path(folder) / "yard") as platform:
            for ranks in (1, 2):
                write_rows(Path(folder) / f"rows{ranks}.csv", (EVERY * (pairs + 2) + 10) * BATCH * ranks)
                platform.import_dataset(
                    f"rows{ranks}", Path(folder) / f"rows{ranks}.csv", target="y", task="tabular-classification"
                )
            for what, (ranks, mesh) in MESHES.items():
                told(record, what, train(platform, ranks, mesh, size))


def write_rows(table: Path, rows: int) -> None:
    """So many that the train split, some 60% of them, has at least `rows`."""
    generator = np.random.default_rng(0)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"x{column}" for column in range(64)), "y"])
        for row in generator.normal(size=(int(rows / 0.56), 64)):
            writer.writerow([*(f"{value:.5g}" for value in row), f"c{generator.integers(10)}"])


def train(platform: Yard, ranks: int, mesh: str, size: dict[str, int]) -> dict[str, Any]:
    """The job; its log in `said`, in `behind` how long each checkpoint took in its thread, and in `control` the processor time
    that control took in all this while, by checkpoints."""
    module = {"file": "large.py", "name": "Network", "arguments": size, "inputs": [f"x{column}" for column in range(64)]}
    job = platform.train(
        "large", f"rows{ranks}", "module", ranks=ranks, mesh=mesh, code=HERE / "peers" / "large.py", wait=False, timeout=3600,
        module={**module, "loss": "cross-entropy"}, epochs=1, batch_size=BATCH * ranks, lr=1e-4, schedule="constant",
        warmup=0.0, checkpoint_steps=EVERY,
    )  # fmt: skip
    control = [pid for pid, role in processes(platform).items() if role == "control"]
    before = cpu_of(control)
    ended = platform.wait(job["id"])
    taken = cpu_of(control) - before
    events = list(platform.events(job["id"]))
    said = "\n".join(event["text"] for event in events if event["type"] == "log")
    facts = [event["facts"] for event in events if event["type"] == "report"]
    behind = [float(fact["checkpoint_seconds_behind"]) for fact in facts if "checkpoint_seconds_behind" in fact]
    return {**ended, "said": said, "behind": behind, "control": taken / len(behind)}


def told(record: Record, what: str, job: dict[str, Any]) -> None:
    clocks, pairs = stamps(job["said"]), record.parameters["pairs"]
    # From the first checkpoint on, then by turns; the first finds its memory fresh, which takes longer, and is left out.
    windows = [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in pairwise(clocks)][3 : 2 * pairs + 3]
    with_one, without, facts = windows[::2], windows[1::2], job["facts"]["0"]
    step = median(wall for wall, _ in without) / WINDOW
    record.figure(f"{what}: a step without", 1e3 * step, "ms")
    costs = [(a[0] - b[0]) / (2 * b[0]) for a, b in zip(with_one, without, strict=True)]
    record.figure(
        f"{what}: cost of a checkpoint every {EVERY} steps, of the steps a second",
        median(costs),
        "of them",
        most=None if record.quick else MOST,
        each=costs,
        seconds_paused=facts["checkpoint_seconds"] / len(job["behind"]),
    )
    behind = job["behind"][:-1]  # the one at the end has no steps beside it
    name = f"{what}: the longest checkpoint, stored within its window of {WINDOW} steps"
    record.figure(name, max(behind) / (WINDOW * step), "of it", most=None if record.quick else WITHIN, seconds=behind)
    taken = [a[1] - b[1] for a, b in zip(with_one, without, strict=True)]
    record.figure(f"{what}: processor time of the ranks for one", median(taken), "s", each=taken)
    record.figure(f"{what}: processor time of control, all it did, for one", job["control"], "s")


def stamps(text: str) -> list[tuple[float, float]]:
    """When each window began, in the rank that came to it last, and the processor time of all ranks by then."""
    began: dict[int, list[tuple[float, float]]] = {}
    for step, at, taken in _SAID.findall(text):
        began.setdefault(int(step), []).append((float(at), float(taken)))
    return [(max(at for at, _ in ranks), sum(taken for _, taken in ranks)) for _, ranks in sorted(began.items())]


if __name__ == "__main__":
    main()
