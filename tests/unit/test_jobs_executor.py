"""Which GPUs a gang sees on this machine, whatever the machine has: the list of them is given."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from modelyard.errors import Unavailable
from modelyard.jobs import sandbox
from modelyard.jobs.executor import LocalExecutor, choose_gpus
from modelyard.jobs.types import Amount, Gang
from modelyard.settings import Settings


@pytest.mark.parametrize(
    ("given", "asked", "spans", "seen"),
    [
        ((), 2, False, [0, 1]),
        ((0, 2), 2, False, [1, 3]),
        ((1,), 0, False, [0, 2, 3]),
        ((0, 1, 2, 3), 0, False, []),
        ((1,), 0, True, []),
        ((1,), 1, True, [0]),
    ],
)
def test_a_gang_sees_what_it_asked_for_and_nobody_else_has(
    given: tuple[int, ...], asked: int, spans: bool, seen: list[int]
) -> None:
    assert choose_gpus([0, 1, 2, 3], given, asked, spans=spans) == seen


@pytest.mark.parametrize(("there", "given"), [([], ()), ([0], (0,)), ([0, 1], (1,))])
def test_one_that_asked_for_more_than_is_free_is_not_run_without(there: list[int], given: tuple[int, ...]) -> None:
    with pytest.raises(
        Unavailable, match=f"2 GPUs were asked for, and of {len(there)} here {len(there) - len(given)} are free"
    ):
        choose_gpus(there, given, 2, spans=False)


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[LocalExecutor]:
    executor = LocalExecutor(Settings(data=tmp_path))
    yield executor
    executor._gangs.clear()
    executor.close()


def gang(token: str, gpus: int, ranks: int = 1) -> Gang:
    each = Amount(1, gpus)
    return Gang(token, "j", "m:run", "m:Config", {}, {}, ranks, Path("work"), each=each)


def seen(executor: LocalExecutor, token: str, gpus: int, ranks: int = 1) -> str | None:
    """What the next gang sees, which then runs."""
    found = executor._gpus_of(gang(token, gpus, ranks)).get("CUDA_VISIBLE_DEVICES")
    executor._gangs[token] = SimpleNamespace(ended=False)  # type: ignore[assignment]
    return found


def test_gpus_come_back_when_a_gang_has_ended(executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "gpus", lambda: [0, 1, 4])
    assert seen(executor, "a", 1, ranks=2) == "0,1"
    assert seen(executor, "b", 0) == "4"
    assert seen(executor, "c", 1) == "4"
    with pytest.raises(Unavailable):
        seen(executor, "d", 1)
    assert seen(executor, "e", 0) == ""
    executor._gangs["a"].ended = True
    assert seen(executor, "d", 1) == "0"


def test_a_machine_without_gpus_says_nothing_to_who_asked_for_none(
    executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "gpus", list)
    assert seen(executor, "a", 0) is None
    with pytest.raises(Unavailable, match="1 GPUs were asked for, and of 0 here"):
        seen(executor, "b", 1)
