"""Leaves channels, heads and blocks out of a network, so that what stays is a smaller dense one: structured pruning, which
makes a network faster where zeros in its weights do not.

Channels go along the dependency graph (G. Fang et al., 2023, DepGraph, arXiv 2301.12900; library torch-pruning): what adds up
or follows one another loses the same ones. Heads are those a class counts in `PARALLEL['heads']`. Blocks are parts of a
sequence that answer in the shape they take.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Any

import torch
import torch_pruning
from torch import nn

from modelyard.errors import Invalid
from modelyard.optimisation.steps.config import Prune
from modelyard.training.split import Split

Tensor = torch.Tensor
_EPSILON = 1e-9  # shares are rounded to the number that was meant: 0.1 of 10 channels is one
# What torch-pruning raises where it does not understand a network.
_ERRORS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError)


def prune(network: nn.Module, step: Prune, inputs: Tensor, gradients: Callable[[nn.Module], None]) -> dict[str, Any]:
    """Prune `network` in place, blocks first, then heads, then channels; `inputs`: a few rows to trace it with; `gradients`
    adds up those of the loss on some rows, for what is judged by them. Returns what there was and is left: parameters and
    multiplications of a row. Raises `Invalid` where a layer would be left empty, or forward does not run without what is left
    out."""
    network.eval()
    before, shape = _weight(network, inputs), _answer(network, inputs).shape
    if step.blocks:
        _leave_out_blocks(network, step.blocks, inputs)
    if step.heads:
        _leave_out_heads(network, step.heads)
    if step.channels or step.layers:
        _leave_out_channels(network, step, inputs, gradients)
    try:
        answer = _answer(network, inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        raise Invalid(
            f"forward of {type(network).__name__} does not run without what was left out: {_first(error)} It may hold sizes in "
            "numbers (view, reshape); take them from its tensors, and declare heads in PARALLEL['heads']."
        ) from error
    if answer.shape != shape:
        raise Invalid(f"The pruned network answers {list(answer.shape)} where it answered {list(shape)}; nothing was kept.")
    after = _weight(network, inputs)
    if after == before:
        raise Invalid(f"Nothing is left out of {type(network).__name__} by these shares; larger ones were expected.")
    return {"parameters": [before[0], after[0]], "multiplications": [before[1], after[1]]}


def _leave_out_channels(network: nn.Module, step: Prune, inputs: Tensor, gradients: Callable[[nn.Module], None]) -> None:
    with _understood(network):
        importance = _importance(network, step, gradients)
        graph = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=inputs)
        # What heads are made of stays as wide as they are: leaving out a part of each is not what was asked for.
        kept = [*_answering(graph), *(layer for attention in _attentions(network) for layer in attention.inner)]
        _check_none_is_emptied(network, step, graph, kept)
        torch_pruning.pruner.BasePruner(
            network,
            inputs,
            importance,
            pruning_ratio=max(0.0, step.channels - _EPSILON),
            pruning_ratio_dict=_shares(network, step),
            ignored_layers=kept,
            round_to=step.multiple if step.multiple > 1 else None,
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        ).step()
        network.zero_grad(set_to_none=True)


def _importance(network: nn.Module, step: Prune, gradients: Callable[[nn.Module], None]) -> Any:
    """How much a channel counts: the norm of all its weights, or the change of the loss without it, to first order (P.
    Molchanov et al., 2019, arXiv 1906.10771)."""
    if step.importance == "taylor":
        network.zero_grad()
        gradients(network)
        return torch_pruning.importance.TaylorImportance()
    return torch_pruning.importance.MagnitudeImportance(p=1 if step.importance == "l1" else 2)


def _answering(graph: Any) -> list[nn.Module]:
    """The layers that make the network's answer: between them and its end is no other layer with weights of its own width."""
    wide = (nn.Linear, nn.modules.conv._ConvNd)
    found: list[nn.Module] = []
    for layer, node in graph.module2node.items():
        if isinstance(layer, wide) and _ends(node, wide):
            found.append(layer)
    return found


def _ends(node: Any, wide: tuple[type[nn.Module], ...]) -> bool:
    """Whether the network's end is reached from a layer's node without passing another such layer."""
    waiting, seen = [node], set()
    while waiting:
        at = waiting.pop()
        if not at.outputs:
            return True
        for after in at.outputs:
            if after not in seen and not isinstance(after.module, wide):
                seen.add(after)
                waiting.append(after)
    return False


def _check_none_is_emptied(network: nn.Module, step: Prune, graph: Any, kept: list[nn.Module]) -> None:
    shares = _shares(network, step)
    for name, layer in network.named_modules():
        if layer in kept or not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd) or layer not in graph.module2node:
            continue
        there = graph.get_out_channels(layer)
        share = shares.get(layer, step.channels)
        if not share:
            continue
        left = int(there * (1 - share) + _EPSILON) // step.multiple * step.multiple
        if left < 1:
            most = 1 - step.multiple / there
            hint = f"at most {most:.3g} leaves it some" if most > 0 else f"it has fewer than multiple={step.multiple}"
            raise Invalid(f"Leaving out {share:g} of the {there} channels of layer '{name}' leaves it empty; {hint}.")


def _shares(network: nn.Module, step: Prune) -> dict[nn.Module, float]:
    """By layer, where `step.layers` names another share than that of all. Raises `Invalid` for a pattern that matches none."""
    wide = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)}
    found: dict[nn.Module, float] = {}
    for pattern, share in step.layers.items():
        named = [name for name in wide if fnmatchcase(name, pattern)]
        if not named:
            raise Invalid(f"No layer with channels is called '{pattern}'; there are {', '.join(list(wide)[:20])}.")
        found |= {wide[name]: max(0.0, share - _EPSILON) for name in named}
    return found


