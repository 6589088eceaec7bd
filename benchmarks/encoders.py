"""all-MiniLM-L6-v2 in eight bits through the platform: how much faster at batch 32, and whether it finds the same texts alike.

Sentences of Python's own documentation and docstrings. More than 2,000 of them are the report split, by which nothing is
calibrated or chosen; each is paired with another, and Spearman's ρ compares the cosines of a variant with those of the float
graph. Speeds are of the graphs in onnxruntime with all its optimisations, one thread, by turns, on sentences of the same
lengths.
"""

from __future__ import annotations

import ast
import os
import pydoc_data.topics
import re
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import recipes
from peers import install
from record import Record, recording

from modelyard.client import Yard
from modelyard.data.datasets import Dataset
from modelyard.engines.base import ModelCard
from modelyard.engines.onnx import OnnxEngine
from modelyard.errors import Invalid
from modelyard.optimisation.evaluate import spearman
from modelyard.optimisation.examples import Source
from modelyard.optimisation.measure import MANY, measure
from modelyard.testing import yard

FASTER, ALIKE, LEAST = 2.0, 0.99, 2000
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
BEST, CALIBRATION = "dynamic-int8", 128  # rows that the recipes of others get
BERT = {"model_type": "bert", "num_heads": 12, "hidden_size": 384}
SECONDS = 20.0  # of measuring each graph
SPLITS = {"train": 600, "validation": 600, "test": 2200}
VARIANTS: dict[str, Any] = {
    "fp32": {"variants": ["fp32"]},
    "dynamic-int8": {"steps": ["quantize:dynamic-int8"]},
    "dynamic-int8, sensitive layers in float": {"steps": ["quantize:dynamic-int8,sensitive=6"]},
    "static-int8": {"steps": ["quantize:static-int8"]},
}


def main() -> None:
    with recording("encoders", __doc__ or "") as record, tempfile.TemporaryDirectory() as folder:
        scale = 10 if record.quick else 1
        record.parameters = {"splits": {name: rows // scale for name, rows in SPLITS.items()}, "variants": VARIANTS}
        write(Path(folder) / "sentences", record.parameters["splits"])
        with yard(Path(folder) / "yard") as platform:
            platform.import_model("minilm", install.weights())
            platform.import_dataset("sentences", Path(folder) / "sentences")
            compare(record, platform, Path(folder))


def write(folder: Path, splits: dict[str, int]) -> None:
    """Parquet files by split, no sentence in two of them."""
    folder.mkdir()
    found, start = sentences(), 0
    for name, rows in splits.items():
        pq.write_table(pa.table({"text": found[start : start + rows]}), folder / f"{name}.parquet")
        start += rows
    assert start <= len(found), f"there are {len(found)} sentences"


def sentences() -> list[str]:
    """Of the documentation's topics and of what the standard library's modules say of themselves, in order, each once."""
    texts = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text())
        texts += [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, DOCUMENTED)]
    whole = "\n\n".join(texts)
    parts = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])|\n\s*\n", whole))
    return list(dict.fromkeys(part for part in parts if 25 <= len(part) <= 400 and part.count(" ") >= 4))


def compare(record: Record, platform: Yard, folder: Path) -> None:
    made, wide = {}, {"max_accuracy_drop": 100.0, "seconds": 0.5, "dataset": "sentences@1", "resources": {"cpus": 2}}
    for name, asked in VARIANTS.items():
        try:
            made[name] = platform.optimize("minilm@1", **wide, **asked)
        except Invalid as error:  # it is another model: that is found out before it can be chosen
            record.figure(f"{name}: refused", 1, "variant", why=error.message)
    fetched = {name: platform.fetch(version["reference"], folder / f"{at}") for at, (name, version) in enumerate(made.items())}
    cards = {name: ModelCard.load(path) for name, path in fetched.items()}
    dataset = Dataset.open(platform.fetch("sentences@1", folder / "dataset", kind="dataset"))
    source = Source(fetched["fp32"], cards["fp32"], dataset)
    rows = source.typical(source.examples("report").inputs, MANY)
    engines = {name: OnnxEngine(fetched[name], card) for name, card in cards.items()}
    calibration = source.examples("calibrate", CALIBRATION).inputs
    others, missing = recipes.made(fetched["fp32"] / "model.onnx", calibration, folder / "others", BERT)
    served = {name: OnnxEngine(path, cards["fp32"]) for name, path in others.items()}
    speeds = measure(engines | served, rows, 1.0 if record.quick else SECONDS, cut=source.cut)
    for name, version in made.items():
        report = version["metadata"]["report"]
        speed, chosen = speeds[name], report["chosen"]
        figures = {"p50_ms": speed.p50_ms, "bytes": (fetched[name] / "model.onnx").stat().st_size, "report": report}
        if name == "fp32":
            record.figure("sentences that judge", report["rows"], "", least=LEAST)
            record.figure("fp32: sentences a second at batch 32", speed.items_per_s, "1/s", **figures)
            continue
        times = speed.items_per_s / speeds["fp32"].items_per_s
        wanted = name == BEST
        record.figure(f"{name}: throughput at batch 32, times fp32's", times, "×", least=FASTER if wanted else None, **figures)
        record.figure(f"{name}: Spearman's ρ to fp32", chosen["value"], "", least=ALIKE if wanted else None, interval=chosen)
    original, _ = source.run(engines["fp32"], "report")
    for name, engine in served.items():
        theirs, _ = source.run(engine, "report")
        alike = spearman(theirs.predicted, original.predicted)
        times = speeds[BEST].items_per_s / speeds[name].items_per_s
        figures = {"p50_ms": speeds[name].p50_ms, "bytes": (others[name] / "model.onnx").stat().st_size}
        record.figure(f"{BEST}: throughput, times that of {name}", times, "×", least=1, **figures)
        own = made[BEST]["metadata"]["report"]["chosen"]["value"]
        record.figure(f"{BEST}: Spearman's ρ, more than {name}", own - alike, "", least=0, theirs=alike)
    for name, why in missing.items():
        record.figure(f"{name}: missing", 1, "recipe", why=why)


if __name__ == "__main__":
    main()
