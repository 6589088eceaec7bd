from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_networks import learning, subject
from torch import nn

from modelyard.engines.torch import load_module
from modelyard.errors import Invalid
from modelyard.optimisation.steps.config import Prune
from modelyard.optimisation.steps.prune import prune
from modelyard.training.recipes.networks.residual import ResidualClassifier
from modelyard.training.recipes.networks.tabular import TabularNetwork

PIXELS, COLUMNS = torch.randn(2, 1, 8, 8), torch.randn(2, 10)


def loss(network: nn.Module) -> None:
    network(PIXELS if isinstance(network, ResidualClassifier) else COLUMNS).square().mean().backward()


def widths(network: nn.Module) -> list[int]:
    return [layer.weight.shape[0] for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize("importance", ["l1", "l2", "taylor"])
def test_half_of_the_channels_go_from_every_layer_but_the_last(importance: str) -> None:
    network = ResidualClassifier(1, 10, 8, 2)
    told = prune(network, Prune(channels=0.5, importance=importance), PIXELS, loss)
    assert widths(network) == [4, 4, 4, 8, 8, 8, 10]
    assert network(PIXELS).shape == (2, 10)
    assert told["parameters"][1] == sum(p.numel() for p in network.parameters()) < 0.3 * told["parameters"][0]
    assert told["multiplications"][1] < 0.35 * told["multiplications"][0]
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_weakest_channels_go() -> None:
    network = nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        network[0].weight[[1, 4]] *= 1e-3
        network[2].weight[:, [1, 4]] *= 1e-3
    strong = network[0].weight[[0, 2, 3, 5]].clone()
    prune(network, Prune(channels=1 / 3), COLUMNS, loss)
    assert torch.equal(network[0].weight, strong)


def test_what_the_loss_says_counts_where_it_is_asked_for() -> None:
    """A channel of large weights that the answer does not depend on."""
    network = nn.Sequential(nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        network[0].weight.uniform_(0.1, 1)
        network[0].bias.fill_(5.0)
        network[2].weight[:] = torch.tensor([[0.5, 1e-9, 0.5, 0.5]])
        network[0].weight[1] *= 10
    kept = {}
    for importance in ("l2", "taylor"):
        small = nn.Sequential(nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 1))
        small.load_state_dict(network.state_dict())
        prune(small, Prune(channels=0.25, importance=importance), COLUMNS, loss)
        kept[importance] = any(torch.equal(row, network[0].weight[1]) for row in small[0].weight)
    assert kept == {"l2": True, "taylor": False}


def test_a_tenth_of_ten_is_one_and_multiples_are_kept() -> None:
    network = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3))
    prune(network, Prune(channels=0.9), COLUMNS, loss)
    assert widths(network) == [1, 3]
    network = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 3))
    prune(network, Prune(channels=0.3, multiple=4), COLUMNS, loss)
    assert widths(network) == [12, 3]


def test_some_layers_may_lose_another_share() -> None:
    network = ResidualClassifier(1, 10, 8, 2)
    prune(network, Prune(channels=0.5, layers={"features.3.0": 0.25, "features.5.*": 0.25}), PIXELS, loss)
    assert widths(network) == [4, 4, 4, 12, 12, 12, 10]
    network = ResidualClassifier(1, 10, 8, 2)
    prune(network, Prune(layers={"features.2.first.0": 0.25}), PIXELS, loss)
    assert widths(network) == [8, 6, 8, 16, 16, 16, 10]
    with pytest.raises(Invalid, match="No layer with channels is called 'stem'; there are features"):
        prune(network, Prune(layers={"stem": 0.5}), PIXELS, loss)


def test_a_layer_that_would_be_empty_is_named() -> None:
    network = ResidualClassifier(1, 10, 4, 1)
    with pytest.raises(Invalid, match=r"0\.9 of the 4 channels of layer 'features\.0\.0' leaves it empty; at most 0\.75"):
        prune(network, Prune(channels=0.9), PIXELS, loss)
    with pytest.raises(Invalid, match=r"leaves it empty; it has fewer than multiple=8"):
        prune(network, Prune(channels=0.5, multiple=8), PIXELS, loss)
    assert widths(network) == [4, 4, 4, 10]


def test_shares_that_leave_nothing_out_are_refused() -> None:
    with pytest.raises(Invalid, match="Nothing is left out of Sequential"):
        prune(nn.Sequential(nn.Linear(10, 3)), Prune(channels=0.5), COLUMNS, loss)


def test_blocks_that_change_least_go() -> None:
    network = ResidualClassifier(1, 10, 4, 3)
    with torch.no_grad():
        network.features[5].second[1].weight.zero_()  # the second block adds nothing
        network.features[5].second[1].bias.zero_()
    wanted = network.eval()(PIXELS)
    prune(network, Prune(blocks=0.34), PIXELS, loss)
    assert isinstance(network.features[5], nn.Identity)
    assert not isinstance(network.features[2], nn.Identity)
    torch.testing.assert_close(network(PIXELS), wanted)
    with pytest.raises(Invalid, match=r"has 2 blocks that answer in the shape they take; 0\.3 of them is none"):
        prune(network, Prune(blocks=0.3), PIXELS, loss)


def test_blocks_and_channels_go_together() -> None:
    network = TabularNetwork(10, 3, 16, 4, 0.0)
    prune(network, Prune(blocks=0.5, channels=0.5), COLUMNS, loss)
    assert sum(isinstance(layer, nn.Identity) for layer in network.layers) == 2
    assert network.embed.out_features == 8
    assert network(COLUMNS).shape == (2, 3)


def test_heads_go_where_the_class_counts_them(tmp_path: Path) -> None:
    found = subject(tmp_path)
    network, rows = load_module(found.folder, found.card), learning(found, tmp_path).some(4)[0]
    with torch.no_grad():  # one head adds nothing
        for block in network.blocks:
            block.o.weight[:, 4:8] = 0
            block.v.weight[4:8] = 0
            block.q.weight[4:8] *= 0.01
            block.k.weight[4:8] *= 0.01
    wanted = network(rows)
    prune(network, Prune(heads=0.25), rows, loss)
    assert [(block.heads, block.q.out_features, block.o.in_features) for block in network.blocks] == [(3, 12, 12)] * 2
    torch.testing.assert_close(network(rows), wanted)
    with pytest.raises(Invalid, match="declare PARALLEL"):
        prune(TabularNetwork(10, 3, 8, 1, 0.0), Prune(heads=0.5), COLUMNS, loss)


def test_channels_go_around_heads_which_stay_whole(tmp_path: Path) -> None:
    found = subject(tmp_path)
    network = load_module(found.folder, found.card)
    prune(network, Prune(channels=0.5), COLUMNS, loss)
    assert (network.embed.out_features, network.wide.out_features, network.head.in_features) == (8, 16, 16)
    assert [(block.heads, block.q.in_features, block.q.out_features) for block in network.blocks] == [(4, 8, 16)] * 2
    assert network(COLUMNS).shape == (2, 3)


class Fixed(nn.Module):
    """Its forward holds a size in numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 1)
        self.head = nn.Linear(4 * 64, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.first(pixels).reshape(-1, 256))
        return answer


def test_a_forward_that_holds_sizes_in_numbers_is_told() -> None:
    with pytest.raises(Invalid, match=r"forward of Fixed does not run without what was left out: .*view, reshape"):
        prune(Fixed(), Prune(channels=0.5), PIXELS, lambda network: network(PIXELS).sum())
