"""PyTorch → LiteRT (`.tflite`), for devices and for the engine `litert`. Called through `CONVERTERS`; whoever converts also
verifies.

The library traces the module itself, so a version that is a graph alone has no form there. A file is made for one row at a time
(`engines/litert`). Weights stay in float32. The library brings JAX along, which would stay with
whoever converts, so it has a process of its own: `python -m modelyard.conversion.litert VERSION ASKED OUT`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from modelyard.conversion.base import first_line
from modelyard.conversion.cards import tensor_cards
from modelyard.conversion.tracing import quiet
from modelyard.engines.aside import aside
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.litert import opened, signature_of
from modelyard.engines.torch import SOURCES, in_order, load_module
from modelyard.errors import Invalid
from modelyard.plugins import load
from modelyard.tensors import Array, TensorSpec

FILE = "model.tflite"
_ROWS = "rows.npz"
_LONGEST = 1800.0  # seconds


class LiteRtConverter:
    """`module` + `weights` → `model.tflite` and its card."""

    def convert(self, folder: Path, card: ModelCard, out: Path, samples: Mapping[str, Array]) -> ModelCard:
        if card.module is None:
            raise Invalid(
                "LiteRT is made of a PyTorch module, and this version has none: convert the one it was exported from."
            )
        if wide := [spec.name for spec in card.inputs if spec.shape is None or -1 in spec.shape[1:]]:
            raise Invalid(f"A LiteRT file has fixed sizes, and {', '.join(wide)} may be of any: state its dims past the batch.")
        with tempfile.TemporaryDirectory() as asked:
            card.save(Path(asked))
            np.savez(f"{asked}/{_ROWS}", *(samples[spec.name][:1] for spec in card.inputs))
            said = aside("modelyard.conversion.litert", [str(folder), asked, str(out)], lambda: None, _LONGEST)
        if said is None:
            said = f"{card.module.name} cannot be converted to LiteRT: its converter died, or took over {_LONGEST:.0f} s."
        if said:
            raise Invalid(said)
        found = signature_of(opened(out / FILE, 1), FILE)
        made = ModelCard(
            task=card.task,
            engines=("litert",),
            files={"litert": FILE},
            inputs=tensor_cards(_in_order(found.inputs, card.inputs)),
            outputs=tensor_cards(_in_order(found.outputs, card.outputs)),
            transform=card.transform,
            labels=card.labels,
        )
        made.save(out)
        return made


CONVERTER = LiteRtConverter()


class _Named(nn.Module):
    """A module whose tensors go by the card's names, in and out."""

    def __init__(self, module: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.module = module
        self._inputs, self._outputs = [spec.name for spec in card.inputs], [spec.name for spec in card.outputs]

    def forward(self, **given: Tensor) -> dict[str, Tensor]:
        result = self.module(*(given[name] for name in self._inputs))
        return dict(zip(self._outputs, in_order(result, self._outputs), strict=True))


def _in_order(found: Sequence[TensorSpec], cards: Sequence[TensorCard]) -> tuple[TensorSpec, ...]:
    """As the version has them: the file keeps its tensors by their names."""
    specs = {spec.name: spec for spec in found}
    return tuple(specs[card.name] for card in cards)


def _named_plainly(module: nn.Module, file: str) -> nn.Module:
    """The names of classes are written into the file: those of the version's own source without the number of its loading."""
    for part in module.modules():
        if type(part).__module__.startswith(SOURCES):
            type(part).__module__ = Path(file).stem
    return module


def main(folder: Path, asked: Path, out: Path) -> str:
    """Convert the version in `folder` by the card and rows in `asked`; why it cannot be done, or nothing."""
    try:
        _convert(folder, asked, out)
    except Invalid as error:
        return error.message
    return ""


def _convert(folder: Path, asked: Path, out: Path) -> None:
    card = ModelCard.load(asked)
    assert card.module is not None
    module = _Named(_named_plainly(load_module(folder, card), card.module.file), card).eval()
    with np.load(asked / _ROWS) as arrays:  # which reads no pickles
        rows = {spec.name: torch.from_numpy(arrays[f"arr_{number}"]) for number, spec in enumerate(card.inputs)}
    convert = load("litert_torch:convert")
    try:
        with quiet():
            convert(module, sample_kwargs=rows).export(str(out / FILE))
    except Exception as error:
        raise Invalid(f"{card.module.name} cannot be converted to LiteRT: {first_line(error)}") from error


if __name__ == "__main__":
    sys.stdout.write(f"\n{json.dumps(main(*map(Path, sys.argv[1:])))}\n")
