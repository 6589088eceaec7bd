import pytest
import torch
from torch import nn, optim

from modelyard.errors import Damaged
from modelyard.training.checkpoint import FILE, Progress, load, save

CPU = torch.device("cpu")


def made(width=3):
    torch.manual_seed(width)
    network = nn.Sequential(nn.Linear(width, 2), nn.BatchNorm1d(2))
    optimiser = optim.AdamW(network.parameters())
    network(torch.randn(4, width)).sum().backward()
    optimiser.step()
    return network, optimiser


def test_what_is_kept_comes_back(tmp_path):
    network, optimiser = made()
    save(tmp_path / "c", network, optimiser, Progress(2, 120, [{"epoch": 1, "loss": 0.5}]))
    other, fresh = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), None
    fresh = optim.AdamW(other.parameters())
    progress = load(tmp_path / "c", other, fresh, CPU)
    assert progress == Progress(2, 120, [{"epoch": 1, "loss": 0.5}])
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True))
    for kept, came in zip(optimiser.state.values(), fresh.state.values(), strict=True):
        assert all(torch.equal(kept[name], came[name]) for name in kept)


def test_another_network_is_refused(tmp_path):
    save(tmp_path / "c", *made(), Progress())
    with pytest.raises(Damaged, match="cannot be resumed from"):
        load(tmp_path / "c", *made(width=4), CPU)


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", None])
def test_a_broken_file_is_refused(tmp_path, data):
    save(tmp_path / "c", *made(), Progress())
    file = tmp_path / "c" / FILE
    file.write_bytes(file.read_bytes()[:-200] if data is None else data)
    with pytest.raises(Damaged, match="cannot be resumed from"):
        load(tmp_path / "c", *made(), CPU)
