"""Fashion-MNIST: a residual CNN of a quarter of a million parameters, made smaller and faster by steps through the platform.

The 10,000 test images are the report split: nothing is trained, calibrated, chosen or stopped by them. Speed and size are of
graphs in onnxruntime with all its optimisations, one thread, measured here side by side in alternating rounds: the baseline in
float, and what each chain of steps made of it. The drop of accuracy is the platform's own, of paired answers.

Beside it what others make of the same graph: onnxruntime's quantiser and Olive's passes with their defaults (`recipes.py`).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import recipes
from fashion import PACKAGE, QUICK, write_files
from record import Record, recording

from modelyard.client import Yard
from modelyard.data.datasets import Dataset
from modelyard.engines.base import ModelCard
from modelyard.engines.onnx import OnnxEngine
from modelyard.optimisation.evaluate import drop
from modelyard.optimisation.examples import Source
from modelyard.optimisation.measure import Speed, measure
from modelyard.testing import yard

CONFIG: dict[str, Any] = {
    "epochs": 7,
    "batch_size": 128,
    "lr": 4e-3,
    "weight_decay": 0.05,
    "image_classifier": {"width": 24, "blocks": 3, "shift": 1, "flip": True},
}
# To 16, 32 and 48 channels in the three stages: onnxruntime computes eight-bit channels by sixteens.
PRUNE: dict[str, Any] = {
    "step": "prune",
    "channels": 0.3333,
    "layers": {"features.6*": 0.5, "features.8*": 0.5},
    "multiple": 16,
}
Steps = tuple[str | dict[str, Any], ...]
CHAINS: dict[str, Steps] = {
    "small": (PRUNE, "distil:epochs=10,alpha=0.5", "qat:epochs=1", "quantize:static-int8"),
    "eight bits alone": ("quantize:static-int8",),
}
BEST = "small"
FASTER, SMALLER, DROP = 4.0, 8.0, 0.5  # times at batch 1, times in bytes, points
CALIBRATION = 256  # rows that the recipes of others get
SECONDS = 10.0  # of measuring each graph


def main() -> None:
    if not PACKAGE.is_dir():
        sys.exit(f"apt-get install dataset-fashion-mnist: there is no {PACKAGE}")
    with recording("optimise", __doc__ or "") as record, tempfile.TemporaryDirectory() as folder:
        config = CONFIG | {"epochs": 1} if record.quick else CONFIG
        record.parameters = {**config, "chains": {name: list(steps) for name, steps in CHAINS.items()}}
        files = write_files(Path(folder) / "fashion", QUICK if record.quick else None)
        with yard(Path(folder) / "yard") as platform:
            platform.import_dataset("fashion", files, target="label")
            chains(record, platform, config, Path(folder))


def chains(record: Record, platform: Yard, config: dict[str, Any], folder: Path) -> None:
    version = platform.train("fashion-cnn", "fashion@1", "image-classifier", ranks=2, **config)
    parameters = version["metadata"]["parameters"]
    record.figure("parameters of the baseline", parameters, "", least=250_000, most=320_000)
    wide = {"max_accuracy_drop": 100.0, "resources": {"cpus": 2}}
    plain = platform.optimize("fashion-cnn@1", variants=["fp32"], **wide)
    accuracy = plain["metadata"]["report"]["original"]["value"]
    record.figure("accuracy of the baseline on the 10,000 test images", 100 * accuracy, "%", least=92)
    made = {"baseline": plain}
    for name, steps in CHAINS.items():
        made[name] = platform.optimize("fashion-cnn@1", steps=quick(steps) if record.quick else steps, **wide)
    fetched = {name: platform.fetch(version["reference"], folder / name.replace(" ", "-")) for name, version in made.items()}
    compare(record, made, fetched, Path(platform.fetch("fashion@1", folder / "dataset", kind="dataset")))


def quick(steps: Steps) -> Steps:
    """One epoch of each."""
    return tuple(step.replace("epochs=10", "epochs=1") if isinstance(step, str) else step for step in steps)


def compare(record: Record, made: dict[str, Any], fetched: dict[str, Path], dataset: Path) -> None:
    cards = {name: ModelCard.load(folder) for name, folder in fetched.items()}
    engines = {name: OnnxEngine(fetched[name], card) for name, card in cards.items()}
    source = Source(fetched["baseline"], cards["baseline"], Dataset.open(dataset))
    calibration = source.examples("calibrate", CALIBRATION).inputs
    others, missing = recipes.made(fetched["baseline"] / "model.onnx", calibration, dataset.parent / "others")
    served = {name: OnnxEngine(folder, cards["baseline"]) for name, folder in others.items()}
    rows = source.examples("select", 64).inputs
    speeds = measure(engines | served, rows, 1.0 if record.quick else SECONDS)
    sizes = {
        name: sum(path.stat().st_size for path in folder.glob("model.onnx*")) for name, folder in (fetched | others).items()
    }
    own = {"p50_ms": speeds["baseline"].p50_ms, "bytes": sizes["baseline"]}
    record.figure("p50 of the baseline in float, batch 1", own["p50_ms"], "ms", **own)
    for name in CHAINS:
        told, best = made[name]["metadata"], name == BEST
        lost = told["report"]["drop"]
        figures = {"p50_ms": speeds[name].p50_ms, "items_per_s": speeds[name].items_per_s, "bytes": sizes[name]}
        faster, smaller = speeds["baseline"].p50_ms / speeds[name].p50_ms, sizes["baseline"] / sizes[name]
        record.figure(f"{name}: times faster at batch 1", faster, "×", least=FASTER if best else None, **figures)
        record.figure(f"{name}: times smaller", smaller, "×", least=SMALLER if best else None, variant=told["variant"])
        record.figure(
            f"{name}: points lost on the test images, upper bound at 95 %",
            lost["high"],
            "points",
            most=DROP if best else None,
            drop=lost,
            accuracy=told["report"]["chosen"],
        )
        if "distillation" in told:
            found = told["distillation"]
            record.figure(f"{name}: gain of the lesson", found["report"]["gain"]["value"], "points", **found)
    beside(record, source, engines, served, speeds, sizes, missing)


def beside(
    record: Record,
    source: Source,
    engines: dict[str, OnnxEngine],
    served: dict[str, OnnxEngine],
    speeds: dict[str, Speed],
    sizes: dict[str, int],
    missing: dict[str, str],
) -> None:
    """The winner and what the recipes of others make of the same graph: speed, size, and right answers to the test images."""
    best, wanted = source.run(engines[BEST], "report")
    for name, engine in served.items():
        theirs, _ = source.run(engine, "report")
        less = drop(theirs.predicted, best.predicted, wanted, "accuracy")
        accuracy = float((theirs.predicted == wanted).mean())
        figures = {"p50_ms": speeds[name].p50_ms, "bytes": sizes[name], "accuracy": accuracy, "points": less.to_json()}
        record.figure(f"{BEST}: p50 over that of {name}", speeds[BEST].p50_ms / speeds[name].p50_ms, "", most=1, **figures)
        record.figure(f"{BEST}: points less than {name}, lower bound at 95 %", less.low, "points", most=0)
    for name, why in missing.items():
        record.figure(f"{name}: missing", 1, "recipe", why=why)


if __name__ == "__main__":
    main()
