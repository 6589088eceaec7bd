from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from modelyard.optimisation import measure as room
from modelyard.optimisation.measure import MANY, ONE, measure, rows
from modelyard.testing import FakeEngine

SAMPLES = {"x": np.arange(10, dtype=np.float32).reshape(5, 2)}


class Clocked(FakeEngine):
    """Takes `cost` seconds a row by a clock of its own."""

    def __init__(self, clock: list[float], cost: float) -> None:
        super().__init__()
        self.clock, self.cost = clock, cost

    def forward(self, batch):
        answer = super().forward(batch)
        self.clock[0] += self.cost * self.batches[-1]
        return answer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(room.time, "perf_counter", lambda: now[0])
    return now


def test_figures_are_of_the_engines_own_time(clock: list[float]) -> None:
    found = measure({"fast": Clocked(clock, 0.001), "slow": Clocked(clock, 0.002)}, SAMPLES, 1.0)
    assert (found["fast"].p50_ms, found["fast"].p99_ms) == (1.0, 1.0)
    assert found["slow"].p50_ms == 2.0
    assert found["fast"].items_per_s == pytest.approx(1000, abs=1)
    assert found["slow"].items_per_s == pytest.approx(500, abs=1)


def test_each_engine_takes_its_time_and_no_more(clock: list[float]) -> None:
    engines = {"a": Clocked(clock, 0.001), "b": Clocked(clock, 0.001)}
    measure(engines, SAMPLES, 1.0)
    warm_up = 3 * (ONE + MANY) * 0.001
    for engine in engines.values():
        assert sum(engine.batches) * 0.001 == pytest.approx(1.0 + warm_up, rel=0.1)


def test_rounds_alternate_between_engines(clock: list[float]) -> None:
    order: list[str] = []

    class Noting(Clocked):
        name = ""

        def forward(self, batch):
            order.append(self.name)
            return super().forward(batch)

    engines = {name: Noting(clock, 0.001) for name in "ab"}
    for name, engine in engines.items():
        engine.name = name
    beats = []
    measure(engines, SAMPLES, 1.0, lambda: beats.append(1))
    turns = [name for name, _ in itertools.groupby(order)]
    assert len(beats) == 10
    assert turns == ["a", "b"] * 11  # the warm-up and ten rounds


def test_a_slow_engine_still_gives_figures(clock: list[float]) -> None:
    found = measure({"slow": Clocked(clock, 60.0)}, SAMPLES, 0.5)["slow"]
    assert found.p50_ms == 60_000


def test_real_time_is_bounded() -> None:
    start = time.perf_counter()
    found = measure({"a": FakeEngine()}, SAMPLES, 0.05)["a"]
    assert time.perf_counter() - start < 2
    assert 0 < found.p50_ms <= found.p99_ms
    assert found.items_per_s > 0


def test_a_batch_repeats_what_there_is() -> None:
    assert rows(SAMPLES, 7)["x"][:, 0].tolist() == [0, 2, 4, 6, 8, 0, 2]
    assert rows(SAMPLES, 1)["x"].shape == (1, 2)
