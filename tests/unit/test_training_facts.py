"""The clock of a rank: every moment in one phase, forward told from backward."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modelyard.kinds import FolderView, Input
from modelyard.training import facts
from modelyard.training.facts import Clock, Still, grounds


class Hands:
    """A clock that stands still until it is set forward."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr(facts, "time", hands)
    return hands


class Slow(nn.Module):
    """Its forward takes two seconds."""

    def __init__(self, hands: Hands) -> None:
        super().__init__()
        self.hands = hands

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.hands.now += 2.0
        return inputs


def a_step(clock: Clock, hands: Hands, part: nn.Module) -> None:
    hands.now += 1.0
    clock.lap("data")
    part(torch.ones(1))
    hands.now += 3.0
    clock.computed()
    hands.now += 0.5
    clock.lap("optimiser")


def test_a_step_is_split_into_its_phases(hands: Hands) -> None:
    clock, part = Clock(), Slow(hands)
    clock.watch([part])
    for _ in range(2):
        a_step(clock, hands, part)
    hands.now += 7
    clock.lap("checkpoint")
    told = clock.facts(samples=130)
    assert told["step_ms"] == {"data": 1000, "forward": 2000, "backward": 3000, "optimiser": 500}
    assert told["samples_per_second"] == 10
    assert (told["checkpoint_seconds"], told["evaluation_seconds"]) == (7, 0)
    assert told["memory_peak"] > 1 << 20


def test_evaluation_is_no_forward_of_a_step(hands: Hands) -> None:
    clock, part = Clock(), Slow(hands)
    clock.watch([part])
    part.eval()(torch.ones(1))
    clock.lap("evaluation")
    a_step(clock, hands, part.train())
    assert clock.facts(1)["step_ms"]["forward"] == 2000
    assert clock.facts(1)["evaluation_seconds"] == 2


def test_what_the_exchange_did_not_hide_is_told_apart(hands: Hands) -> None:
    clock, part = Clock(), Slow(hands)
    a_step(clock, hands, part)
    data = {"avg_backward_comm_time": 2_000_000_000, "avg_backward_compute_comm_overlap_time": 500_000_000}
    clock.listen(SimpleNamespace(_get_ddp_logging_data=lambda: data))
    assert clock.facts(1)["step_ms"] == {"data": 1000, "forward": 0, "backward": 3500, "optimiser": 500, "communication": 1500}


def test_what_the_thread_waited_in_forward_and_backward_is_told_apart_on_every_mesh(hands: Hands) -> None:
    waited = 0.0

    class Waiting(Slow):
        """Of its two seconds it waits half a second."""

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            nonlocal waited
            waited += 0.5
            return super().forward(inputs)

    clock, part = Clock(lambda: waited), Waiting(hands)
    clock.watch([part])
    waited += 4  # before the first step
    clock.lap("other")
    for _ in range(2):
        hands.now += 1.0
        clock.lap("data")
        part(torch.ones(1))
        hands.now, waited = hands.now + 3.0, waited + 1.0
        clock.computed()
        waited += 0.25
        clock.lap("optimiser")
    assert clock.facts(1)["step_ms"] == {"data": 1000, "forward": 1500, "backward": 2000, "optimiser": 0, "communication": 1500}


def test_a_thread_that_waits_stands_still_and_one_that_computes_does_not() -> None:
    still = Still()
    before = still()
    computed = time.thread_time() + 0.05
    while time.thread_time() < computed:
        pass
    assert still() - before < 0.04
    before = still()
    threading.Event().wait(0.05)
    assert still() - before > 0.03


def test_a_network_without_an_exchange_tells_of_none(hands: Hands) -> None:
    clock = Clock()
    clock.listen(nn.Linear(1, 1))
    assert "communication" not in clock.facts(0)["step_ms"]
    assert clock.facts(0)["samples_per_second"] == 0


def test_the_grounds_of_a_run(tmp_path: Path) -> None:
    told = grounds(3, {"dataset": Input("digits@1", {}, FolderView(tmp_path, "abc"))})
    assert (told["seed"], told["hashes"]) == (3, {"dataset": "abc"})
    assert told["environment"]["torch"] == torch.__version__


def test_the_peak_is_of_the_device_that_the_rank_computes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000 + device.index)
    assert Clock(device=torch.device("cuda", 3)).facts(0)["memory_peak"] == 1003
    assert Clock().facts(0)["memory_peak"] > 1 << 20, "of main memory"
