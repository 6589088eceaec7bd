"""What a deployment answered: arrays by output name, and by which model version they were made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelyard.tensors import Array


@dataclass(frozen=True, slots=True)
class Answer(Mapping[str, "Array"]):
    """A mapping of output name → array (object arrays of `bytes` for text). `deployment` answered with `version` of its model,
    for the request `id`; `model` names both ('digits-cnn@3'): `Yard.receipt` takes it from there, whatever is served since.
    `trace`: the id of the trace that its spans are in, where they are wanted."""

    outputs: Mapping[str, Array]
    deployment: str
    version: str
    id: str
    model: str = ""
    trace: str = ""

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)

    def plain(self) -> dict[str, Any]:
        """The outputs as nested lists of numbers and strings, ready for JSON."""
        return {name: _plain(array.tolist()) for name, array in self.outputs.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
