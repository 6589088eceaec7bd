"""The gate before variants of which it is known how good they are: broken ones must not be deployed, good ones should.

A classifier of Fashion-MNIST is trained through the platform and deployed with a gate. Variants of its ONNX graph are planted
from a seed (`plants.py`), imported, evaluated by the job kind `evaluate` on 3,000 rows, and deployed, as far as the gate lets
them. How good each is, is known from 30,000 other rows, which the platform never sees.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fashion import CLASSES, PACKAGE, read, write_split
from plants import BROKEN, HARMLESS, Budget, Plant, Scene, draw
from record import Record, median, recording

from modelyard.client import Yard
from modelyard.data.bundled import png
from modelyard.data.transforms import build
from modelyard.engines.base import ModelCard
from modelyard.errors import Conflict, ModelyardError
from modelyard.testing import yard

BUDGET = Budget(whole=3.0, slice=15.0)
GATE: dict[str, Any] = {"max_accuracy_drop": BUDGET.whole, "max_slice_drop": BUDGET.slice, "confidence": 0.95}
BAD, GOOD = 72, 20
TRAINING, VALIDATION, SEEN = 12_000, 1_000, 3_000  # rows; the gate sees SEEN
CALIBRATION, TRUE = 512, 20_000  # others of the training images: what quantisers are calibrated by, what the truth is told by
CONFIG: dict[str, Any] = {"epochs": 4, "batch_size": 128, "lr": 4e-3, "image_classifier": {"width": 8, "blocks": 2}}
AT_ONCE = 2  # variants that are imported and evaluated at a time


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, help="of the plants (default: drawn anew, and kept in the record)")
    parser.add_argument("--bad", type=int, help=f"how many broken variants (default: {BAD}; of a quick run 12)")
    parser.add_argument("--good", type=int, help=f"how many good ones (default: {GOOD}; of a quick run 4)")


def main() -> None:
    if not PACKAGE.is_dir():
        sys.exit(f"apt-get install dataset-fashion-mnist: there is no {PACKAGE}")
    with recording("gate", __doc__ or "", options) as record, tempfile.TemporaryDirectory() as folder:
        given = record.given
        seed = secrets.randbelow(1 << 31) if given.seed is None else given.seed
        bad, good = given.bad or (12 if record.quick else BAD), given.good or (4 if record.quick else GOOD)
        config = {**CONFIG, "epochs": 2} if record.quick else CONFIG
        record.parameters = {"seed": seed, "bad": bad, "good": good, "gate": GATE, "training": config}
        print(f"seed {seed}", flush=True)
        with yard(Path(folder) / "yard") as platform:
            baseline, card, scene = prepare(platform, Path(folder), config)
            random = np.random.default_rng(seed)
            kinds = [*_spread(BROKEN, bad), *_spread(HARMLESS, good)]
            plants = [draw(scene, kind, random) for kind in kinds]
            order = [int(place) for place in random.permutation(len(plants))]
            measure(record, platform, baseline, card, [plants[place] for place in order], Path(folder))


def prepare(platform: Yard, folder: Path, config: dict[str, Any]) -> tuple[str, ModelCard, Scene]:
    """The version that is deployed with a gate, its card, and its graph beside the 30,000 rows that are the truth."""
    pixels, labels = read("train")
    files = folder / "fashion"
    files.mkdir()
    parts = {"train": slice(TRAINING), "validation": slice(-SEEN - VALIDATION, -SEEN), "test": slice(-SEEN, None)}
    for name, part in parts.items():
        write_split(files / f"{name}.parquet", pixels[part], labels[part])
    platform.import_dataset("fashion", files, target="label")
    platform.train("cnn", "fashion@1", "image-classifier", **config)
    made = platform.optimize("cnn@1", variants=["fp32"], max_accuracy_drop=100.0, seconds=0.05)
    baseline = str(made["reference"])
    platform.deploy("shop", baseline, gate={**GATE, "baseline": baseline})
    platform.fetch(baseline, folder / "baseline")
    card = ModelCard.load(folder / "baseline")
    transform, (test_pixels, test_labels) = build(card.transform), read("t10k")
    unseen = slice(TRAINING + CALIBRATION, TRAINING + CALIBRATION + TRUE)
    true_pixels, true_labels = (np.concatenate(pair) for pair in ((test_pixels, pixels[unseen]), (test_labels, labels[unseen])))

    def shown(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return transform.before({"image": np.array([png(image) for image in images], object)})[card.inputs[0].name]

    wanted = np.array([(card.labels or CLASSES).index(CLASSES[label]) for label in true_labels])
    model = onnx.load(folder / "baseline" / card.files["onnx"])
    return baseline, card, Scene(model, shown(true_pixels), wanted, shown(pixels[TRAINING : unseen.start]), BUDGET)


def measure(record: Record, platform: Yard, baseline: str, card: ModelCard, plants: list[Plant], folder: Path) -> None:
    """Import, evaluate and try to deploy each; then the figures."""

    def judged(numbered: tuple[int, Plant]) -> tuple[str | None, float]:
        number, plant = numbered
        path = folder / f"planted-{number}.onnx"
        onnx.save(plant.model, path)
        began = time.monotonic()
        try:
            shape = {"labels": list(card.labels or ()), "transform": card.transform}
            version = platform.import_model(f"planted-{number}", path, task=card.task, **shape)
            platform.evaluate(version["reference"], against=baseline, on="fashion@1")
        except ModelyardError as error:
            print(f"{plant.kind}: {error.message}", flush=True)
            return None, time.monotonic() - began
        return str(version["reference"]), time.monotonic() - began

    with ThreadPoolExecutor(AT_ONCE) as pool:
        made = list(pool.map(judged, enumerate(plants)))
    outcomes = [_deployed(platform, reference) for reference, _ in made]
    for plant, outcome in zip(plants, outcomes, strict=True):
        print(f"{'deployed' if outcome else 'refused':9} {plant.kind:36} {plant.loss}", flush=True)
    tell(record, plants, outcomes)
    record.figure("imported and evaluated, seconds each", median([seconds for _, seconds in made]), "s")


def _deployed(platform: Yard, reference: str | None) -> bool:
    """Whether a version came through. One that could not be imported or evaluated never gets so far."""
    if reference is None:
        return False
    try:
        platform.deploy("shop", reference, wait=False)
    except Conflict:
        return False
    return True


def tell(record: Record, plants: list[Plant], outcomes: list[bool]) -> None:
    bad = [(plant, outcome) for plant, outcome in zip(plants, outcomes, strict=True) if plant.kind in BROKEN]
    good = [(plant, outcome) for plant, outcome in zip(plants, outcomes, strict=True) if plant.kind in HARMLESS]
    record.figure(
        "bad variants deployed",
        sum(outcome for _, outcome in bad),
        f"of {len(bad)}",
        most=0,
        kinds=Counter(plant.kind for plant, _ in bad),
        within_the_budget_over_all_rows=sum(plant.loss.whole <= BUDGET.whole for plant, _ in bad),
        losses=[{"kind": plant.kind, **asdict(plant.loss), "deployed": outcome} for plant, outcome in bad],
    )
    record.figure(
        "good variants refused",
        sum(not outcome for _, outcome in good),
        f"of {len(good)}",
        most=1,
        kinds=Counter(plant.kind for plant, _ in good),
        losses=[{"kind": plant.kind, **asdict(plant.loss), "deployed": outcome} for plant, outcome in good],
    )


def _spread(kinds: Any, number: int) -> list[str]:
    """So many names of kinds, each as often as the others."""
    names = list(kinds)
    return [names[place % len(names)] for place in range(number)]


if __name__ == "__main__":
    main()
