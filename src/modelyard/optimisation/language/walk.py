"""Prunes and rounds a language model's matrices layer after layer, each by what it sees of calibration texts once those before
it are done. Called by `run`; `pruning` says which weights go, `rounding` where each of the others goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modelyard.errors import Invalid
from modelyard.optimisation.language.pruning import pruned
from modelyard.optimisation.language.rounding import Rounded, compensated, nearest
from modelyard.optimisation.steps.config import Prune
from modelyard.training.recipes.packing import Blocks

_AT_ONCE = 8  # blocks of tokens
# Of the usual scale of eight bits: weights that were on that grid and learned since, less than half a step, would go back.
_ASIDE = 1.03


class _Reached(Exception):
    """The first layer was called: what it was given is all that is wanted of that forward."""


@dataclass(slots=True)
class Walk:
    """A model on its way. `prune`: what the linear layers of its decoder lose. `kinds` says which grid the weight of a name
    goes on (None: it stays), where it is nearest if `plain`. What was `rounded` stands in the model too, as the values that its
    codes mean; `gone` has of each matrix that was pruned which weights are nought, BOOL [rows, columns]. `tokens`: of a matrix
    how much each token of the blocks counts, FP32 [n, length]; where it has none, all alike that are no padding."""

    model: Any
    kinds: Callable[[str], str | None]
    check: Callable[[], None] = lambda: None
    prune: Prune | None = None
    plain: bool = False
    rounded: dict[str, Rounded] = field(default_factory=dict)
    gone: dict[str, Tensor] = field(default_factory=dict)
    tokens: Mapping[str, Tensor] = field(default_factory=dict)

    def nearest(self) -> None:
        """Round each where it is nearest; no text is looked at."""
        for name, weight in self.matrices().items():
            self.check()
            self._put(name, weight, self._nearest(weight.detach(), self.kinds(name) or ""))

    @torch.no_grad()
    def through(self, blocks: Blocks, say: Callable[[str], None] = lambda _: None) -> None:
        """Prune and round by what `blocks` make each layer see: the layers of the decoder in order, the head by what comes out
        of the last one. Eight bits lose so little that they are rounded where they are nearest."""
        layers, prefix = decoder(self.model)
        given = self._given(layers[0], torch.from_numpy(blocks.inputs).long())
        there = torch.from_numpy(blocks.there.astype(np.float32))
        for place, layer in enumerate(layers):
            self.check()
            linear = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
            called = {name: f"{prefix}.{place}.{name}.weight" for name in linear}
            looking = {name: module for name, module in linear.items() if self._looks(called[name])}
            seen = _seen(layer, looking, given, {name: self.tokens.get(called[name], there) for name in looking})
            for name, module in linear.items():
                self._one(called[name], module.weight, seen.get(name, torch.empty(0)), self.prune)
            given = [(_called(layer, hidden, how), how) for hidden, how in given]
            say(f"layer {place + 1} of {len(layers)} done")
        self._last(given, there)

    def matrices(self) -> dict[str, Tensor]:
        """The weights that go on a grid: of linear layers and embeddings, each once."""
        found: dict[str, Tensor] = {}
        for name, module in self.model.named_modules():
            wanted = isinstance(module, nn.Linear | nn.Embedding) and self.kinds(f"{name}.weight")
            if wanted and all(module.weight is not other for other in found.values()):
                found[f"{name}.weight"] = module.weight
        return found

    def _given(self, first: nn.Module, blocks: Tensor) -> list[tuple[Tensor, Mapping[str, Any]]]:
        """What the first layer is called with, a few blocks, INT64 [n, 2, length], at a time."""
        found: list[tuple[Tensor, Mapping[str, Any]]] = []

        def keep(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            named = dict(named)
            found.append((args[0] if args else named.pop("hidden_states"), named))
            raise _Reached

        hook = first.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            for part in torch.split(blocks, _AT_ONCE):
                tokens, positions = part.unbind(1)
                try:
                    self.model(input_ids=tokens, position_ids=positions, use_cache=False)
                except _Reached:
                    continue
        finally:
            hook.remove()
        return found

    def _last(self, given: Sequence[tuple[Tensor, Mapping[str, Any]]], there: Tensor) -> None:
        """The embeddings and the head, which may be one matrix: by what the head sees of tokens that are `there`."""
        rest = {name: weight for name, weight in self.matrices().items() if name not in self.rounded}
        if not rest:
            return
        inner, head = self.model.get_decoder(), self.model.get_output_embeddings()
        seen = torch.zeros(head.weight.shape[1], head.weight.shape[1])
        for (hidden, _), some in zip(given, torch.split(there > 0, _AT_ONCE), strict=True):
            rows = inner.norm(hidden)[some]
            seen += rows.T @ rows
        for name, weight in rest.items():
            if weight is head.weight:
                self._one(name, weight, seen)
            else:
                self._put(name, weight, self._nearest(weight, self.kinds(name) or ""))

    def _looks(self, name: str) -> bool:
        """Whether what the layer sees says anything of where its weight goes."""
        return self.prune is not None or (not self.plain and self.kinds(name) not in (None, "q8_0"))

    def _one(self, name: str, weight: Tensor, seen: Tensor, prune: Prune | None = None) -> None:
        """What makes up for its errors starts from the whole matrix: for those of pruning as well."""
        kind, left, gone = self.kinds(name), weight, None
        if prune is not None:
            left, gone = pruned(weight, seen, prune.weights, by=prune.by, pattern=prune.pattern)
            self.gone[name] = gone
        if kind is None:
            weight.copy_(left)
        elif self.plain or kind == "q8_0":
            self._put(name, weight, self._nearest(left, kind))
        else:
            self._put(name, weight, compensated(weight, seen, kind, gone))

    def _nearest(self, weight: Tensor, kind: str) -> Rounded:
        return nearest(weight, kind, _ASIDE if kind == "q8_0" and not self.plain else 1.0)

    def _put(self, name: str, weight: Tensor, made: Rounded) -> None:
        self.rounded[name] = made
        with torch.no_grad():
            weight.copy_(made.values())


def decoder(model: Any) -> tuple[nn.ModuleList, str]:
    """The layers that a causal language model consists of, and their name. Raises `Invalid` where there is no such list."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists or not hasattr(model.get_decoder(), "norm"):
        raise Invalid(
            f"{type(model).__name__} is not a list of layers and a norm after them: its weights are not pruned, and rounded "
            "nearest alone."
        )
    name, layers = max(lists, key=lambda pair: len(pair[1]))
    return layers, name


def _seen(
    layer: nn.Module,
    linear: Mapping[str, nn.Linear],
    given: Sequence[tuple[Tensor, Mapping[str, Any]]],
    weights: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Of each of these linear layers in it the sum of x xᵀ, each token's as it weighs."""
    sums: dict[str, Tensor] = {}
    done: dict[str, int] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(_: nn.Module, args: tuple[Any, ...]) -> None:
            rows, at = args[0].flatten(0, -2), done.get(name, 0)
            done[name] = at + len(args[0])
            product = (rows * weights[name][at : at + len(args[0])].flatten()[:, None]).T @ rows
            sums[name] = sums[name] + product if name in sums else product

        return look

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in linear.items()]
    try:
        for hidden, how in given:
            _called(layer, hidden, how)
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def _called(layer: nn.Module, hidden: Tensor, how: Mapping[str, Any]) -> Tensor:
    made: Tensor | tuple[Tensor, ...] = layer(hidden, **how)
    return made[0] if isinstance(made, tuple) else made
