"""Which matrices of a language model should have eight bits, where not all can: those whose errors in four cost most for each
byte. Called by `run` before `walk`.

What a change of the weights costs is, to second order, half of its square under the Fisher information, which is the curvature
of the Kullback-Leibler divergence from the original: gradients of tokens drawn from what the model itself foretells tell it (S.
Amari, 1998; for rounding: S. Kim et al., 2023, SqueezeLLM, arXiv 2306.07629). One gradient serves all matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from modelyard.errors import Invalid
from modelyard.optimisation.language.rounding import GRIDS, nearest
from modelyard.training.recipes.causal_lm import predict
from modelyard.training.recipes.packing import IGNORED, Blocks


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """`costs`: nats a token that each matrix, by the name of its weight, costs alone where it is rounded nearest. `tokens`: of
    each linear layer, by the name of its weight, how much an error of its answer to a token would cost, FP32 [blocks, length],
    beside the mean token."""

    costs: Mapping[str, float]
    tokens: Mapping[str, Tensor]


def look(
    model: Any, kinds: Mapping[str, str], blocks: Blocks, *, seed: int, check: Callable[[], None] = lambda: None
) -> Sensitivity:
    """By one gradient a block; the model is left as it was. `kinds`: the grid of each matrix."""
    weights = {name: model.get_parameter(name) for name in kinds}
    errors = {}
    for name, weight in weights.items():
        check()
        errors[name] = (nearest(weight.detach(), kinds[name]).values() - weight.detach()).half()
    drawn = torch.Generator().manual_seed(seed)
    costs, tokens, counted = dict.fromkeys(kinds, 0.0), {name: list[Tensor]() for name in kinds}, 0
    hooks = [
        module.register_forward_hook(_listen(tokens[f"{name}.weight"]))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in tokens
    ]
    try:
        for place in range(len(blocks.targets)):
            check()
            counted += _draw(model, blocks, place, drawn)
            for name, weight in weights.items():
                costs[name] += float((weight.grad * errors[name]).sum(dtype=torch.float64)) ** 2 / 2
            model.zero_grad()
    finally:
        for hook in hooks:
            hook.remove()
    found = {name: torch.cat(each) for name, each in tokens.items() if each}
    weighed = {name: each / each.mean().clamp(min=torch.finfo(each.dtype).tiny) for name, each in found.items()}
    return Sensitivity({name: cost / counted for name, cost in costs.items()}, weighed)


def _listen(kept: list[Tensor]) -> Callable[..., None]:
    """Keep the squared length of the gradient of a layer's answer to each token."""

    def hear(_: nn.Module, __: Any, answer: Tensor) -> None:
        answer.register_hook(lambda gradient: kept.append(gradient.pow(2).sum(-1)))  # type: ignore[no-untyped-call]

    return hear


def _draw(model: Any, blocks: Blocks, place: int, drawn: torch.Generator) -> int:
    """Gradients of the nats that tokens of one block cost, each drawn from what the model foretells there; how many."""
    inputs, targets = (torch.from_numpy(part[place : place + 1]) for part in (blocks.inputs, blocks.targets))
    logits = predict(model, inputs)[targets != IGNORED]
    wanted = torch.multinomial(logits.detach().softmax(-1), 1, generator=drawn)[:, 0]
    cross_entropy(logits, wanted, reduction="sum").backward()  # type: ignore[no-untyped-call]
    return len(wanted)


def eight_bit(costs: Mapping[str, float], sizes: Mapping[str, int], kinds: Mapping[str, str], bits: float) -> list[str]:
    """Those of `costs` that get eight bits, so that the mean weight of all `sizes` has `bits` at most, the rest being on their
    grids of `kinds`: in the order of what each saves a weight, whoever fits. Raises `Invalid` where those take more already."""
    total, high = sum(sizes.values()), GRIDS["q8_0"].bits
    taken = sum(GRIDS[kinds[name]].bits * size for name, size in sizes.items())
    if taken > bits * total:
        raise Invalid(f"These grids take {taken / total:g} bits a weight already, scales included, more than bits={bits:g}.")
    left, chosen = bits * total - taken, []
    for name in sorted(costs, key=lambda name: costs[name] / sizes[name], reverse=True):
        more = (high - GRIDS[kinds[name]].bits) * sizes[name]
        if more <= left:
            chosen.append(name)
            left -= more
    return chosen
