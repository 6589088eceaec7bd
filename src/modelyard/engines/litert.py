"""Runs a model version's LiteRT file (`.tflite`, TensorFlow Lite's) on the processor. Made by replicas, by verification and by
measurement, so that what is measured is what serves. It knows no batching, no transform and no protocol.

Such a file is made for a device that asks for one answer at a time: its batch is fixed. Of one row, rows run one by one, and
the version takes any number; of more, the version takes exactly that many. Libraries of custom operators are never registered.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-untyped]

from modelyard.engines.base import ModelCard
from modelyard.engines.files import inside
from modelyard.engines.tensors import agree
from modelyard.errors import Invalid
from modelyard.tensors import DATATYPES, Array, Signature, TensorSpec

# What the library raises: of files and operators the first two, of tensors the last.
ERRORS = (RuntimeError, ValueError)
_NAMES = {dtype: name for name, dtype in DATATYPES.items() if name != "BYTES"}


class LiteRtEngine:
    """A `BatchEngine` over `card.files['litert']`. Raises `Unsafe` for a path outside `folder`, `Invalid` where LiteRT refuses
    the file or where its tensors are not those of the card."""

    def __init__(self, folder: Path, card: ModelCard, *, threads: int = 1) -> None:
        if "litert" not in card.files:
            raise Invalid("model.json names no file for the engine 'litert': expected files.litert.")
        path = inside(folder, card.files["litert"])
        self._interpreter = opened(path, threads)
        agree(card.signature, signature_of(self._interpreter, path.name))
        inputs, outputs = _tensors(self._interpreter, path.name)
        self._signature = card.signature
        self._inputs = [(spec.name, inputs[spec.name]["index"]) for spec in card.inputs]
        self._outputs = [(spec.name, outputs[spec.name]["index"]) for spec in card.outputs]
        self._rows = int(next(iter(inputs.values()))["shape"][0])

    @property
    def signature(self) -> Signature:
        return self._signature

    def forward(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        total, step = len(next(iter(batch.values()))), self._rows
        found = [self._step(batch, at, at + step) for at in range(0, total, step)]
        return {name: np.concatenate([part[place] for part in found]) for place, (name, _) in enumerate(self._outputs)}

    def _step(self, batch: Mapping[str, Array], start: int, stop: int) -> list[Array]:
        for name, index in self._inputs:
            self._interpreter.set_tensor(index, np.ascontiguousarray(batch[name][start:stop]))
        self._interpreter.reset_all_variables()  # what a row leaves behind is none of the next one's business
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for _, index in self._outputs]  # copies

    def close(self) -> None:
        del self._interpreter


def opened(path: Path, threads: int) -> Any:
    """An interpreter that is ready to run. Raises `Invalid` where LiteRT refuses the file."""
    try:
        interpreter = Interpreter(model_path=str(path), num_threads=threads)
        interpreter.allocate_tensors()
    except ERRORS as error:
        raise Invalid(f"LiteRT refuses '{path.name}': {_reason(error, path)}") from error
    return interpreter


def signature_of(interpreter: Any, name: str) -> Signature:
    """The tensors that a file takes and gives; the batch is open where it is one row. Raises `Invalid` for one that the
    protocol has no word for, with other dims open, or without a batch."""
    inputs, outputs = _tensors(interpreter, name)
    if not inputs or not outputs:
        raise Invalid(f"'{name}' takes or gives no tensor: it is no model to call.")
    taken, given = ([_spec(key, tensor, name) for key, tensor in each.items()] for each in (inputs, outputs))
    sizes = {(spec.shape or (0,))[0] for spec in (*taken, *given)}
    if len(sizes) != 1:
        found = " and ".join(map(str, sorted(sizes)))
        raise Invalid(f"The tensors of '{name}' have {found} rows; dim 0 must be the batch of all.")
    if sizes == {1}:
        taken, given = (list(map(_open, each)) for each in (taken, given))
    return Signature(tuple(taken), tuple(given))


def _open(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, spec.datatype, (-1, *(spec.shape or ())[1:]))


def _tensors(interpreter: Any, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts of its inputs and outputs, by the names in the file's one signature or, where it has none, their own."""
    known = list(interpreter.get_signature_list())
    if len(known) > 1:
        raise Invalid(f"'{name}' has the signatures {', '.join(known)}; expected one.")
    if known:
        runner = interpreter.get_signature_runner(known[0])
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        if {each["index"] for each in inputs.values()} != {each["index"] for each in interpreter.get_input_details()}:
            raise Invalid(f"The signature of '{name}' is not of its first graph, which alone is run.")
        return inputs, outputs
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    return {each["name"]: each for each in inputs}, {each["name"]: each for each in outputs}


def _spec(key: str, tensor: Mapping[str, Any], name: str) -> TensorSpec:
    dtype, shape = np.dtype(tensor["dtype"]), tuple(int(dim) for dim in tensor["shape_signature"])
    if dtype not in _NAMES:
        raise Invalid(f"'{key}' of '{name}' is a tensor of {dtype}; expected one of {', '.join(sorted(_NAMES.values()))}.")
    if not shape or -1 in shape:
        raise Invalid(
            f"'{key}' of '{name}' has the shape {list(shape)}; expected a batch and no open dim: export it with sizes."
        )
    return TensorSpec(key, _NAMES[dtype], shape)


def _reason(error: Exception, path: Path) -> str:
    """LiteRT's reason in one line, without the machine's paths."""
    return " ".join(str(error).split()).replace(str(path), path.name)[:300]
