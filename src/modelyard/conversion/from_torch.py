"""Imports PyTorch weights with the source of their module: judged before the source runs, loaded strictly, and, where the
inputs are stated, tried, converted to ONNX and verified. Loaded late: it needs torch.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn

from modelyard.conversion.base import blank, check_rows, said_of, try_out, verify
from modelyard.conversion.cards import describe
from modelyard.conversion.config import ImportModelConfig, parse_module
from modelyard.conversion.onnx import CONVERTER
from modelyard.engines.base import ModelCard, ModuleCard
from modelyard.engines.files import inside
from modelyard.engines.onnx import OnnxEngine
from modelyard.engines.torch import TorchEngine, build_module, fill, read_weights
from modelyard.errors import Invalid
from modelyard.kinds import JobContext
from modelyard.tensors import Array, Signature, TensorSpec, datatype_of

_UNKNOWN = (
    "The shape of its inputs is unknown, because none were stated: the model was loaded but never run, and has no ONNX form. "
    "Import it with its inputs (x:FP32[-1,10]) to have both."
)
# What users' modules raise on input they cannot take.
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


def read(
    config: ImportModelConfig, path: Path, upload: Path, out: Path, context: JobContext
) -> tuple[ModelCard, dict[str, Any]]:
    """Raises `Unsafe` for weights that are more than weights, `Invalid` where they are another module's."""
    weights = read_weights(path)
    if config.module is None:
        raise Invalid(f"'{path.name}' holds weights alone: say whose with module, for example model.py:SimpleModel.")
    file, name = parse_module(config.module)
    source = inside(upload, file)
    for needed in (source, path):
        shutil.copyfile(needed, out / needed.name)
    card = ModuleCard(file=PurePosixPath(file).name, name=name, arguments=config.arguments)
    module = build_module(out, card)
    fill(module, weights)
    inputs = tuple(t.spec() for t in config.tensors) or tuple(TensorSpec(n, "FP32", None) for n in required(module))
    accepts(module, tuple(spec.name for spec in inputs))
    facts = {"engines": ("torch",), "files": {"weights": path.name}, "module": card}
    if not config.inputs:
        signature = Signature(inputs, (TensorSpec("output", "FP32", None),))
        notes = [_UNKNOWN]
        return describe(config, signature, **facts), {"format": "torch", "notes": notes}
    samples, given = _tried(module.eval(), inputs)
    signature = Signature(inputs, _output_specs(inputs, given))
    described = describe(config, signature, **facts)
    if none := blank(given):
        note = f"{said_of(none)} no finite number on the inputs tried, so that nothing would show what its ONNX form answers."
        return described, {"format": "torch", "notes": [f"It runs on PyTorch alone: {note}"]}
    return _with_onnx(described, out, samples, context)


def required(module: nn.Module) -> tuple[str, ...]:
    """Names of forward's parameters without a default. Raises `Invalid` where it names none."""
    takes = _parameters(module)
    names = tuple(p.name for p in takes if p.default is p.empty) or tuple(p.name for p in takes[:1])
    if not names or any(p.kind is p.VAR_POSITIONAL for p in takes):
        raise Invalid("The module's forward does not name its parameters: state the inputs, for example x:FP32[-1,10].")
    return names


def accepts(module: nn.Module, names: tuple[str, ...]) -> None:
    """Raises `Invalid` where `names` are not forward's first parameters in order, with all that have no default."""
    takes = _parameters(module)
    if any(p.kind is p.VAR_POSITIONAL for p in takes):
        return
    least = sum(p.default is p.empty for p in takes)
    if list(names) != [p.name for p in takes[: len(names)]] or len(names) < least:
        raise Invalid(
            f"The inputs stated are {', '.join(names)}; forward takes {', '.join(p.name for p in takes)} in this order."
        )


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    parameters = inspect.signature(module.forward).parameters.values()
    return [p for p in parameters if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]


def _tried(module: nn.Module, inputs: tuple[TensorSpec, ...]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs that the module runs on and what it answers. Raises `Invalid` where it runs on none."""

    def forward(batch: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            return _named(module(*[torch.tensor(array) for array in batch.values()]))

    signature = Signature(inputs, ())
    tried = try_out(forward, signature, _FAILURES)
    if tried is None:
        raise Invalid("The module runs on none of the sizes tried for its open dims: state the sizes it takes.")
    check_rows(forward, signature, *tried, _FAILURES)
    return tried


def _named(result: Any) -> dict[str, Array]:
    """One tensor is 'output', several are 'output_0', 'output_1', …, a mapping's keep their names; else nothing is kept."""
    if isinstance(result, torch.Tensor):
        return {"output": result.numpy()}
    items = result.items() if isinstance(result, Mapping) else ((f"output_{i}", value) for i, value in enumerate(result))
    return {str(name): value.numpy() for name, value in items if isinstance(value, torch.Tensor)}


def _output_specs(inputs: tuple[TensorSpec, ...], given: Mapping[str, Array]) -> tuple[TensorSpec, ...]:
    """The batch is dim 0, as open as the inputs'; further dims are known where the inputs' are."""
    first = (inputs[0].shape or (-1,))[0]
    known = all(spec.shape is not None and -1 not in spec.shape[1:] for spec in inputs)
    return tuple(
        TensorSpec(name, datatype_of(array), (first, *(dim if known else -1 for dim in array.shape[1:])))
        for name, array in given.items()
    )


def _with_onnx(
    card: ModelCard, out: Path, samples: Mapping[str, Array], context: JobContext
) -> tuple[ModelCard, dict[str, Any]]:
    """The card with both engines where the module can be exported and is verified; with torch alone, saying why, where not."""
    converted = context.work / "onnx"
    converted.mkdir()
    try:
        made = CONVERTER.convert(out, card, converted, samples)
    except Invalid as error:
        return card, {"format": "torch", "notes": [f"It runs on PyTorch alone: {error.message}"]}
    found = verify(TorchEngine(out, card), OnnxEngine(converted, made), samples, keep=context.work)
    for part in converted.glob("model.onnx*"):
        shutil.move(part, out / part.name)
    both = {"engines": ("onnx", "torch"), "files": {**card.files, **made.files}, "inputs": made.inputs, "outputs": made.outputs}
    note = f"As ONNX it answers as the module does: greatest difference {found.max_abs:.2g} over {found.rows} rows."
    return card.changed(**both), {"format": "torch", "verification": found.to_json(), "notes": [note]}
