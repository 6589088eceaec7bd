"""Which matrices of a language model should have finer grids, where not all can: those whose errors cost most for each bit.
Called by `run` before `walk`.

What a change of the weights costs is, to second order, half of its square under the Fisher information, which is the curvature
of the Kullback-Leibler divergence from the original: gradients of tokens drawn from what the model itself foretells tell it (S.
Amari, 1998; for rounding: S. Kim et al., 2023, SqueezeLLM, arXiv 2306.07629). One gradient serves all matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    """`costs`: nats a token that each matrix, by the name of its weight, costs alone where it is rounded nearest: on its own
    grid and, as their squared errors say, on finer ones. `tokens`: of each linear layer, by the name of its weight, how much an
    error of its answer to a token would cost, FP32 [blocks, length], beside the mean token."""

    costs: Mapping[str, Mapping[str, float]]
    tokens: Mapping[str, Tensor]


def look(
    model: Any, kinds: Mapping[str, str], blocks: Blocks, *, seed: int, check: Callable[[], None] = lambda: None
) -> Sensitivity:
    """By one gradient a block; the model is left as it was. `kinds`: the grid of each matrix."""
    weights = {name: model.get_parameter(name) for name in kinds}
    errors, shares = dict[str, Tensor](), dict[str, dict[str, float]]()
    for name, weight in weights.items():
        check()
        errors[name], shares[name] = _errors(weight.detach(), kinds[name])
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
    told = {name: {kind: cost / counted * share for kind, share in shares[name].items()} for name, cost in costs.items()}
    return Sensitivity(told, weighed)


def _errors(weight: Tensor, kind: str) -> tuple[Tensor, dict[str, float]]:
    """Of rounding on `kind`, FP16, and the squares on it and on each finer grid beside those."""
    own = nearest(weight, kind).values() - weight
    grid = GRIDS[kind]
    finer = [other for other, its in GRIDS.items() if its.bits > grid.bits and its.offset <= grid.offset]  # noughts stay codes
    squares = {other: float((nearest(weight, other).values() - weight).square().sum()) for other in finer}
    square = float(own.square().sum()) or 1.0
    return own.half(), {kind: 1.0, **{other: min(found / square, 1.0) for other, found in squares.items()}}


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


def allot(
    costs: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int], kinds: Mapping[str, str], bits: float
) -> dict[str, str]:
    """The grids of those of `costs` that get a finer one than that of `kinds`, so that the mean weight of all `sizes` has
    `bits` at most: in the order of what each step saves a bit, whoever fits. `costs`: of each matrix on its own grid and on
    finer ones. Raises `Invalid` where their own take more already."""
    total = sum(sizes.values())
    taken = sum(GRIDS[kinds[name]].bits * size for name, size in sizes.items())
    if taken > bits * total:
        raise Invalid(f"These grids take {taken / total:g} bits a weight already, scales included, more than bits={bits:g}.")
    left, found = bits * total - taken, dict[str, str]()
    steps = sorted(step for name, each in costs.items() for step in _steps(name, each, sizes[name]))
    for _, more, name, coarse, fine in steps:
        if more <= left and found.get(name, kinds[name]) == coarse:
            found[name] = fine
            left -= more
    return found


def _steps(name: str, costs: Mapping[str, float], size: int) -> Iterator[tuple[float, float, str, str, str]]:
    """From grid to finer grid of one matrix, each saving less a bit than that before: those between that would save more by
    going further are left out. Of each what a bit saves (negative), the bits, the matrix, and the grids."""
    kinds = sorted(costs, key=lambda kind: GRIDS[kind].bits)
    at = 0
    while at + 1 < len(kinds):
        rates = [(costs[kinds[at]] - costs[to]) / (GRIDS[to].bits - GRIDS[kinds[at]].bits) for to in kinds[at + 1 :]]
        best = rates.index(max(rates)) + at + 1
        yield -max(rates) / size, (GRIDS[kinds[best]].bits - GRIDS[kinds[at]].bits) * size, name, kinds[at], kinds[best]
        at = best