@dataclass(frozen=True, slots=True)
class _Attention:
    """A module that counts its heads: in `attributes` of it; `inner` layers whose outputs are its heads, one after another,
    and `outer` ones that take them."""

    name: str
    module: nn.Module
    attributes: tuple[str, ...]
    count: int
    inner: tuple[nn.Linear, ...]
    outer: tuple[nn.Linear, ...]


def _attentions(network: nn.Module) -> Iterator[_Attention]:
    """Those that the network's class declares (see docs/training.md: PARALLEL)."""
    split = Split.of(network)
    for name, module in network.named_modules():
        declared = [names for pattern, names in split.heads.items() if _matches(name, pattern)]
        if not declared:
            continue
        counts = {int(attrgetter(attribute)(module)) for attribute in declared[0]}
        if len(counts) != 1:
            raise Invalid(f"'{name}' counts its heads as {sorted(counts)}: heads that share keys cannot be left out here.")
        layers = {
            style: tuple(layer for full, layer in network.named_modules() if _styled(split.tensor, full, name, style, layer))
            for style in ("columns", "rows")
        }
        yield _Attention(name, module, tuple(declared[0]), counts.pop(), layers["columns"], layers["rows"])


def _styled(tensor: Mapping[str, str], full: str, inside: str, style: str, layer: nn.Module) -> bool:
    """Whether a linear layer inside of a module is declared to be split in this style."""
    named = any(said == style and _matches(full, pattern) for pattern, said in tensor.items())
    return named and isinstance(layer, nn.Linear) and full.startswith(f"{inside}.")


def _matches(name: str, pattern: str) -> bool:
    """`*` is one part of a dotted name."""
    return name.count(".") == pattern.count(".") and fnmatchcase(name, pattern)


def _leave_out_heads(network: nn.Module, share: float) -> None:
    """Whole heads, by the L2 norm of all weights that make and take them."""
    found = [a for a in _attentions(network) if a.inner and a.outer]
    if not found:
        raise Invalid(
            f"{type(network).__name__} says of no heads where they are: declare PARALLEL = {{'heads': {{'layers.*.attention': "
            "['heads']}, 'tensor': {…}} beside its class, with q, k and v as columns and what follows them as rows."
        )
    for attention in found:
        gone = math.floor(share * attention.count + _EPSILON)
        if gone >= attention.count:
            raise Invalid(f"Leaving out {share:g} of the {attention.count} heads of '{attention.name}' leaves it none.")
        wide = attention.outer[0].in_features // attention.count
        squares = [layer.weight.detach().square().sum(dim=1) for layer in attention.inner]
        squares += [layer.weight.detach().square().sum(dim=0) for layer in attention.outer]
        least = torch.stack(squares).sum(dim=0).reshape(attention.count, wide).sum(dim=1).argsort()[:gone]
        places = sorted(int(head) * wide + at for head in least for at in range(wide))
        for layer in attention.inner:
            torch_pruning.prune_linear_out_channels(layer, places)
        for layer in attention.outer:
            torch_pruning.prune_linear_in_channels(layer, places)
        for attribute in attention.attributes:
            _assign(attention.module, attribute, attention.count - gone)


def _assign(module: Any, path: str, value: int) -> None:
    *above, last = path.split(".")
    setattr(attrgetter(".".join(above))(module) if above else module, last, value)


def _leave_out_blocks(network: nn.Module, share: float, inputs: Tensor) -> None:
    """The blocks that change least of what they are given, by the relative length of the change."""
    changes = _changes(network, inputs)
    gone = math.floor(share * len(changes) + _EPSILON)
    if not gone:
        raise Invalid(
            f"{type(network).__name__} has {len(changes)} blocks that answer in the shape they take; {share:g} of them is none."
        )
    for name in sorted(changes, key=lambda name: (changes[name], name))[:gone]:
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, nn.Identity())


def _changes(network: nn.Module, inputs: Tensor) -> dict[str, float]:
    """By name the parts of sequences and lists, of several layers, that answer in the shape they take, and how much they
    change: |answer - input| / |input|."""
    found: dict[str, float] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def see(_: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
            if len(given) == 1 and isinstance(answer, Tensor) and answer.shape == given[0].shape:
                found[name] = float((answer - given[0]).norm() / given[0].norm().clamp(min=1e-12))

        return see

    parts = [
        (f"{name}.{child}" if name else child, part)
        for name, module in network.named_modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
        for child, part in module.named_children()
        if any(True for _ in part.children()) and any(True for _ in part.parameters())
    ]
    hooks = [part.register_forward_hook(watch(name)) for name, part in parts]
    _answer(network, inputs)
    for hook in hooks:
        hook.remove()
    return {name: change for name, change in found.items() if not any(name.startswith(f"{other}.") for other in found)}


def _answer(network: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        answer: Tensor = network(inputs)
    return answer


def _weight(network: nn.Module, inputs: Tensor) -> tuple[int, int]:
    """Parameters, and multiplications of a row."""
    with _understood(network):
        operations, parameters = torch_pruning.utils.count_ops_and_params(network, inputs[:1])
    return int(parameters), int(operations)


@contextmanager
def _understood(network: nn.Module) -> Iterator[None]:
    """Raises `Invalid` where torch-pruning does not understand the network; its advice is for its developers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except _ERRORS as error:
        raise Invalid(
            f"{type(network).__name__} cannot be pruned along its dependency graph: {type(error).__name__}: {_first(error)}"
        ) from error


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:400]
