"""A model in a replica: what to serve, how it is loaded, and the way from public arrays to public arrays.

`replica` loads one in a thread before it is ready. It knows engines and transforms, no frame, door or batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from modelyard import telemetry
from modelyard.data.transforms import TensorTransform, Transform, build
from modelyard.engines.base import ENGINES, BatchEngine, ModelCard
from modelyard.errors import Internal, Invalid
from modelyard.serving import best
from modelyard.serving.arrays import Flat
from modelyard.serving.conduct import kept, works
from modelyard.tensors import DATATYPES, Array, TensorSpec

_log = telemetry.log(__name__)


class Spec(msgspec.Struct, frozen=True):
    """What to serve and where. `settings`: 'rows' in one batch at most (absent: measured) and 'ns_a_row', what each of them
    took when that was measured, 'calls' in the replica at once at most, 'target_us' within which a call should be answered
    (absent: none). `model` is what answers name; `nice` how far it makes way for others."""

    token: str
    engine: str
    folder: str
    socket: str
    threads: int = 1
    settings: dict[str, int] = {}
    model: str = ""
    nice: int = 0


class Model:
    """A loaded model: its public signature, and the way from public arrays to public arrays. Of the engine's inputs in
    `ragged` dim 1 may differ between calls, which are padded with its value; so may that of `open_outputs`."""

    def __init__(self, engine: BatchEngine, transform: Transform, task: str, platform: str) -> None:
        self.engine, self.transform = engine, transform
        self.signature = transform.signature(engine.signature)
        self.metadata: dict[str, Any] = {
            "platform": platform,
            "task": task,
            "inputs": [spec.to_json() for spec in self.signature.inputs],
            "outputs": [spec.to_json() for spec in self.signature.outputs],
        }
        # Outputs by name: what is declared, and the type and shape (without rows) that were last found to be that.
        self._declared = {spec.name: spec for spec in self.signature.outputs}
        self._good: dict[str, tuple[Any, tuple[int, ...]]] = {}
        self.ragged: Mapping[str, int] = getattr(transform, "ragged", {})
        self._plain = isinstance(transform, TensorTransform)  # callers' tensors are the engine's own
        cut = (spec.name for spec in self.signature.outputs if spec.shape is not None and spec.shape[1:2] == (-1,))
        self.open_outputs = frozenset(cut) if self.ragged else frozenset()
        self.best: best.Best | None = None
        self.times: Sequence[tuple[int, float]] = ()  # (rows, seconds) of batches that were measured
        self.known: Mapping[str, Array] | None = None  # a row it answers well

    @property
    def merges(self) -> bool:
        """Whether calls can share a batch: not where the graph states the size of dim 0."""
        return all(spec.shape is None or spec.shape[:1] == (-1,) for spec in self.engine.signature.inputs)

    def measure(self, settings: Mapping[str, int]) -> None:
        """Find the best size of a batch, where there is one to find and it was not found before."""
        if not self.merges or "rows" in settings:
            if "ns_a_row" in settings:
                rows, us = settings["rows"], settings["ns_a_row"] / 1000
                self.metadata["batch"] = {"rows": rows, "us_a_row": us}
                self.times = ((rows, rows * us / 1e6),)
            return
        try:
            self.best = best.find(self.engine.forward, self.engine.signature, self.ragged)
        except Exception as error:  # noqa: BLE001 - what was made up may be nothing to this model, which may say so as it likes
            _log.info("the best batch was not measured", error=type(error).__name__)
        if self.best is not None:
            self.metadata["batch"], self.times = self.best.to_json(), self.best.times
            self.known = self.best.one if works(self.forward, kept(self.best.one)) else None

    def prepare(self, inputs: Mapping[str, Array]) -> tuple[Mapping[str, Array], int]:
        """The engine's arrays of a call and their number of rows."""
        if self._plain and type(inputs) is Flat:
            return inputs, inputs.shape[0]
        arrays = self.transform.before(inputs)
        if len(arrays) == 1:
            (array,) = arrays.values()
            return arrays, array.shape[0] if array.ndim else 1
        rows = {array.shape[0] if array.ndim else 1 for array in arrays.values()}
        if len(rows) != 1:
            raise Invalid(f"The inputs have {' and '.join(map(str, sorted(rows)))} rows (dim 0); expected the same number.")
        return arrays, rows.pop()

    def forward(self, batch: Mapping[str, Array]) -> Mapping[str, Array]:
        """Raises `Internal` where an output is not what the model declares; rows are left to `batching`."""
        outputs = self.transform.after(self.engine.forward(batch))
        for name, spec in self._declared.items():
            array = outputs.get(name)
            if type(array) is not np.ndarray or (array.dtype, array.shape[1:]) != self._good.get(name):
                self._good[name] = _checked(spec, array)
        return outputs


def _checked(spec: TensorSpec, array: object) -> tuple[Any, tuple[int, ...]]:
    """The type and shape, without rows, of an output that is as declared."""
    if array is None:
        raise Internal(f"The model answered without '{spec.name}'.")
    if not isinstance(array, np.ndarray):
        raise Internal(f"The model answered '{spec.name}' with a {type(array).__name__}; expected an array.")
    dtype, shape = DATATYPES.get(spec.datatype), spec.shape
    typed = dtype in (None, array.dtype) or (spec.datatype == "BYTES" and array.dtype.kind in "US")
    shaped = shape is None or (
        len(shape) == array.ndim and all(size in (-1, found) for size, found in zip(shape[1:], array.shape[1:], strict=True))
    )
    if not (typed and shaped):
        given, declared = f"{array.dtype} {list(array.shape)}", f"{spec.datatype} {spec.to_json()['shape']}"
        raise Internal(f"The model answered '{spec.name}' with {given}; it declares {declared}.")
    return array.dtype, array.shape[1:]


def load(spec: Spec, loaded: Callable[[], None] = lambda: None) -> Model:
    """The model in an artefact's folder, measured where the size of its batches is not set; `loaded` is called before. Raises
    what the card, the engine or the transform find wrong."""
    folder = Path(spec.folder)
    card = ModelCard.load(folder)
    engine: Any = ENGINES.get(spec.engine)(folder, card, threads=spec.threads)
    if not hasattr(engine, "forward"):
        raise Invalid(f"Engine '{spec.engine}' is no batch engine, the only kind this replica runs.")
    model = Model(engine, build(card.transform, folder), card.task, f"modelyard_{spec.engine}")
    loaded()
    model.measure(spec.settings)
    return model
