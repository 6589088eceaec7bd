"""What an engine is, and how a model version describes itself.

An engine runs a model version's forward and knows nothing of batching, transforms or protocols. There are two kinds:
`BatchEngine` (one forward for many calls) and `StreamEngine` (language models: calls join and leave a running loop).
`model.json` in a model's artefact is a `ModelCard`: written by training, import and conversion, read by engines and replicas.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

import msgspec

from modelyard.errors import Invalid
from modelyard.plugins import Registry
from modelyard.tensors import Array, Call, Reply, Signature, TensorSpec

CARD = "model.json"
_SOME = msgspec.Meta(min_length=1)


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a version says of itself: read by replicas, which start sooner without pydantic."""

    def changed(self, **fields: Any) -> Self:
        """The same with other `fields`."""
        return msgspec.structs.replace(self, **fields)


class TensorCard(Card, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...] | None = None

    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.datatype, self.shape)


class ModuleCard(Card, frozen=True):
    """A user's (or a recipe's) `nn.Module`: class `name` in `file`, built with `arguments`, weights loaded strictly."""

    file: str
    name: str
    arguments: dict[str, Any] = {}


class BaseCard(Card, frozen=True):
    """The version an adapter is a change to: how it was named, and the hash of its artefact, which is what counts."""

    reference: str
    hash: str


class ModelCard(Card, frozen=True):
    """`model.json`. `files`: role → path in the artefact ('onnx', 'weights'); `engines`: those that can run it, best first;
    `inputs`/`outputs`: the engine's tensors (dim 0 is the batch); `transform`: config of the task's transform, or None;
    `base`: of an adapter alone, what it is one of."""

    task: str
    engines: Annotated[tuple[str, ...], _SOME]
    files: dict[str, str]
    inputs: Annotated[tuple[TensorCard, ...], _SOME]
    outputs: Annotated[tuple[TensorCard, ...], _SOME]
    module: ModuleCard | None = None
    transform: dict[str, Any] | None = None
    labels: tuple[str, ...] | None = None
    base: BaseCard | None = None

    @property
    def signature(self) -> Signature:
        return Signature(tuple(t.spec() for t in self.inputs), tuple(t.spec() for t in self.outputs))

    def save(self, folder: Path) -> None:
        """Write `folder`/model.json. Raises `Invalid` for numbers that JSON has not."""
        try:
            text = json.dumps(msgspec.to_builtins(self), indent=1, sort_keys=True, allow_nan=False)
        except ValueError as error:
            raise Invalid(f"{CARD} cannot hold NaN or infinity: {error}.") from error
        (folder / CARD).write_text(text + "\n")

    @classmethod
    def load(cls, folder: Path) -> ModelCard:
        """Read `folder`/model.json. Raises `Invalid` naming what is wrong in it."""
        try:
            return cls.read((folder / CARD).read_bytes())
        except FileNotFoundError as error:
            raise Invalid(f"The artefact has no {CARD}: it is not a model version.") from error

    @classmethod
    def read(cls, said: bytes) -> ModelCard:
        """The bytes of a `model.json`. Raises `Invalid` naming what is wrong in it."""
        try:
            return msgspec.json.decode(said, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Invalid(f"{CARD} is not valid: {error}.") from error


class BatchEngine(Protocol):
    """One forward over a batch. Loading happens in `__init__(folder, card)`."""

    @property
    def signature(self) -> Signature: ...

    def forward(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays by input name, equal dim 0 of n rows → arrays by output name of n rows, same order. Raises nothing on
        well-typed input but what the model itself raises; never keeps or changes `batch`."""
        ...

    def close(self) -> None: ...


class StreamEngine(Protocol):
    """A running loop that calls join and leave (language models). One thread drives it. Loading happens in
    `__init__(folder, card)`."""

    @property
    def signature(self) -> Signature: ...

    def add(self, call: Call) -> None:
        """Join the loop; answers appear under `call.id`, which no other call in the loop has."""
        ...

    def step(self) -> Sequence[tuple[str, Reply, bool]]:
        """Advance once: (call id, part, is last) for each call that has something, its parts in order. A call whose grant is
        used up ends: its last part says so and nothing follows it; never are more units used than it was granted. Raises
        `Invalid`, naming the call, for one that there is no room for: it has left the loop, and the next step goes on with the
        others and what they said."""
        ...

    def cancel(self, call: str) -> None:
        """Leave the loop: nothing more is said of the call. Ids that are not in the loop are ignored."""
        ...

    def close(self) -> None: ...


class EngineFactory(Protocol):
    """`threads`: how many the engine may compute in, its own included; none of them spins while it waits."""

    def __call__(self, folder: Path, card: ModelCard, *, threads: int = 1) -> BatchEngine | StreamEngine: ...


# Engines that compute a graph: no code comes with a version that they run.
GRAPHS = frozenset({"genai", "litert", "onnx", "openvino", "pt2"})
ENGINES: Registry[EngineFactory] = Registry(
    "engine",
    {
        "genai": "modelyard.engines.genai:GenAiEngine",
        "litert": "modelyard.engines.litert:LiteRtEngine",
        "onnx": "modelyard.engines.onnx:OnnxEngine",
        "openvino": "modelyard.engines.openvino:OpenVinoEngine",
        "pt2": "modelyard.engines.pt2:Pt2Engine",
        "torch": "modelyard.engines.torch:TorchEngine",
    },
)
