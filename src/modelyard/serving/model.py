"""A model in a replica: what to serve, how it is loaded, and the way from public arrays to public arrays.

`replica` loads one in a thread before it is ready. It knows engines and transforms, no frame, door or batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from modelyard import telemetry
from modelyard.data.transforms import TensorTransform, Transform, build
from modelyard.engines.base import ENGINES, BatchEngine, ModelCard
from modelyard.errors import Internal, Invalid
from modelyard.serving import best
from modelyard.serving.arrays import Flat
from modelyard.serving.conduct import kept, works
from modelyard.tensors import Array

_log = telemetry.log(__name__)


class Spec(msgspec.Struct, frozen=True):
    """What to serve and where. `settings`: 'rows' in one batch at most (absent: measured), 'calls' in the replica at once at
    most, 'target_us' within which a call should be answered (absent: none). `model` is what answers name."""

    token: str
    engine: str
    folder: str
    socket: str
    threads: int = 1
    settings: dict[str, int] = {}
    model: str = ""


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
        self._names = frozenset(spec.name for spec in self.signature.outputs)
        self.ragged: Mapping[str, int] = getattr(transform, "ragged", {})
        self._plain = isinstance(transform, TensorTransform)  # callers' tensors are the engine's own
        cut = (spec.name for spec in self.signature.outputs if spec.shape is not None and spec.shape[1:2] == (-1,))
        self.open_outputs = frozenset(cut) if self.ragged else frozenset()
        self.best: best.Best | None = None
        self.known: Mapping[str, Array] | None = None  # a row it answers well

    @property
    def merges(self) -> bool:
        """Whether calls can share a batch: not where the graph states the size of dim 0."""
        return all(spec.shape is None or spec.shape[:1] == (-1,) for spec in self.engine.signature.inputs)

    def measure(self) -> None:
        """Find the best size of a batch, where there is one to find."""
        if not self.merges:
            return
        try:
            self.best = best.find(self.engine.forward, self.engine.signature, self.ragged)
        except Exception as error:  # noqa: BLE001 - what was made up may be nothing to this model, which may say so as it likes
            _log.info("the best batch was not measured", error=type(error).__name__)
        if self.best is not None:
            self.metadata["batch"] = self.best.to_json()
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
        outputs = self.transform.after(self.engine.forward(batch))
        if not self._names <= outputs.keys():
            raise Internal(f"The model answered without {', '.join(sorted(self._names - outputs.keys()))}.")
        return outputs


def load(spec: Spec) -> Model:
    """The model in an artefact's folder, measured where the size of its batches is not set. Raises what the card, the engine
    or the transform find wrong."""
    folder = Path(spec.folder)
    card = ModelCard.load(folder)
    engine: Any = ENGINES.get(spec.engine)(folder, card, threads=spec.threads)
    if not hasattr(engine, "forward"):
        raise Invalid(f"Engine '{spec.engine}' is no batch engine, the only kind this replica runs.")
    model = Model(engine, build(card.transform, folder), card.task, f"modelyard_{spec.engine}")
    if "rows" not in spec.settings:
        model.measure()
    return model
