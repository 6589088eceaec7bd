"""Every `StreamEngine`: so far the published double. An engine is driven here as a replica will drive it, step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modelyard.engines.base import StreamEngine
from modelyard.tensors import Call, Reply, Tensor
from modelyard.testing import FAKE_CARD, FakeStreamEngine

MOST = 200  # steps after which a loop that has not ended never will


def fake_stream_engine(folder: Path) -> StreamEngine:
    return FakeStreamEngine(folder, FAKE_CARD)


@pytest.fixture(params=[fake_stream_engine])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> StreamEngine:
    make: Callable[[Path], StreamEngine] = request.param
    return make(tmp_path)


def call(engine: StreamEngine, name: str, *numbers: float, grant: int | None = None) -> Call:
    spec = engine.signature.inputs[0]
    array = np.array([numbers], np.float32)
    return Call(name, "default", "d", "1", (Tensor(spec.name, spec.datatype, array),), grant=grant)


def drive(engine: StreamEngine, *waited: str, steps: int = MOST) -> dict[str, list[tuple[Reply, bool]]]:
    """What is said of each call until all that are waited for have ended, or for so many steps."""
    said: dict[str, list[tuple[Reply, bool]]] = {}
    for _ in range(steps):
        for name, part, last in engine.step():
            said.setdefault(name, []).append((part, last))
        if waited and all(name in said and said[name][-1][1] for name in waited):
            return said
    assert not waited, f"no end after {steps} steps: {said}"
    return said


def values(parts: list[tuple[Reply, bool]]) -> list[float]:
    return [float(tensor.array.item()) for part, _ in parts for tensor in part.outputs]


def test_the_signature_is_the_cards(engine: StreamEngine) -> None:
    assert engine.signature == FAKE_CARD.signature


def test_a_loop_that_nobody_joined_says_nothing(engine: StreamEngine) -> None:
    assert list(engine.step()) == []


def test_parts_come_in_order_and_the_last_says_so_once(engine: StreamEngine) -> None:
    engine.add(call(engine, "a", 1, 2, 3, 4))
    parts = drive(engine, "a")["a"]
    assert len(parts) > 1
    assert [last for _, last in parts] == [False] * (len(parts) - 1) + [True]
    assert values(parts) == [1, 3, 6, 10]
    assert drive(engine, steps=3) == {}, "nothing follows the last part"


@pytest.mark.parametrize("grant", [0, 1, 2, 3])
def test_never_past_the_grant(engine: StreamEngine, grant: int) -> None:
    engine.add(call(engine, "short", 1, 2, 3, 4, grant=grant))
    engine.add(call(engine, "free", 1, 2, 3, 4))
    said = drive(engine, "short", "free")
    assert sum(part.units for part, _ in said["short"]) == grant
    assert values(said["short"]) == [1, 3, 6, 10][:grant]
    assert values(said["free"]) == [1, 3, 6, 10], "the one's grant is not the other's"


def test_a_grant_that_is_more_than_enough_changes_nothing(engine: StreamEngine) -> None:
    engine.add(call(engine, "a", 1, 2, grant=1000))
    assert values(drive(engine, "a")["a"]) == [1, 3]


def test_calls_join_a_running_loop_and_each_gets_its_own(engine: StreamEngine) -> None:
    engine.add(call(engine, "first", 1, 1, 1, 1, 1))
    before = drive(engine, steps=2)
    engine.add(call(engine, "second", 7, 7))
    after = drive(engine, "first", "second")
    assert values(before["first"] + after["first"]) == [1, 2, 3, 4, 5]
    assert values(after["second"]) == [7, 14]


def test_who_is_cancelled_is_not_heard_of_again_and_nobody_else_notices(engine: StreamEngine) -> None:
    for name in ("stays", "goes"):
        engine.add(call(engine, name, 1, 2, 3))
    drive(engine, steps=1)
    engine.cancel("goes")
    said = drive(engine, "stays")
    assert set(said) == {"stays"}
    assert values(said["stays"]) == [3, 6]


def test_ids_that_are_not_in_the_loop_are_ignored(engine: StreamEngine) -> None:
    engine.cancel("never")
    engine.add(call(engine, "a", 1))
    drive(engine, "a")
    engine.cancel("a")
    engine.add(call(engine, "a", 5))
    assert values(drive(engine, "a")["a"]) == [5], "an id is free again once its call has ended"


def test_an_id_is_free_again_after_a_cancel_and_begins_anew(engine: StreamEngine) -> None:
    engine.add(call(engine, "a", 1, 2, 3))
    drive(engine, steps=1)
    engine.cancel("a")
    engine.add(call(engine, "a", 4, 5))
    assert values(drive(engine, "a")["a"]) == [4, 9]


def test_close_ends_it(engine: StreamEngine) -> None:
    engine.add(call(engine, "a", 1, 2))
    engine.close()
