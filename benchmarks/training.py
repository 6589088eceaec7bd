"""Steps a second through the platform, against a plain hand-written PyTorch loop (1 rank), a plain DDP script and a plain FSDP2
script (2 ranks each).

Both sides train the same network (peers/network.py, a million parameters) on rows alike in batches of the same sizes, with
the same optimiser, one thread a rank, no logging; the network itself takes the time, from the start of step 51 on. Pairs
alternate. The script by hand is as one writes it. What of the ratio is the allocator that ranks are given is told by one more
case, which gives it to the script by hand too.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from record import HERE, Record, median, recording

from modelyard.client import Yard
from modelyard.jobs.executor import KEEP_MEMORY
from modelyard.testing import yard

BATCH = {1: 10, 2: 20}  # of all ranks together
EQUAL = "1 rank, allocators alike"
CASES = {"1 rank": (1, "data"), EQUAL: (1, "data"), "2 ranks": (2, "data"), "2 ranks, FSDP2": (2, "shard=2")}
LR = 0.001
PATIENCE = 300.0  # seconds a side may take: one that does not end is an error, not a longer wait
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_SAID = re.compile(r"seconds a step: ([0-9.]+) wall ([0-9.]+) cpu")
Step = tuple[float, float]  # seconds, and seconds of the processor


def main() -> None:
    with recording("training", __doc__ or "") as record, tempfile.TemporaryDirectory() as folder:
        pairs, warm, measured = (2, 20, 40) if record.quick else (7, 50, 100)
        record.parameters = {
            "pairs": pairs,
            "warm": warm,
            "steps": measured,
            "batch": BATCH,
            "threads": 1,
            "optimiser": "adamw",
        }
        work = Path(folder)
        for ranks, batch in BATCH.items():
            rows = (warm + measured + 1) * batch
            write_rows(work / f"plain{ranks}", work / f"rows{ranks}.csv", rows)
        with yard(work / "yard") as platform:
            for ranks in BATCH:
                table = work / f"rows{ranks}.csv"
                dataset = platform.import_dataset(f"rows{ranks}", table, target="y", task="tabular-classification")
                cut(work / f"plain{ranks}", dataset["metadata"]["splits"]["train"])
            for what in CASES:
                compare(record, platform, work, what, pairs)


def write_rows(plain: Path, table: Path, rows: int) -> None:
    """At least `rows` rows for training on each side: a table for the platform, which trains on some 60% of it, arrays for the
    peer."""
    generator = np.random.default_rng(0)
    total = int(rows / 0.56)
    x, y = generator.normal(size=(total, 64)).astype(np.float32), generator.integers(0, 10, total)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*(f"x{column}" for column in range(64)), "y"])
        writer.writerows([*(f"{value:.6g}" for value in row), f"c{label}"] for row, label in zip(x, y, strict=True))
    plain.mkdir()
    np.save(plain / "x.npy", x)
    np.save(plain / "y.npy", y)


def cut(plain: Path, rows: int) -> None:
    """Leave the peer as many rows as the platform trains on: then both have batches of the same sizes."""
    for name in "xy":
        np.save(plain / f"{name}.npy", np.load(plain / f"{name}.npy")[:rows])


def compare(record: Record, platform: Yard, work: Path, what: str, pairs: int) -> None:
    ranks, mesh = CASES[what]
    ours: list[Step] = []
    theirs: list[Step] = []
    for pair in range(pairs):
        sides = [
            (ours, lambda: through_platform(platform, ranks, mesh, record)),
            (theirs, lambda: by_hand(work / f"plain{ranks}", what, record)),
        ]
        for kept, side in sides if pair % 2 == 0 else reversed(sides):
            kept.append(side())
    wall, plain_wall = (median(step[0] for step in side) for side in (ours, theirs))
    record.figure(f"{what}: a step by hand", 1e3 * plain_wall, "ms", least=20, each=theirs)
    record.figure(f"{what}: steps a second through the platform", 1 / wall, "1/s", by_hand=1 / plain_wall, each=ours)
    for at, clock in ((1, "processor time by hand / through the platform"), (0, "steps a second, platform / by hand")):
        ratios = [hand[at] / step[at] for step, hand in zip(ours, theirs, strict=True)]
        record.figure(f"{what}: {clock}", median(ratios), "×", least=0.97 if at == 0 and what != EQUAL else None, each=ratios)


def through_platform(platform: Yard, ranks: int, mesh: str, record: Record) -> Step:
    """A `train` job."""
    steps = {name: record.parameters[name] for name in ("warm", "steps")}
    module = {
        "file": "network.py",
        "name": "Network",
        "arguments": {"warm": steps["warm"], "measured": steps["steps"]},
        "inputs": [f"x{column}" for column in range(64)],
        "loss": "cross-entropy",
    }
    job = platform.train(
        "network", f"rows{ranks}", "module", ranks=ranks, mesh=mesh, code=HERE / "peers" / "network.py", wait=False,
        timeout=PATIENCE, module=module, epochs=1, batch_size=BATCH[ranks], lr=LR, schedule="constant", warmup=0.0,
    )  # fmt: skip
    platform.wait(job["id"])
    return slowest("\n".join(platform.logs(job["id"])))


def by_hand(plain: Path, what: str, record: Record) -> Step:
    (ranks, mesh), steps = CASES[what], [record.parameters[name] for name in ("warm", "steps")]
    given = map(str, [plain, ranks, "ddp" if mesh == "data" else "fsdp", BATCH[ranks], LR, *steps])
    command = [sys.executable, str(HERE / "peers" / "plain.py"), *given]
    env = os.environ | ONE_THREAD | (KEEP_MEMORY if what == EQUAL else {})
    ended = subprocess.run(command, check=True, capture_output=True, text=True, env=env, timeout=PATIENCE)
    return slowest(ended.stdout)


def slowest(text: str) -> Step:
    """The step of the slowest rank."""
    return max((float(wall), float(cpu)) for wall, cpu in _SAID.findall(text))


if __name__ == "__main__":
    main()
