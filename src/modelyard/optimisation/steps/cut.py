"""A student that is cut from a model of transformers: so many of its layers, evenly chosen, and all that is not a layer (V.
Sanh et al., 2019, DistilBERT, arXiv 1910.01108; S. Shleifer, A. Rush, 2020, arXiv 2010.13002); and how it learns again. What it
learns is for `steps.encoders` and `language.students` to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modelyard.errors import Invalid
from modelyard.tensors import Array
from modelyard.training.config import TrainConfig
from modelyard.training.loop import rate
from modelyard.training.prepare import optimiser_of

_LR = 5e-4
_CLIP = 1.0


def cut(model: Any, layers: int) -> list[int]:
    """Leave `model`, in place, so many of its layers; which, by their old places: the first and the last, of one alone the
    first. Raises `Invalid` where it has no more than that, or no list of layers."""
    name, there = _layers(model)
    if not layers < len(there):
        raise Invalid(
            f"distil:layers={layers}: the teacher has {len(there)} layers; a student of it has from 1 to {len(there) - 1}."
        )
    kept = [round(place) for place in np.linspace(0, len(there) - 1, layers).tolist()]
    model.set_submodule(name, nn.ModuleList(there[place] for place in kept))
    for place, part in ((new, part) for new, old in enumerate(kept) for part in there[old].modules()):
        if hasattr(part, "layer_idx"):
            part.layer_idx = place
    if isinstance(kinds := getattr(model.config, "layer_types", None), list):
        model.config.layer_types = [kinds[place] for place in kept]
    model.config.num_hidden_layers = layers
    return kept


def learn(
    model: nn.Module,
    loss: Callable[[Array], float],
    rows: int,
    each: int,
    *,
    epochs: int,
    lr: float | None,
    seed: int,
    check: Callable[[], None],
    say: Callable[[str], None],
) -> list[dict[str, float]]:
    """Train `model` in place over `rows` rows, `each` a step, in an order by `seed` alone. `loss` is given rows, INT64 [n], and
    returns their mean loss, its gradients left in the model. `lr`: the peak rate (None: 0.0005). Returns of each epoch the mean
    loss and what it took, in rows and steps. Raises `Invalid` where the loss is no number any more."""
    config = TrainConfig(lr=lr or _LR)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser, random = optimiser_of(parameters, config), np.random.default_rng(seed)
    curve, done, total = [], 0, epochs * -(-rows // each)
    for epoch in range(epochs):
        order, lost, before = random.permutation(rows), 0.0, done
        for some in (order[at : at + each] for at in range(0, rows, each)):
            check()
            optimiser.zero_grad()
            lost += loss(some) * len(some)
            nn.utils.clip_grad_norm_(parameters, _CLIP)
            optimiser.param_groups[0]["lr"] = rate(done, total, config)
            optimiser.step()
            done += 1
        if not math.isfinite(lost):
            raise Invalid(f"distil: the loss became {lost} in epoch {epoch + 1}; try a smaller lr than {config.lr:g}.")
        curve.append({"loss": lost / rows, "rows": rows, "steps": done - before})
        say(f"epoch {epoch + 1} of {epochs}, loss {lost / rows:.4f}.")
    return curve


class Answers:
    """What some layers of a model answered when it ran last, in order, each [n, length, width]; `close` takes the hooks away.
    The last is what the whole list of layers answers, wherever the student's own was cut from."""

    def __init__(self, model: Any, places: Sequence[int]) -> None:
        _, there = _layers(model)
        self.values = [torch.empty(0)] * len(places)
        places = [*places[:-1], len(there) - 1]
        self._hooks = [there[place].register_forward_hook(partial(self._keep, at)) for at, place in enumerate(places)]

    def _keep(self, at: int, _: nn.Module, __: tuple[Any, ...], made: Any) -> None:
        self.values[at] = made[0] if isinstance(made, tuple) else made

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()


def apart(own: Tensor, theirs: Tensor) -> Tensor:
    """Of each vector how far it is from the teacher's, squared, by that one's length: [rows, width] → [rows]."""
    return (own - theirs).square().sum(-1) / theirs.square().sum(-1).clamp(min=1e-12)


def _layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The list of layers and its name. Raises `Invalid` where there is none."""
    count = getattr(model.config, "num_hidden_layers", None)
    for name, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == count:
            return name, part
    raise Invalid(f"{type(model).__name__} is not a list of {count} layers: no student is cut from it.")
