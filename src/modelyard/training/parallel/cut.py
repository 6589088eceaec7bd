"""First: a stage of the pipe keeps its own sub-modules of the sequence, and its forward is those one after another.

Called by `spread`. Parameters keep their names; nothing is copied, and the network that was given stays whole.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from modelyard.errors import Invalid
from modelyard.training.split import owner


class Elsewhere(nn.Identity):
    """Stands where a sub-module is that another stage holds."""


def held(network: nn.Module) -> dict[str, nn.Module]:
    """The sub-modules that are here, by name."""
    return {name: part for name, part in network.named_modules() if not isinstance(part, Elsewhere)}


def cut(network: nn.Module, units: Sequence[str]) -> nn.Module:
    """`network` with the sub-modules `units` alone. Every other one gives place to one without parameters."""
    kept = _shell(network, "", units)
    parts = [network.get_submodule(name) for name in units]

    def forward(value: torch.Tensor) -> torch.Tensor:
        for part in parts:
            value = part(value)
        return value

    kept.forward = forward
    return kept


def borders(network: nn.Module, stages: Sequence[Sequence[str]], example: torch.Tensor) -> list[torch.Tensor]:
    """What enters each stage and what leaves the last, for the rows `example`. Raises `Invalid` where the sequence does not
    give what forward gives."""
    values, was = [example], network.training
    network.eval()
    with torch.no_grad():
        try:
            for units in stages:
                values.append(cut(network, units)(values[-1]))
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise Invalid(f"PARALLEL['sequence'] cannot be run one after another: stage {len(values) - 1}: {error}") from error
        answer = network(example)
    network.train(was)
    if not all(isinstance(value, torch.Tensor) and value.shape[0] == len(example) for value in values):
        raise Invalid("PARALLEL['sequence']: each sub-module must answer with one tensor, one row for each row it is given.")
    if values[-1].shape != answer.shape or not torch.allclose(values[-1], answer, rtol=1e-4, atol=1e-6):
        raise Invalid(
            f"PARALLEL['sequence'] is not what forward of {type(network).__name__} computes: the sub-modules one after another "
            "give another answer."
        )
    return values


def _shell(module: nn.Module, name: str, units: Sequence[str]) -> nn.Module:
    if name and owner(name, units):
        return module
    if not any(unit.startswith(f"{name}." if name else "") for unit in units):
        return Elsewhere()
    shell = copy.copy(module)
    shell._modules = {
        child: part and _shell(part, f"{name}.{child}" if name else child, units) for child, part in module._modules.items()
    }
    return shell
