"""Scales, offsets and vectors (norms, biases) of a rounded language model learn to foretell texts as the original does; where
each weight went on its grid stays (the last stage of EfficientQAT: M. Chen et al., 2024, arXiv 2407.11062). Called by `run`
after `walk`.

A scale's gradient is that of its block's weights times their codes, so the model itself knows nothing of grids: its matrices
hold what the codes mean, and are written anew after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from modelyard.optimisation.language.rounding import BLOCK, GRIDS, Rounded
from modelyard.training.config import TrainConfig
from modelyard.training.loop import rate
from modelyard.training.recipes.causal_lm import predict
from modelyard.training.recipes.packing import IGNORED, Blocks

_AT_ONCE = 1024  # tokens
_TOKENS = 2048  # of a step
_SPAN = 8  # steps of its grid are what an offset is told in


@dataclass(slots=True)
class _Tuned:
    """A matrix whose scale is `rounded.scale` times 1 + `scale`, its offset moved by `offset` times eight steps of the grid."""

    weight: Tensor
    rounded: Rounded
    scale: Tensor
    offset: Tensor

    @classmethod
    def of(cls, weight: Tensor, rounded: Rounded) -> _Tuned:
        return cls(weight, rounded, torch.zeros(rounded.scale.shape), torch.zeros(rounded.scale.shape))

    @property
    def learned(self) -> list[Tensor]:
        return [self.scale, self.offset] if GRIDS[self.rounded.kind].offset else [self.scale]

    def follow(self) -> None:
        """Gradients of scale and offset from those of the weight, which are given back."""
        assert self.weight.grad is not None
        blocks = self.weight.grad.view(len(self.weight), -1, BLOCK)
        step = self.rounded.scale.float()
        self.scale.grad = torch.einsum("rbi,rbi->rb", blocks, self.rounded.codes.view(blocks.shape).float()) * step
        self.offset.grad = blocks.sum(-1) * step * _SPAN
        self.weight.grad = None

    def result(self) -> Rounded:
        step = self.rounded.scale.float()
        offset = self.rounded.offset.float() + self.offset * step * _SPAN
        return replace(self.rounded, scale=(step * (1 + self.scale)).half(), offset=offset.half())

    @torch.no_grad()
    def write(self) -> None:
        self.weight.copy_(self.result().values())


def tune(
    model: Any,
    original: Any,
    rounded: Mapping[str, Rounded],
    blocks: Blocks,
    *,
    epochs: int,
    lr: float,
    seed: int,
    check: Callable[[], None],
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Rounded]:
    """The matrices of `rounded`, by the name of their weight, as they stand in `model` afterwards. The loss is what `model`
    foretells worse than `original`, in nats a token: the Kullback-Leibler divergence. `lr`: the peak rate at which scales move
    relative to themselves. Both models are left in evaluation mode."""
    matrices = {name: _Tuned.of(model.get_parameter(name), made) for name, made in rounded.items()}
    vectors = [each for each in model.parameters() if each.ndim == 1]
    learned = [each for matrix in matrices.values() for each in matrix.learned] + vectors
    at_once = max(1, _TOKENS // blocks.targets.shape[1])
    steps = epochs * -(-len(blocks.targets) // at_once)
    optimizer = torch.optim.Adam(learned, lr=lr, betas=(0.9, 0.95))
    schedule = TrainConfig(lr=lr)
    random, step = np.random.default_rng(seed), 0
    for _ in range(epochs):
        order = random.permutation(len(blocks.targets))
        for at in range(0, len(order), at_once):
            check()
            loss = _learn(model, original, blocks, order[at : at + at_once], check)
            for matrix in matrices.values():
                matrix.follow()
            optimizer.param_groups[0]["lr"] = rate(step, steps, schedule)
            optimizer.step()
            optimizer.zero_grad()
            model.zero_grad()
            for matrix in matrices.values():
                matrix.write()
            step += 1
            say(f"step {step} of {steps}: {loss:.4f} nats a token from the original")
    return {name: matrix.result() for name, matrix in matrices.items()}


def _learn(model: Any, original: Any, blocks: Blocks, rows: Any, check: Callable[[], None]) -> float:
    """Gradients of one step's loss, and that loss."""
    each = max(1, _AT_ONCE // blocks.targets.shape[1])
    total, tokens = 0.0, int((blocks.targets[rows] != IGNORED).sum())
    for at in range(0, len(rows), each):
        check()
        some = rows[at : at + each]
        inputs, counted = torch.from_numpy(blocks.inputs[some]), torch.from_numpy(blocks.targets[some]) != IGNORED
        with torch.no_grad():
            wanted = log_softmax(predict(original, inputs)[counted], -1)
        found = log_softmax(predict(model, inputs)[counted], -1)
        loss = kl_div(found, wanted, reduction="sum", log_target=True) / tokens
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total
