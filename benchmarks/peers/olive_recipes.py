"""Olive's passes with their defaults: olive_recipes.py GRAPH ROWS.npz FOLDER [OPTIONS], the last of its fusion of transformers,
as JSON, where the graph is one. Run by Olive's own environment; the last line that it prints says where the graphs are, and
what of those that could not be made."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"

import numpy as np
from olive.data.registry import Registry
from olive.workflows import run

DYNAMIC: dict[str, object] = {"type": "OnnxDynamicQuantization"}
STATIC: dict[str, object] = {"type": "OnnxStaticQuantization", "data_config": "rows"}
FUSION = "OrtTransformersOptimization"


@Registry.register_dataset("calibration_rows")
def calibration_rows(path: str, **_: object) -> list[tuple[dict[str, np.ndarray], int]]:
    """Rows one by one, each with a label that nobody reads."""
    rows = dict(np.load(path))
    return [({name: array[at] for name, array in rows.items()}, 0) for at in range(len(next(iter(rows.values()))))]


def recipe(graph: str, rows: str, passes: list[dict[str, object]], folder: Path) -> Path:
    """The graph that the passes leave."""
    processor = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    run(
        {
            "input_model": {"type": "ONNXModel", "model_path": graph},
            "systems": {"here": {"type": "LocalSystem", "accelerators": [processor]}},
            "data_configs": [
                {
                    "name": "rows",
                    "type": "DataContainer",
                    "load_dataset_config": {"type": "calibration_rows", "params": {"path": rows}},
                    "pre_process_data_config": {"type": "skip_pre_process"},
                    "post_process_data_config": {"type": "skip_post_process"},
                    "dataloader_config": {"type": "default_dataloader", "params": {"batch_size": 1}},
                }
            ],
            "passes": {f"pass{at}": one for at, one in enumerate(passes)},
            "host": "here",
            "target": "here",
            "output_dir": str(folder / "out"),
            "cache_dir": str(folder / "cache"),
        }
    )
    return next((folder / "out").rglob("*.onnx"))


def main() -> None:
    graph, rows, folder, *options = sys.argv[1:]
    wanted: dict[str, list[dict[str, object]]] = {"dynamic": [DYNAMIC], "static": [STATIC]}
    if options:
        fusion = {"type": FUSION, **json.loads(options[0])}
        wanted |= {"fused": [fusion], "fused, dynamic": [fusion, DYNAMIC]}
    graphs, missing = {}, {}
    with contextlib.redirect_stdout(sys.stderr):
        for number, (name, passes) in enumerate(wanted.items()):
            try:
                graphs[name] = str(recipe(graph, rows, passes, Path(folder) / str(number)))
            except Exception as error:  # noqa: BLE001 - whatever it was: told beside the others
                missing[f"Olive, {name}"] = f"{type(error).__name__}: {error}"[:300]
    print(json.dumps({"graphs": graphs, "missing": missing}))


if __name__ == "__main__":
    main()
