"""all-MiniLM-L6-v2 without padding and in eight bits through the platform: how much faster at batch 32, and whether it finds
the same texts alike.

Sentences of Python's own documentation and docstrings. More than 2,000 of them are the report split, by which nothing is
calibrated or chosen; each is paired with another, and Spearman's ρ compares the cosines of a variant with those of the float
graph. Speeds are of one thread, by turns, of the same sentences; the float graph's is the better of the engine's and of
onnxruntime as it comes, with all its optimisations, and so are those of what others make.
"""

from __future__ import annotations

import ast
import os
import pydoc_data.topics
import random
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
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
from modelyard.optimisation.measure import MANY, Speed, measure
from modelyard.testing import yard

FASTER, ALIKE, LEAST = 2.0, 0.99, 2000
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
EQUAL = 1e-4  # of ρ: float graphs whose sums are in another order differ by less
EXACT, BEST, CALIBRATION = "unpad", "unpad, dynamic-int8", 128  # rows that the recipes of others get
BERT = {"model_type": "bert", "num_heads": 12, "hidden_size": 384}
PLAIN = " of onnxruntime as it comes"
SECONDS = 12.0  # of measuring each graph
SPLITS = {"train": 100, "calibration": 600, "validation": 600, "test": 2200}
VARIANTS: dict[str, Any] = {
    "fp32": {"variants": ["fp32"]},
    EXACT: {"steps": ["unpad"]},
    BEST: {"steps": ["unpad", "quantize:dynamic-int8,sensitive=4,rows=128"]},
    "dynamic-int8, no layer in float": {"steps": ["quantize:dynamic-int8"]},
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
    """Of the documentation's topics and of what the standard library's modules say of themselves, each once, mixed."""
    texts = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text())
        texts += [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, DOCUMENTED)]
    whole = "\n\n".join(texts)
    parts = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])|\n\s*\n", whole))
    found = list(dict.fromkeys(part for part in parts if 25 <= len(part) <= 400 and part.count(" ") >= 4))
    random.Random(0).shuffle(found)  # neighbours are of one topic, and of one length more often than not
    return found


class Plain:
    """onnxruntime as it comes, with one thread."""

    def __init__(self, graph: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def forward(self, batch: Any) -> Any:
        return self._session.run(None, dict(batch))


def compare(record: Record, platform: Yard, folder: Path) -> None:
    made, wide = {}, {"max_accuracy_drop": 100.0, "seconds": 0.5, "dataset": "sentences@1", "resources": {"cpus": 2}}
    for name, asked in VARIANTS.items():
        try:
            made[name] = platform.optimize("minilm@1", **wide, **asked)
        except Invalid as error:  # it is another model: that is found out before it can be chosen
            record.figure(f"{name}: refused", 1, "variant", why=error.message)
    assert BEST in made, f"{BEST} was refused: its targets cannot be measured"
    fetched = {name: platform.fetch(version["reference"], folder / f"{at}") for at, (name, version) in enumerate(made.items())}
    card, graph = ModelCard.load(fetched["fp32"]), fetched["fp32"] / "model.onnx"
    source = Source(fetched["fp32"], card, Dataset.open(platform.fetch("sentences@1", folder / "dataset", kind="dataset")))
    others, missing = recipes.made(graph, source.examples("calibrate", CALIBRATION).inputs, folder / "others", BERT)
    engines = {name: OnnxEngine(path, ModelCard.load(path)) for name, path in fetched.items()}
    served = {name: OnnxEngine(path, card) for name, path in others.items()}
    plain = {f"{name}{PLAIN}": Plain(path / "model.onnx") for name, path in others.items()} | {f"fp32{PLAIN}": Plain(graph)}
    judged, seconds = source.examples("report").inputs, 1.0 if record.quick else SECONDS
    typical = source.typical(judged, MANY)
    speeds = measure(engines | served | plain, typical, seconds, cut=source.cut)
    even = measure(engines | {f"fp32{PLAIN}": plain[f"fp32{PLAIN}"]}, alike_in_length(judged), seconds, cut=source.cut)
    tokens = float(source.cut(typical)["attention_mask"].mean())
    for name, version in made.items():
        ours(record, name, version, (speeds, even), size=(fetched[name] / "model.onnx").stat().st_size, tokens=tokens)
    wanted, _ = source.run(engines["fp32"], "report")
    alike = {
        name: spearman(source.run(engine, "report")[0].predicted, wanted.predicted)
        for name, engine in (served | {name: engines[name] for name in (BEST, EXACT)}).items()
    }
    for name, path in others.items():
        beside(record, name, speeds, alike, (path / "model.onnx").stat().st_size)
    for name, why in missing.items():
        record.figure(f"{name}: missing", 1, "recipe", why=why)


def alike_in_length(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The sentences about the median length: a batch with no padding to speak of."""
    order = np.argsort(inputs["attention_mask"].sum(axis=1), kind="stable")
    middle = order[len(order) // 2 :][:MANY]
    return {name: array[middle] for name, array in inputs.items()}


def rate(speeds: Mapping[str, Speed], name: str) -> float:
    """Sentences a second of a graph that is not ours, by the engine or by onnxruntime as it comes, whichever is faster."""
    return max(speeds[name].items_per_s, speeds[f"{name}{PLAIN}"].items_per_s)


def ours(
    record: Record, name: str, version: Any, measured: tuple[Mapping[str, Speed], ...], *, size: int, tokens: float
) -> None:
    """Throughput beside the float graph's, and ρ."""
    report, (speeds, even) = version["metadata"]["report"], measured
    speed, chosen, wanted = speeds[name], report["chosen"], name == BEST
    figures = {"p50_ms": speed.p50_ms, "items_per_s": speed.items_per_s, "bytes": size, "report": report}
    if name == "fp32":
        record.figure("sentences that judge", report["rows"], "", least=LEAST)
        record.figure("share of the batch that is tokens", tokens, "")
        record.figure("fp32: sentences a second at batch 32", speed.items_per_s, "1/s", **figures)
        record.figure(f"fp32: throughput, times that{PLAIN}", speed.items_per_s / speeds[f"fp32{PLAIN}"].items_per_s, "×")
        return
    times = speed.items_per_s / rate(speeds, "fp32")
    record.figure(f"{name}: throughput at batch 32, times fp32's", times, "×", least=FASTER if wanted else None, **figures)
    times = even[name].items_per_s / rate(even, "fp32")
    record.figure(f"{name}: the same, of sentences of one length", times, "×", items_per_s=even[name].items_per_s)
    record.figure(f"{name}: Spearman's ρ to fp32", chosen["value"], "", least=ALIKE if wanted else None, interval=chosen)


def beside(record: Record, name: str, speeds: Mapping[str, Speed], alike: Mapping[str, float], size: int) -> None:
    """The best of ours beside what others made; where that is nearer to the float graph, ours in float."""
    own, times = BEST if not alike[name] > alike[BEST] else EXACT, rate(speeds, name)
    figures = {"variant": own, "theirs": times, "p50_ms": speeds[name].p50_ms, "bytes": size}
    record.figure(f"beside {name}: throughput of ours, times theirs", speeds[own].items_per_s / times, "×", least=1, **figures)
    more = alike[own] - alike[name]
    record.figure(f"beside {name}: Spearman's ρ of ours, more than theirs", more, "", least=-EQUAL, theirs=alike[name])


if __name__ == "__main__":
    main()
