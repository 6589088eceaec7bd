"""First: a stage of the pipe keeps its own sub-modules of the sequence, and its forward is those one after another.

Called by `spread`. Parameters keep their names, and nothing is copied: the network that was given stays whole until `release`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from modelyard.errors import Invalid
from modelyard.training.parallel.recompute import unseen
from modelyard.training.split import owner


class Elsewhere(nn.Module):
    """Stands where a sub-module is that another stage holds: answers with what it is given first."""

    def forward(self, *given: Any, **named: Any) -> Any:
        return given[0] if given else next(iter(named.values()))


class Entrance(Elsewhere):
    """Stands where the stage before ends: answers with what came from there. Asked for anything else, it is what it stands for:
    forward may read what its parts are like."""

    value: Any = None

    def __init__(self, instead: nn.Module) -> None:
        super().__init__()
        self.__dict__["_instead"] = instead  # no sub-module: nothing of it is held here

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_instead"], name)

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.value


class Left(Exception):
    """No error: how a stage leaves the network's forward where its part of it ends, with the answer of its last sub-module."""


def held(network: nn.Module) -> dict[str, nn.Module]:
    """The sub-modules that are here, by name."""
    return {name: part for name, part in network.named_modules() if not isinstance(part, Elsewhere)}


def cut(network: nn.Module, stages: Sequence[Sequence[str]], at: int, *, passes: bool = False) -> nn.Module:
    """`network` with the sub-modules of stage `at` alone. Every other one that holds anything gives place to one that does not.

    Forward is the stage's sub-modules one after another. Where it `passes`, it is the network's own, given the whole network's
    `rows` beside what comes from the stage before; what lies between the sub-modules is done where the later one is."""
    units = stages[at]
    if passes:
        return _passing(network, stages, at)
    kept = _shell(network, "", units)
    parts = [network.get_submodule(name) for name in units]

    def forward(value: torch.Tensor) -> Any:
        for part in parts:
            value = part(value)
        return _sendable(value)

    kept.forward = forward
    return kept


def _passing(network: nn.Module, stages: Sequence[Sequence[str]], at: int) -> nn.Module:
    kept = _shell(network, "", stages[at], [name for units in stages for name in units])
    own, last, entrance = kept.forward, kept.get_submodule(stages[at][-1]), Entrance(network.get_submodule(stages[0][0]))
    if at:  # the first one too: shapes are told by its answer
        for name in (stages[0][0], stages[at - 1][-1]):
            parent, _, child = name.rpartition(".")
            kept.get_submodule(parent)._modules[child] = entrance

    def forward(value: torch.Tensor, rows: torch.Tensor | None = None) -> Any:
        entrance.value = value
        hook = last.register_forward_hook(_leave) if at + 1 < len(stages) else None
        try:
            return own(rows if at else value)
        except Left as left:
            return _sendable(left.args[0])
        finally:
            entrance.value = None
            if hook:
                hook.remove()

    kept.forward = forward
    return kept


def _sendable(value: Any) -> Any:
    """The next stage's buffers are contiguous; an answer that is a view, as of a transpose, is not."""
    return value.contiguous() if isinstance(value, torch.Tensor) else value


def _leave(part: nn.Module, given: Any, answer: Any) -> None:
    raise Left(answer)


def borders(
    network: nn.Module, stages: Sequence[Sequence[str]], example: torch.Tensor, *, passes: bool = False
) -> list[torch.Tensor]:
    """What enters each stage and what leaves the last, for the rows `example`. Raises `Invalid` where the sequence does not
    give what forward gives."""
    values, was = [example], network.training
    network.eval()
    with torch.no_grad():
        try:
            for at in range(len(stages)):
                stage = cut(network, stages, at, passes=passes)
                values.append(stage(values[-1], rows=example) if passes else stage(values[-1]))
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
            said = "The model cannot be run in stages" if passes else "PARALLEL['sequence'] cannot be run in order"
            raise Invalid(f"{said}: stage {len(values) - 1}: {error}") from error
        answer = network(example)
    network.train(was)
    what = "The stages of the model" if passes else "PARALLEL['sequence']"
    if not all(isinstance(value, torch.Tensor) and value.shape[:1] == (len(example),) for value in values):
        raise Invalid(f"{what}: each sub-module must answer with one tensor, one row for each row it is given.")
    if values[-1].shape != answer.shape or not torch.allclose(values[-1], answer, rtol=1e-4, atol=1e-6):
        raise Invalid(f"{what}: one after another the sub-modules do not give what forward of {type(network).__name__} gives.")
    if not passes and not _trains_alike(network, stages, example):
        raise Invalid(f"{what}: while it trains, forward of {type(network).__name__} does more between them, such as dropout.")
    return values


def _trains_alike(network: nn.Module, stages: Sequence[Sequence[str]], example: torch.Tensor) -> bool:
    """Whether the sub-modules give what forward gives where both draw the same (each epoch begins with a seed of its own)."""
    was, answers = network.training, []
    chain = nn.Sequential(*(network.get_submodule(name) for units in stages for name in units))
    network.train()
    for whole in (network, chain):
        torch.manual_seed(0)
        with torch.no_grad(), unseen(network):
            answers.append(whole(example))
    network.train(was)
    return torch.allclose(answers[0], answers[1], rtol=1e-4, atol=1e-6)


def release(network: nn.Module, parts: Iterable[nn.Module]) -> None:
    """Let go of what is in none of `parts`: another stage holds it."""
    here = {id(tensor) for part in parts for tensor in (*part.parameters(), *part.buffers())}
    for tensor in (*network.parameters(), *network.buffers()):
        if id(tensor) not in here:
            tensor.data = tensor.data.new_empty(0)


def _shell(module: nn.Module, name: str, units: Sequence[str], every: Sequence[str] | None = None) -> nn.Module:
    """`module` down to `units`. With `every` unit of all stages: whatever is none of them and in none is here too."""
    if name and owner(name, units):
        return module
    if every is not None and not module.state_dict():
        return module
    if (every is not None and owner(name, every)) or not any(_within(unit, name) for unit in every or units):
        return Elsewhere()
    shell = copy.copy(module)
    shell._modules = {
        child: part and _shell(part, f"{name}.{child}" if name else child, units, every)
        for child, part in module._modules.items()
    }
    return shell


def _within(unit: str, name: str) -> bool:
    return unit.startswith(f"{name}." if name else "")
