"""Imports an ONNX graph: checked, copied with its external data, its signature read from the graph, and tried."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx

from modelyard.conversion.base import check_batch, check_rows, first_line, try_out
from modelyard.conversion.cards import describe
from modelyard.conversion.config import ImportModelConfig
from modelyard.engines.base import ModelCard
from modelyard.engines.files import inside
from modelyard.engines.onnx import ERRORS, OnnxEngine, check, external_files, signature_of
from modelyard.errors import Invalid, Unsafe
from modelyard.kinds import JobContext

FILE = "model.onnx"
_RESERVED = {"model.json", "readme.md", FILE}


def read(
    config: ImportModelConfig, path: Path, upload: Path, out: Path, context: JobContext
) -> tuple[ModelCard, dict[str, Any]]:
    """Raises `Unsafe` for external data outside the upload, `Invalid` for what onnx or onnxruntime refuses."""
    if config.module or config.arguments or config.inputs:
        raise Invalid("An .onnx file states its own inputs: leave out module, arguments and inputs.")
    _copy(path, out)
    _check_graph(out / FILE, path.name)
    signature, skipped = signature_of(out / FILE)
    card = describe(config, signature, engines=("onnx",), files={"onnx": FILE})
    notes = [f"Outputs that are no tensors were left out: {', '.join(skipped)}."] if skipped else []
    forward = OnnxEngine(out, card).forward
    tried = try_out(forward, signature, ERRORS)
    if tried is None:
        notes.append("It is untried: its open dims take none of the sizes tried.")
    elif _scaled_by_batch(out / FILE):
        check_batch(*tried)
    else:
        check_rows(forward, signature, *tried, ERRORS)
    return card, {"format": "onnx", "notes": notes}


def _scaled_by_batch(path: Path) -> bool:
    """Whether activations are quantised as they come, by one scale for the whole batch (DynamicQuantizeLinear, …MatMul): a
    row's answer then follows a little from the others by nature, nobody can say how much, so that rows are not compared."""
    return b"DynamicQuantize" in path.read_bytes()


def _copy(path: Path, out: Path) -> None:
    for name in sorted(external_files(check(path))):
        if name.lower() in _RESERVED:
            raise Unsafe(f"External data of '{path.name}' is named '{name}', a file of every version; rename it.")
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(inside(path.parent, name), target)
    shutil.copyfile(path, out / FILE)


def _check_graph(path: Path, name: str) -> None:
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, RuntimeError) as error:
        raise Invalid(f"'{name}' is not a valid ONNX model: {first_line(error)}") from error
