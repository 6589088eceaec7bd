"""Recipes: how a dataset and a config become a network to train. The loop knows only the `Plan` a recipe makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from modelyard.data.datasets import Dataset
from modelyard.data.transforms import Transform
from modelyard.engines.base import ModuleCard
from modelyard.plugins import Registry
from modelyard.tensors import Array
from modelyard.training.config import RECIPES as NAMED
from modelyard.training.config import TrainConfig

Augment = Callable[[Array, np.random.Generator, int, int], Array]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recipe decides.

    `network`, fresh, and how it is built again: `module` from `source`, the one file that is copied into the artefact.
    `features` are read from the dataset; `before` makes them the network's one input, called `input`: row by row and always
    the same, for it may be kept. `loss` is the mean over rows. `augment(input, generator, first, rows)` changes training rows
    `first…` of a batch of `rows`. `labels` are None where numbers are predicted; `output` is the name of what forward
    returns."""

    network: nn.Module
    module: ModuleCard
    source: Path
    weights: str
    task: str
    transform: Transform
    features: tuple[str, ...]
    before: Callable[[Mapping[str, Array]], Array]
    input: str
    output: str
    target: str
    labels: tuple[str, ...] | None
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    augment: Augment | None = None


class Recipe(Protocol):
    """A plan for this dataset. `code` is the folder of the user's code, where given. Raises `Invalid` where data and config
    do not go together."""

    def __call__(self, config: TrainConfig, dataset: Dataset, code: Path | None) -> Plan: ...


# Named where torch is not loaded, so that a submission can be checked.
RECIPES: Registry[Recipe] = NAMED
