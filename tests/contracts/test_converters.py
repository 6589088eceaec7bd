"""Every converter of modules: from one PyTorch module to a version that other engines run with the same answers. What one of
language models promises is held to in `test_conversion_gguf`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from modelyard.conversion.base import CONVERTERS, verify
from modelyard.engines.base import ENGINES, BatchEngine, ModelCard, ModuleCard, TensorCard

SOURCE = """\
import torch
from torch import nn


class TwoByTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolve = nn.Conv2d(1, 3, 3, padding=1)
        self.tell = nn.Linear(3, 4)

    def forward(self, picture, weight):
        seen = torch.relu(self.convolve(picture)).mean(dim=(2, 3))
        return self.tell(seen * weight), weight * 2
"""
SAMPLES = {
    "picture": np.random.default_rng(0).standard_normal((9, 1, 5, 5)).astype(np.float32),
    "weight": np.random.default_rng(1).standard_normal((9, 3)).astype(np.float32),
}


LANGUAGE = {"gguf"}


@pytest.fixture(scope="module", params=sorted({*CONVERTERS} - LANGUAGE))
def converted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ModelCard, Path, ModelCard]:
    folder, out = tmp_path_factory.mktemp("version"), tmp_path_factory.mktemp("converted")
    (folder / "model.py").write_text(SOURCE)
    namespace: dict = {}
    exec(SOURCE, namespace)
    torch.manual_seed(0)
    torch.save(namespace["TwoByTwo"]().state_dict(), folder / "model.pth")
    tensors = {"picture": (-1, 1, 5, 5), "weight": (-1, 3), "told": (-1, 4), "doubled": (-1, 3)}
    cards = {name: TensorCard(name=name, datatype="FP32", shape=shape) for name, shape in tensors.items()}
    card = ModelCard(
        task="feature-extraction",
        engines=("torch",),
        files={"weights": "model.pth"},
        module=ModuleCard(file="model.py", name="TwoByTwo"),
        inputs=(cards["picture"], cards["weight"]),
        outputs=(cards["told"], cards["doubled"]),
        labels=("a", "b"),
    )
    return folder, card, out, CONVERTERS.get(request.param).convert(folder, card, out, SAMPLES)


def test_the_card_is_in_the_folder_and_says_the_same(converted: tuple[Path, ModelCard, Path, ModelCard]) -> None:
    _, card, out, made = converted
    assert ModelCard.load(out) == made
    assert (made.signature, made.task, made.labels) == (card.signature, card.task, card.labels)
    assert all((out / path).is_file() for path in made.files.values())


def test_the_answers_are_the_same_in_every_batch_size(
    converted: tuple[Path, ModelCard, Path, ModelCard], tmp_path: Path
) -> None:
    folder, card, out, made = converted
    reference: BatchEngine = ENGINES.get("torch")(folder, card)  # type: ignore[assignment]
    candidate: BatchEngine = ENGINES.get(made.engines[0])(out, made)  # type: ignore[assignment]
    found = verify(reference, candidate, SAMPLES, keep=tmp_path)
    assert found.batches == (1, 2, 7, 9)
    assert found.max_abs < 1e-5


def test_the_same_weights_give_the_same_bytes_without_a_trace_of_the_machine(
    converted: tuple[Path, ModelCard, Path, ModelCard], tmp_path: Path
) -> None:
    folder, card, out, made = converted
    CONVERTERS.get(made.engines[0]).convert(folder, card, tmp_path, SAMPLES)
    for path in made.files.values():
        assert (tmp_path / path).read_bytes() == (out / path).read_bytes()
        assert str(folder).encode() not in (out / path).read_bytes()
        assert b"stack_trace" not in (out / path).read_bytes()
