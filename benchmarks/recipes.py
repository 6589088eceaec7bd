"""What else makes a graph of ONNX smaller and faster: onnxruntime's quantiser as its documentation uses it, and Olive
(`peers/olive_recipes.py`, in an environment of its own). Each takes the float graph and rows to calibrate by."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from peers import install

Rows = Mapping[str, np.ndarray[Any, Any]]
OLIVE = Path(__file__).parent / "peers" / "olive_recipes.py"


def made(
    graph: Path, rows: Rows, folder: Path, transformer: Mapping[str, Any] | None = None
) -> tuple[dict[str, Path], dict[str, str]]:
    """Folders with a `model.onnx`, by what made it, and why others could not. `transformer`: what Olive's fusion is told of
    one."""
    folder.mkdir()
    graphs, missing = plain(graph, rows, folder), dict[str, str]()
    try:
        found, missing = olive(graph, rows, folder, transformer)
        graphs |= found
    except install.Missing as error:
        missing["Olive"] = str(error)
    return {name: _alone(path, folder / f"recipe-{number}") for number, (name, path) in enumerate(graphs.items())}, missing


def _alone(graph: Path, folder: Path) -> Path:
    folder.mkdir()
    shutil.copyfile(graph, folder / "model.onnx")
    return folder


def plain(graph: Path, rows: Rows, folder: Path) -> dict[str, Path]:
    """Defaults throughout, after the pre-processing that the documentation asks for; without its symbolic shapes where that
    gives up, as it then advises."""
    paths = {name: folder / f"{name}.onnx" for name in ("prepared", "dynamic", "static")}
    with quietly(), contextlib.chdir(folder):  # where it gives up it leaves the graph in the folder it is run in
        try:
            quant_pre_process(graph, paths["prepared"])
        except Exception:  # noqa: BLE001 - it raises nothing narrower
            quant_pre_process(graph, paths["prepared"], skip_symbolic_shape=True)
        quantize_dynamic(paths["prepared"], paths["dynamic"])
        quantize_static(paths["prepared"], paths["static"], _Reader(rows))
    return {"onnxruntime, dynamic": paths["dynamic"], "onnxruntime, static": paths["static"]}


def olive(
    graph: Path, rows: Rows, folder: Path, transformer: Mapping[str, Any] | None
) -> tuple[dict[str, Path], dict[str, str]]:
    """By Olive's own passes with their defaults. Raises `Missing` where it cannot be installed."""
    python = install.python("olive")
    np.savez(folder / "rows.npz", **rows)
    command = [python, OLIVE, graph, folder / "rows.npz", folder / "olive", *([json.dumps(transformer)] if transformer else [])]
    with (folder / "olive.log").open("w") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, check=False)
    if done.returncode:
        raise install.Missing((folder / "olive.log").read_text()[-300:])
    told = json.loads(done.stdout.splitlines()[-1])
    return {f"Olive, {name}": Path(path) for name, path in told["graphs"].items()}, told["missing"]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Row by row."""

    def __init__(self, rows: Rows) -> None:
        count = len(next(iter(rows.values())))
        self._rows = iter([{name: array[at : at + 1] for name, array in rows.items()} for at in range(count)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rows, None)


@contextmanager
def quietly() -> Iterator[None]:
    """The quantiser gives advice on the root logger."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
