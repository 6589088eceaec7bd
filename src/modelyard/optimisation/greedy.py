"""A language model as an engine of batches: what it answers to rows of texts by the likeliest token each time. Called by
`evaluation`, which so judges answers of any kind alike.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from modelyard.conversion.base import CONVERTERS
from modelyard.engines.base import ModelCard, StreamEngine
from modelyard.engines.files import inside
from modelyard.engines.huggingface import GENERATION, copy_companions
from modelyard.tensors import Array, Call, Signature, Tensor

_COPY = "model.gguf"


class Greedy:
    """A `BatchEngine` over a stream engine of texts: BYTES [rows] → BYTES [rows], of at most `most` tokens each; to nothing it
    answers nothing, for there is no token to go on from. `check` is called before each step."""

    def __init__(self, engine: StreamEngine, most: int, check: Callable[[], None]) -> None:
        self._engine, self._most, self._check = engine, most, check

    @property
    def signature(self) -> Signature:
        return self._engine.signature

    def forward(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        [(name, texts)] = batch.items()
        said: list[bytes] = [b""] * len(texts)
        asked = [(row, text) for row, text in enumerate(texts) if text]
        for row, text in asked:
            given = Tensor(name, "BYTES", np.array([text], object))
            self._engine.add(Call(str(row), "", "", "", (given,), parameters={"max_tokens": self._most}))
        left = len(asked)
        while left:
            self._check()
            for call, part, last in self._engine.step():
                said[int(call)] += b"".join(tensor.array.item() for tensor in part.outputs)
                left -= last
        return {self.signature.outputs[0].name: np.array(said, object)}

    def close(self) -> None:
        self._engine.close()


def answering(folder: Path, card: ModelCard, out: Path) -> tuple[Path, ModelCard]:
    """The folder and card by which a version answers: its own, but for language models. One as transformers has it, which no
    engine serves, answers from its GGUF in sixteen-bit floats, made in the new folder `out`; a GGUF is copied there, with
    what says where an answer ends, since the engine's reader opens it for writing, too, which a version in a node's cache does
    not allow."""
    if "gguf" in card.files:
        out.mkdir()
        shutil.copyfile(inside(folder, card.files["gguf"]), out / _COPY)
        copy_companions(folder, out, (GENERATION,))
        return out, card.changed(files={"gguf": _COPY})
    if card.task == "text-generation" and "transformers" in card.engines:
        out.mkdir()
        return out, CONVERTERS.get("gguf").convert(folder, card, out, {})
    return folder, card
