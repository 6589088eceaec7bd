from __future__ import annotations

from pathlib import Path

import torch
from tiny_networks import learning, subject
from torch import nn

from modelyard.engines.torch import load_module
from modelyard.optimisation.steps import qat


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """As `quantise` rounds it."""
    scale = weight.abs().flatten(1).amax(dim=1, keepdim=True) / 64
    return (weight / scale).round() * scale


def test_the_network_learns_and_is_itself_again_afterwards(tmp_path: Path) -> None:
    found = subject(tmp_path)
    network, teaching = load_module(found.folder, found.card), learning(found, tmp_path)
    names, before = set(network.state_dict()), network.wide.weight.detach().clone()
    qat.train(network, teaching, 5, 0.01)
    assert set(network.state_dict()) == names
    assert type(network.wide) is nn.Linear
    assert not torch.equal(network.wide.weight, before)
    assert not any(layer._forward_pre_hooks for layer in network.modules())
    assert teaching.curves["qat"][-1]["accuracy"] > 0.75


def test_weights_are_rounded_on_the_way_forward_and_learn_behind_it() -> None:
    weight = torch.randn(4, 6, requires_grad=True)
    found = qat._Weight()(weight)
    torch.testing.assert_close(found, rounded(weight.detach()))
    assert not torch.equal(found, weight)
    found.sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_a_folded_batch_norm_changes_no_rounding() -> None:
    """The scale of each channel follows whatever a channel is multiplied by."""
    weight, gamma = torch.randn(4, 3, 3, 3), torch.tensor([0.2, 7.0, 1.0, 3.0]).reshape(4, 1, 1, 1)
    torch.testing.assert_close(qat._Weight()(weight * gamma), qat._Weight()(weight) * gamma)


def test_what_a_layer_takes_is_rounded_by_the_range_seen_so_far() -> None:
    layer, seen = nn.Linear(3, 3).train(), qat._Rounded()
    (first,) = seen(layer, (torch.tensor([[-1.0, 0.0, 4.0]]),))
    assert first.unique().numel() == 3
    assert (seen.low, seen.high) == (-1, 4)
    seen(layer, (torch.tensor([[0.0, 0.0, 24.0]]),))
    assert (seen.low, seen.high) == (-0.95, 5)
    layer.eval()
    (given,) = seen(layer, (torch.tensor([[0.0, 3.0001, 100.0]]),))
    step = (seen.high - seen.low) / 255
    assert abs(float(given[0, 1]) - 3.0001) <= step / 2 + 1e-6
    assert float(given[0, 0]) == 0
    assert float(given[0, 2]) < 5.1
