"""Checkpoints beside training: one at a time, and what goes wrong in one is no more than that."""

import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import Unavailable
from modelyard.kinds import Cancelled, FolderContext
from modelyard.training import keeping
from modelyard.training.keeping import Keeper


class Context(FolderContext):
    """Remembers what was stored, and holds each until `gate` is open."""

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self.stored: list[tuple[int, str, Any]] = []
        self.gate = threading.Event()
        self.checks = 0

    def checkpoint(self, step: int, folder: Path, *, score: float | None = None, last: int = 1) -> None:
        assert self.gate.wait(10)
        self.stored.append((step, (folder / "text").read_text(), (score, last)))

    def check(self) -> None:
        self.checks += 1
        self.gate.set()


def text(what: str) -> Any:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "text").write_text(what)

    return write


def test_training_goes_on_while_one_is_stored_and_the_next_waits(tmp_path: Path) -> None:
    context = Context(tmp_path)
    keeper = Keeper(context, last=3)
    keeper.keep(1, tmp_path / "1", text("one"), score=0.5)
    assert context.stored == []
    keeper.keep(2, tmp_path / "2", text("two"))
    assert context.stored[0] == (1, "one", (0.5, 3))
    assert context.checks >= 1
    keeper.wait()
    assert [step for step, *_ in context.stored] == [1, 2]
    assert not list(tmp_path.glob("[12]"))


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), Unavailable("the store is full"), RuntimeError("io"), MemoryError("too little")],
)
def test_what_fails_is_told_and_training_goes_on(tmp_path: Path, error: Exception) -> None:
    context = Context(tmp_path)
    context.gate.set()
    keeper = Keeper(context)

    def full(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("of it")
        raise error

    keeper.keep(1, tmp_path / "1", full)
    keeper.wait()
    assert context.stored == []
    assert context.facts["checkpoints_failed"] == 1
    assert "the last good one stays" in context.lines[0]
    assert not (tmp_path / "1").exists()
    keeper.keep(2, tmp_path / "2", text("two"))
    keeper.wait()
    assert [step for step, *_ in context.stored] == [2]


def test_one_that_is_stored_when_the_job_is_asked_to_stop_is_left_to_be_read(tmp_path: Path) -> None:
    class Asked(Context):
        def checkpoint(self, *_: Any, **__: Any) -> None:
            raise Cancelled

    keeper = Keeper(Asked(tmp_path))
    keeper.keep(1, tmp_path / "1", text("one"))
    keeper.wait()
    assert (tmp_path / "1" / "text").read_text() == "one"


def test_another_rank_writes_its_part_and_leaves_the_rest_to_rank_0(tmp_path: Path) -> None:
    context = Context(tmp_path)
    context.rank = 1
    keeper = Keeper(context)
    keeper.keep(1, tmp_path / "1", text("a part"))
    keeper.wait()
    assert context.stored == []
    assert (tmp_path / "1" / "text").read_text() == "a part"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_training_goes_before_its_checkpoint(tmp_path: Path) -> None:
    own, seen = os.getpriority(os.PRIO_PROCESS, 0), []

    def write(folder: Path) -> None:
        seen.append(os.getpriority(os.PRIO_PROCESS, 0))
        text("one")(folder)

    context = Context(tmp_path)
    context.gate.set()
    keeper = Keeper(context)
    keeper.keep(1, tmp_path / "1", write)
    keeper.wait()
    assert seen == [min(19, own + 10)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_who_waits_says_that_it_lives_only_as_more_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, looks, written = Context(tmp_path), threading.Semaphore(0), keeping._written
    monkeypatch.setattr(keeping, "_LOOK", 0.001)
    monkeypatch.setattr(keeping, "_written", lambda folder: (looks.release(), written(folder))[1])
    counted = []

    def looked(times: int) -> None:
        assert all(looks.acquire(timeout=10) for _ in range(times))
        counted.append(context.checks)

    def write(folder: Path) -> None:
        looked(3)
        folder.mkdir()
        for part in "abc":
            (folder / part).write_text(part)
            looked(10)
        with (folder / "a").open("r+") as file:  # over what is there
            file.write("A")
        looked(10)
        (folder / "text").write_text("all")

    keeper = Keeper(context)
    keeper.keep(1, tmp_path / "1", write)
    keeper.wait()
    first, *rest = counted
    assert [count - first for count in rest] == [1, 2, 3, 4]


def test_a_cancelled_job_waits_no_longer(tmp_path: Path) -> None:
    context = Context(tmp_path)
    keeper = Keeper(context)

    def cancelled() -> None:
        context.gate.set()
        raise Cancelled

    context.check = cancelled  # type: ignore[method-assign]
    keeper.keep(1, tmp_path / "1", text("one"))
    with pytest.raises(Cancelled):
        keeper.wait()
