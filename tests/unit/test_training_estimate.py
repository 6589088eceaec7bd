"""What a rank will need at the least, worked out and measured."""

from pathlib import Path

import pytest
import torch
from torch import nn

from modelyard.errors import Invalid
from modelyard.training import estimate as module
from modelyard.training.estimate import Activations, bound, check, estimate, fit, held, lack, measure, spare

MB = 1_000_000
FOUND = estimate(
    parameters=8 * MB,
    learning=4 * MB,
    slots=2,
    activations=Activations(MB, MB // 2),
    rows=10,
    copied=16 * MB,
    parts=2,
    slices=2,
    process=MB,
)


def test_what_is_split_counts_in_part() -> None:
    assert (FOUND.parameters, FOUND.gradients, FOUND.optimiser) == (4 * MB, 2 * MB, 4 * MB)
    assert FOUND.activations == 3 * MB
    assert FOUND.checkpoint == 8 * MB
    assert FOUND.total == 22 * MB
    assert FOUND.facts(None)["checkpoint"] == 8 * MB


def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    check(FOUND, 22 * MB)
    check(FOUND, None)
    with pytest.raises(
        Invalid,
        match=r"activations of 10 rows 3\.0 MB \+ a checkpoint's copy 8\.0 MB .* = 22\.0 MB and may take 21\.9 MB\. Use",
    ):
        check(FOUND, 21_900_000)


def test_a_line_goes_through_two_measurements() -> None:
    line = fit(2, 1200, 4, 2200)
    assert (line.row, line.fixed, line.of(10)) == (500, 200, 5200)
    assert fit(1, 700, 1, 700).of(3) == 2100


def test_a_forward_keeps_its_activations_and_not_its_parameters() -> None:
    network = nn.Sequential(nn.Linear(10, 100), nn.Tanh(), nn.Linear(100, 1))
    one, four = (measure(network, torch.ones(rows, 10), torch.Tensor.sum) for rows in (1, 4))
    assert (one, four) == (440, 1760)  # the input and tanh's answer, of which a row takes 10 and 100 numbers


def test_measuring_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    measure(network, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.Tensor.sum)
    assert network.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_process_knows_what_it_holds_and_may_take(tmp_path: Path) -> None:
    assert held() > 1 << 20
    assert held(tmp_path / "none") == 0
    assert bound() is None or bound() > held()  # type: ignore[operator]


def test_what_a_process_may_still_take_is_of_the_machine_and_of_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = tmp_path / "meminfo"
    machine.write_text("MemTotal:  900 kB\nMemAvailable:   500 kB\n")
    monkeypatch.setattr(module, "bound", lambda: None)
    assert spare(machine) == 500 << 10
    assert spare(tmp_path / "none") is None
    monkeypatch.setattr(module, "bound", lambda: held() + (100 << 10))
    assert abs((spare(machine) or 0) - (100 << 10)) < 1 << 20
    monkeypatch.setattr(module, "bound", lambda: 1)
    assert spare(machine) == 0
    assert (lack(3 * MB, None), lack(3 * MB, 3 * MB)) == (None, None)
    assert lack(3 * MB, 2 * MB) == "3.0 MB, where 2.0 MB are left"
