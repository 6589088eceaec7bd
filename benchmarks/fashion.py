"""Fashion-MNIST by two ranks through the platform: how accurate, how soon.

70,000 pictures of clothes in ten classes (Xiao, Rasul and Vollgraf, 2017; MIT licence), from Debian's package
dataset-fashion-mnist. Its 10,000 test images are the dataset's report split: nothing is trained, chosen or stopped by them, and
the deployed model answers each once, at the end.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from record import Record, recording

from modelyard.client import Yard
from modelyard.data.bundled import png
from modelyard.testing import yard

PACKAGE = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
VALIDATION = 5_000  # the last images of its training set: the select split
AT_ONCE = 500  # images of one call
QUICK = 4_000  # training images of a quick run
RANKS = 2
CONFIG: dict[str, Any] = {
    "epochs": 12,
    "batch_size": 128,
    "lr": 4e-3,
    "weight_decay": 0.05,
    "image_classifier": {"width": 16, "blocks": 3, "shift": 1, "flip": True},
}


def main() -> None:
    if not PACKAGE.is_dir():
        sys.exit(f"apt-get install dataset-fashion-mnist: there is no {PACKAGE}")
    with recording("fashion", __doc__ or "") as record, tempfile.TemporaryDirectory() as folder:
        config = CONFIG | {"epochs": 1} if record.quick else CONFIG
        record.parameters = {**config, "ranks": RANKS, "validation": VALIDATION}
        files = write_files(Path(folder) / "fashion", QUICK if record.quick else None)
        with yard(Path(folder) / "yard") as platform:
            platform.import_dataset("fashion", files, target="label")
            train(record, platform, config)
            platform.deploy("fashion", "fashion-cnn@1")
            test(record, platform)


def write_files(folder: Path, most: int | None) -> Path:
    """Parquet files by split, as a hub keeps them: train, validation and test."""
    folder.mkdir()
    pixels, labels = read("train")
    cut = len(pixels) - VALIDATION
    write_split(folder / "train.parquet", pixels[:cut][:most], labels[:cut][:most])
    write_split(folder / "validation.parquet", pixels[cut:], labels[cut:])
    write_split(folder / "test.parquet", *read("t10k"))
    return folder


def write_split(file: Path, pixels: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
    table = {"image": [png(image) for image in pixels], "label": [CLASSES[label] for label in labels]}
    pq.write_table(pa.table(table), file)


def read(part: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images UINT8 [n, 28, 28] and labels of 'train' or 't10k', from the IDX files of the package."""
    pixels = gzip.decompress((PACKAGE / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((PACKAGE / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def train(record: Record, platform: Yard, config: dict[str, Any]) -> None:
    began = time.monotonic()
    job = platform.train("fashion-cnn", "fashion@1", "image-classifier", ranks=RANKS, wait=False, **config)
    version = platform.result(job["id"])
    seconds = time.monotonic() - began
    curve = version["metadata"]["curve"]
    ended = platform.job(job["id"])
    taken = {"step_ms": ended["facts"]["0"]["step_ms"], "cpu_seconds": ended["cpu_seconds"]}
    record.figure("seconds from submission to the version", seconds, "s", most=480, **taken)
    record.figure("accuracy on the select split", 100 * curve[-1]["select_accuracy"], "%", curve=curve)


def test(record: Record, platform: Yard) -> None:
    """What the deployment answers to the test images, each sent as a PNG file."""
    pixels, labels = read("t10k")
    answers: list[str] = []
    for at in range(0, len(pixels), AT_ONCE):
        said = platform.predict("fashion", image=[png(image) for image in pixels[at : at + AT_ONCE]])
        answers += [label.decode() for label in said["label"]]
    right = sum(answer == CLASSES[label] for answer, label in zip(answers, labels, strict=True))
    record.figure("accuracy on the 10,000 test images, by the deployment", 100 * right / len(labels), "%", least=91)


if __name__ == "__main__":
    main()
