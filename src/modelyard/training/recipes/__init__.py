"""Recipes: how a dataset and a config become a network to train. The loop knows only the `Plan` a recipe makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from modelyard.data.datasets import Dataset
from modelyard.data.transforms import Transform
from modelyard.engines.base import ModelCard, ModuleCard
from modelyard.kinds import Input
from modelyard.plugins import Registry
from modelyard.tensors import Array
from modelyard.training.config import RECIPES as NAMED
from modelyard.training.config import TrainConfig
from modelyard.training.split import Split

_ANSWERS = 1 << 26  # numbers in the answers of the rows that are scored together
Augment = Callable[[Array, np.random.Generator, int, int], Array]
# A split's inputs and targets, made whole; the last argument is called now and then and may raise.
Read = Callable[[Dataset, str, Callable[[], None]], tuple[Array, Array]]


@dataclass(frozen=True, slots=True)
class Made:
    """An output as a recipe wrote it: its name, its folder, what `model.json` and README.md are to say: `about` it, with a
    space at its end, and the `code` that loads it."""

    name: str
    folder: Path
    card: ModelCard
    about: str
    code: str
    library: str = "pytorch"
    title: str | None = None


# The whole state, the job's inputs and a folder to write into → the outputs.
Write = Callable[[Mapping[str, torch.Tensor], Mapping[str, Input], Path], Sequence[Made]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recipe decides.

    `network`, fresh, and how it is built again: `module` from `source`, the one file that is copied into the artefact.
    `features` are read from the dataset; `before` makes them the network's one input, called `input`: row by row and always
    the same, for it may be kept. `loss` is the mean over rows. `augment(input, generator, first, rows)` changes training rows
    `first…` of a batch of `rows`. `labels` are None where numbers are predicted; `output` is the name of what forward
    returns. `split`: how the network may be split over ranks.

    Where a row of the dataset is no row of a batch, `read` makes a split's inputs and targets instead of `before`. Where the
    loss is no mean over rows, `count` says of targets how many it is a mean over, and `loss` adds up before it divides by the
    rows. `answer`: the shape of a row's answer (None: by the labels). `figures`: what else to tell of a mean loss. `load`: how
    to go on from the input 'model'. `write`: what to publish, where it is not `module`, `source` and `weights`; such a recipe
    alone takes the input 'base'. `fixed`: what does not learn is the base's own, so that a checkpoint need not hold it."""

    network: nn.Module
    weights: str
    task: str
    transform: Transform
    features: tuple[str, ...]
    input: str
    output: str
    target: str
    labels: tuple[str, ...] | None
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    module: ModuleCard | None = None
    source: Path | None = None
    before: Callable[[Mapping[str, Array]], Array] | None = None
    read: Read | None = None
    count: Callable[[Array], int] | None = None
    answer: tuple[int, ...] | None = None
    figures: Callable[[float], Mapping[str, float]] | None = None
    load: Callable[[Path], None] | None = None
    write: Write | None = None
    fixed: bool = False
    augment: Augment | None = None
    split: Split = field(default_factory=Split)

    @property
    def capacity(self) -> int:
        """How many rows' answers can be held at once, where they are large."""
        return max(1, _ANSWERS // prod(self.answer or (1,)))

    def measure(self, answer: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss of these rows, and how many are answered right (0 where numbers are predicted)."""
        if self.count is not None:
            return self.loss(answer, target), torch.zeros((), device=answer.device)
        if self.labels is None:
            return self.loss(answer, target.to(answer.dtype).reshape(answer.shape)), torch.zeros((), device=answer.device)
        return self.loss(answer, target), (answer.argmax(dim=1) == target).sum()


class Recipe(Protocol):
    """A plan for this dataset. `code` is the folder of the user's code or of the base, where given. Raises `Invalid` where
    data and config do not go together."""

    def __call__(self, config: TrainConfig, dataset: Dataset, code: Path | None) -> Plan: ...


# Named where torch is not loaded, so that a submission can be checked.
RECIPES: Registry[Recipe] = NAMED
