"""Your own `nn.Module`, trained from its file, fetched, loaded in plain PyTorch, and served; then the other way round.

    python examples/simple_model/run.py

Speaks to the platform of MODELYARD_URL and MODELYARD_KEY, or of MODELYARD_DATA; without either it starts one of its own.
"""

from __future__ import annotations

import csv
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from modelyard import Yard
from modelyard.testing import yard as started

HERE = Path(__file__).parent
COLUMNS = [f"x{i}" for i in range(10)]
CONFIG = {
    "epochs": 20,
    "batch_size": 64,
    "optimiser": "sgd",
    "lr": 0.05,
    "schedule": "constant",
    "module": {
        "name": "SimpleModel",
        "inputs": COLUMNS,
        "target": "y",
        "loss": "mse",
        "weights": "simple_model.pth",
    },
}
TOLERANCE = 1e-5

sys.path.insert(0, str(HERE))
from model import SimpleModel  # noqa: E402 - your file, not a part of the platform


def write_rows(file: Path, rows: int = 2000) -> None:
    """A table of ten numbers a row and one to predict from them."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, 10))
    y = np.sin(x[:, 0]) + 0.5 * x[:, 1] * x[:, 2] + 0.1 * generator.normal(size=rows)
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow([*COLUMNS, "y"])
        writer.writerows([*map(float, row), float(target)] for row, target in zip(x, y, strict=True))


def served(yard: Yard, name: str, model: str, x: np.ndarray) -> np.ndarray:
    """Deploy a version and ask it."""
    deployment = yard.deploy(name, model)
    answer = yard.predict(name, {deployment["inputs"][0]["name"]: x})
    (output,) = answer.values()
    return output


def check(what: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    error = float(np.abs(ours - theirs).max())
    print(f"{what:<48} largest difference {error:.1e}")
    assert ours.shape == theirs.shape
    assert error <= TOLERANCE, f"{what}: {error} > {TOLERANCE}"


def train_and_serve(yard: Yard, work: Path, x: np.ndarray) -> None:
    """Data → training from your file → a plain state_dict → the same answers here and from the service."""
    write_rows(work / "rows.csv")
    dataset = yard.import_dataset("simple-rows", work / "rows.csv", target="y")
    version = yard.train("simple", dataset["reference"], "module", ranks=2, code=HERE / "model.py", **CONFIG)
    folder = yard.fetch(version["reference"], work / "simple")

    model = SimpleModel()
    model.load_state_dict(torch.load(folder / "simple_model.pth", weights_only=True))
    model.eval()
    with torch.no_grad():
        ours = model(torch.from_numpy(x)).numpy()

    check("trained here, served as torch", ours, served(yard, "simple", version["reference"], x))


def bring_your_own(yard: Yard, work: Path, x: np.ndarray) -> None:
    """A model that was made elsewhere, as weights with their module and as ONNX."""
    torch.manual_seed(1)
    model = SimpleModel().eval()
    torch.save(model.state_dict(), work / "elsewhere.pth")
    torch.onnx.export(
        model,
        (torch.zeros(2, 10),),
        work / "elsewhere.onnx",
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    with torch.no_grad():
        ours = model(torch.from_numpy(x)).numpy()

    module = f"{HERE / 'model.py'}:SimpleModel"
    weights = yard.import_model("elsewhere-pth", work / "elsewhere.pth", module=module, inputs=["x:FP32[-1,10]"])
    check("imported weights and module, served as torch", ours, served(yard, "elsewhere-pth", weights["reference"], x))
    graph = yard.import_model("elsewhere-onnx", work / "elsewhere.onnx")
    check("imported ONNX, served as onnx", ours, served(yard, "elsewhere-onnx", graph["reference"], x))


@contextmanager
def platform(work: Path) -> Iterator[Yard]:
    """The platform of the environment, or one of our own for as long as this runs."""
    if {"MODELYARD_URL", "MODELYARD_DATA"} & set(os.environ):
        with Yard() as yard:
            yield yard
    else:
        with started(work / "yard") as yard:
            yield yard


def main() -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of an optional library that is not there,
    warnings.simplefilter("ignore", FutureWarning)  # and warns of its own use of another
    x = np.random.default_rng(7).normal(size=(32, 10)).astype(np.float32)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, platform(Path(folder)) as yard:
        train_and_serve(yard, Path(folder), x)
        bring_your_own(yard, Path(folder), x)


if __name__ == "__main__":
    main()
