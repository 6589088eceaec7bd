"""How much of what there is a search finds: beside every point of the same space, on three tasks.

The grid is a search that may try all points. Each search then has 30 % as many trials. Both are jobs of the platform and every
trial is made, trained and measured anew; what a search found is judged by the figures that the grid has of the same steps, so
that the noise of two measurements is not taken for a difference; nor is that of variants which differ in what they learned
alone, and so cost the same: each has the median of their costs. The hypervolume is that of quality, latency, throughput and
size: of costs, by their logarithms, beside the worst of the grid, and of quality between no loss and five points, since that
much is lost by nobody's leave, and a gain over the original is luck. What a search measures before it trains anything, to know
what cuts cost, is no trial; it counts in its seconds, and not in the grid's, which has no use for it.
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from fashion import PACKAGE, write_files
from record import Record, recording

from modelyard.client import Yard
from modelyard.optimisation.search.front import losses
from modelyard.testing import yard

SHARE, LEAST = 0.3, 0.95
SEEDS = 3
WORST, BUDGET = 5.0, 1.25  # points: four budgets are what a search takes for hopeless
DIGITS: dict[str, Any] = {"epochs": 12, "image_classifier": {"width": 16, "blocks": 2}}
FASHION: dict[str, Any] = {"epochs": 2, "batch_size": 128, "lr": 4e-3, "image_classifier": {"width": 12, "blocks": 2}}
TABLE: dict[str, Any] = {"epochs": 20}
CUTS = "channels=[0,0.25,0.5,0.667],lesson=[distil,finetune]"
IMAGES = 6_000  # of Fashion-MNIST that are trained on


@dataclass(frozen=True)
class Task:
    """`prepare` leaves the model `name@1`; `space` is what is searched, None the usual."""

    name: str
    prepare: Callable[[Yard, Path], None]
    space: str | None = None


def main() -> None:
    if not PACKAGE.is_dir():
        sys.exit(f"apt-get install dataset-fashion-mnist: there is no {PACKAGE}")
    with recording("search", __doc__ or "") as record, tempfile.TemporaryDirectory() as folder:
        tasks = TASKS[:1] if record.quick else TASKS
        seeds = 1 if record.quick else SEEDS
        record.parameters = {"share": SHARE, "seeds": seeds, "tasks": {task.name: task.space or "usual" for task in tasks}}
        with yard(Path(folder) / "yard") as platform:
            for task in tasks:
                task.prepare(platform, Path(folder))
                compare(record, platform, task, seeds)


def digits(platform: Yard, _: Path) -> None:
    platform.import_dataset("digits", "sklearn:digits")
    platform.train("digits", "digits@1", "image-classifier", **DIGITS)


def table(platform: Yard, _: Path) -> None:
    platform.import_dataset("cancer", "sklearn:breast_cancer")
    platform.train("cancer", "cancer@1", "tabular", **TABLE)


def fashion(platform: Yard, folder: Path) -> None:
    platform.import_dataset("fashion", write_files(folder / "fashion", IMAGES), target="label")
    platform.train("fashion", "fashion@1", "image-classifier", **FASHION)


TASKS = [
    Task("digits", digits),
    Task("cancer", table),
    Task("fashion", fashion, f"{CUTS},epochs=[2],qat=[0,1],quantize=[none,static-int8,weights-int8]"),
]


def compare(record: Record, platform: Yard, task: Task, seeds: int) -> None:
    grid = search(platform, task, trials=300, seed=0)
    known = {tuple(row["steps"]): row for row in grid["rows"]}
    lone = grid["seconds"] - grid["estimates"].get("seconds", 0.0)
    record.figure(f"{task.name}: points of the grid", grid["trials"], "", seconds=lone, stopped=grid["trials"] - len(known))
    trials = math.floor(SHARE * grid["trials"])
    shares, took, estimates = [], [], []
    for seed in range(1, seeds + 1):
        found = search(platform, task, trials=trials, seed=seed)
        reached = [known[steps] for row in found["rows"] if (steps := tuple(row["steps"])) in known]
        shares.append(volume(reached, grid["rows"]) / volume(grid["rows"], grid["rows"]))
        took.append(found["seconds"])
        estimates.append(found["estimates"])
    more = {"each": shares, "trials": trials, "estimates": estimates}
    record.figure(f"{task.name}: hypervolume found in {trials} trials", mean(shares), "of the grid's", least=LEAST, **more)
    record.figure(f"{task.name}: seconds beside the grid's", mean(took) / lone, "of them", each=took)


def search(platform: Yard, task: Task, *, trials: int, seed: int) -> dict[str, Any]:
    """The rows of a search that came to an end, and how long it took."""
    more = {} if task.space is None else {"space": task.space}
    began = time.monotonic()
    job = platform.optimize(
        f"{task.name}@1", trials=trials, seed=seed, max_accuracy_drop=BUDGET, seconds=0.5, reuse=False, wait=False, **more
    )
    ended = platform.wait(job["id"])
    facts = ended["facts"]["0"]
    rows = [facts[name] for name in sorted(facts) if name.startswith("trial ")]
    whole = [row for row in rows if row["state"] == "succeeded"]
    return {"rows": whole, "trials": len(rows), "seconds": time.monotonic() - began, "estimates": facts.get("estimates", {})}


def volume(rows: Sequence[dict[str, Any]], grid: Sequence[dict[str, Any]]) -> float:
    """What the rows dominate, up to the worst of the grid on each axis of costs, and to `WORST` points."""
    alike: dict[str, list[tuple[float, ...]]] = {}
    for row in grid:
        alike.setdefault(shape(row), []).append(costs(row))
    known = {name: tuple(map(median, zip(*found, strict=True))) for name, found in alike.items()}
    worst = [WORST, *map(max, zip(*known.values(), strict=True))]
    return dominated([(lost(row), *known[shape(row)]) for row in rows], worst)


def shape(row: dict[str, Any]) -> str:
    """What is cut away and how it is rounded: all that costs depend on."""
    return " ".join(re.findall(r"(?:channels|heads|blocks)=[\d.]+|quantize:[^,]+", " ".join(row["steps"])))


def lost(row: dict[str, Any]) -> float:
    """Points, from none up to the worst."""
    found = losses(row)
    assert found is not None
    return min(max(found[0], 0.0), WORST)


def costs(row: dict[str, Any]) -> tuple[float, ...]:
    """Their logarithms."""
    found = losses(row)
    assert found is not None
    return tuple(math.copysign(1, cost) * math.log2(abs(cost)) for cost in found[1:])


def dominated(points: Sequence[tuple[float, ...]], worst: Sequence[float]) -> float:
    """The hypervolume between points and `worst`, less being better: by slices along the last axis (While et al., 2006)."""
    if len(worst) == 1:
        return max(0.0, worst[0] - min((point[0] for point in points), default=worst[0]))
    levels = sorted({point[-1] for point in points if point[-1] < worst[-1]})
    total = 0.0
    for level, above in pairwise([*levels, worst[-1]]):
        total += (above - level) * dominated([point[:-1] for point in points if point[-1] <= level], worst[:-1])
    return total


if __name__ == "__main__":
    main()
