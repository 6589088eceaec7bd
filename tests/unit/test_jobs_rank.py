"""One rank, with a launcher made of lists: what it tells, how often, and whose fault its end is."""

import errno
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from modelyard.errors import Conflict, Internal, Invalid
from modelyard.jobs import rank as module
from modelyard.jobs.rank import RankContext, load, perform
from modelyard.jobs.types import Gang, GangInput
from modelyard.kinds import Cancelled, Config

OF_A_GPU = (
    "CUDA out of memory. Tried to allocate 256.00 GiB. GPU 1 has a total capacity of 139.81 GiB of which 138.90 GiB is free. "
    "Including non-PyTorch memory, this process has 924.00 MiB memory in use."
)


class Port:
    """Keeps what is said; `replies` are the messages of the launcher, a list a read."""

    def __init__(self, *replies: list[dict[str, Any]]) -> None:
        self.said: list[dict[str, Any]] = []
        self.replies = list(replies)

    def send(self, message: Mapping[str, Any]) -> None:
        self.said.append(dict(message))

    def read(self, *, wait: bool) -> list[dict[str, Any]]:
        return self.replies.pop(0) if self.replies else []


class Plan(Config):
    number: int = 0


def gang(folder: Path, **given: Any) -> Gang:
    whole = {
        "run": "m:run",
        "config_path": "test_jobs_rank:Plan",
        "config": {},
        "inputs": {},
        "ranks": 2,
        "work": folder,
        **given,
    }
    return Gang(token="token", job="job", **whole)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_it_knows_its_place(tmp_path: Path) -> None:
    context = RankContext(gang(tmp_path, resume=tmp_path / "r"), 1, Port())
    assert (context.job, context.rank, context.world_size, context.work) == ("job", 1, 2, tmp_path)
    assert context.latest() == tmp_path / "r"
    assert context.rendezvous == f"file://{tmp_path}/.rendezvous"


def test_signs_of_life_are_told_a_few_times_a_second(tmp_path: Path, clock: list[float]) -> None:
    port = Port()
    context = RankContext(gang(tmp_path), 0, port)
    for _ in range(100):
        context.check()
        clock[0] += 0.01
    assert [message["type"] for message in port.said] == ["beat"] * 5


def test_what_takes_longer_is_announced_at_once(tmp_path: Path, clock: list[float]) -> None:
    port = Port()
    context = RankContext(gang(tmp_path), 1, port)
    context.check()
    context.allow(3)
    context.allow()
    assert port.said == [{"type": "beat"}, {"type": "beat", "times": 3.0}, {"type": "beat", "times": 1.0}]


def test_progress_is_thinned_but_its_end_always_told(tmp_path: Path, clock: list[float]) -> None:
    port = Port()
    context = RankContext(gang(tmp_path), 0, port)
    for step in range(1, 101):
        context.progress(step, 100, "rows")
        clock[0] += 0.001
    told = [(message["done"], message["unit"]) for message in port.said if message["type"] == "progress"]
    assert told == [(1, "rows"), (100, "rows")]


def test_only_rank_0_tells_progress_metrics_outputs_and_checkpoints(tmp_path: Path) -> None:
    port = Port()
    context = RankContext(gang(tmp_path), 1, port)
    context.progress(1, 1)
    context.metric(1, loss=0.5)
    context.publish("out", tmp_path)
    context.checkpoint(1, tmp_path)
    context.report(samples=3)
    context.log("hello")
    assert [message["type"] for message in port.said if message["type"] != "beat"] == ["report", "log"]


def test_a_question_waits_for_its_own_answer(tmp_path: Path) -> None:
    port = Port([], [{"answer": 9, "value": "another's"}], [{"answer": 1, "value": "child"}])
    assert RankContext(gang(tmp_path), 0, port).submit("k", {"a": 1}, {}) == "child"
    assert port.said == [
        {"type": "submit", "submission": {"kind": "k", "config": {"a": 1}, "inputs": {}, "ranks": 1, "reuse": None}, "ask": 1}
    ]


def test_an_error_in_the_answer_is_raised_here(tmp_path: Path) -> None:
    port = Port([{"answer": 1, "error": {"code": "conflict", "message": "taken"}}])
    with pytest.raises(Conflict, match="taken"):
        RankContext(gang(tmp_path), 0, port).publish("out", tmp_path)


def test_cancellation_is_seen_by_check_and_by_whoever_waits(tmp_path: Path) -> None:
    for act in (RankContext.check, lambda context: context.wait("child")):
        with pytest.raises(Cancelled):
            act(RankContext(gang(tmp_path), 0, Port([{"cancel": True}])))


def test_a_thread_that_asks_hears_for_the_one_that_works(tmp_path: Path) -> None:
    """While a checkpoint is stored, `check` takes no answer away from it and still sees that the job is cancelled."""
    asked, let_go = threading.Event(), threading.Event()

    class Slow(Port):
        def read(self, *, wait: bool) -> list[dict[str, Any]]:
            assert wait, "check read what another waits for"
            asked.set()
            assert let_go.wait(10)
            return [{"cancel": True}, {"answer": 1}]

    context = RankContext(gang(tmp_path), 0, Slow())
    thread = threading.Thread(target=context.checkpoint, args=(3, tmp_path), kwargs={"score": float("nan"), "last": 2})
    thread.start()
    assert asked.wait(10)
    context.check()
    let_go.set()
    thread.join(10)
    assert not thread.is_alive()
    (said,) = [message for message in context._port.said if message["type"] == "checkpoint"]  # type: ignore[attr-defined]
    assert (said["step"], said["score"], said["last"]) == (3, None, 2)
    context._port.read = lambda *, wait: []  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        context.check()


def done(config: Any, inputs: Any, outputs: Any, context: Any) -> None:
    assert inputs["files"].view.local() == Path("/in")
    assert inputs["files"].reference == "d@1"


def raising(error: BaseException) -> Callable[..., None]:
    def run(config: Any, inputs: Any, outputs: Any, context: Any) -> None:
        raise error

    return run


def test_an_end_without_trouble(tmp_path: Path) -> None:
    spec = gang(tmp_path, inputs={"files": GangInput("d@1", "hash", {}, Path("/in"))})
    assert perform(spec, done, Plan(), 0, Port()) == {"type": "done"}


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (Conflict("taken"), "conflict", "taken"),
        (SystemExit(3), "invalid_request", "called sys.exit(3)"),
        (SystemExit(), "invalid_request", "called sys.exit(None)"),
        (ValueError("boom"), "internal", "rank 1: ValueError: boom"),
        (KeyboardInterrupt(), "internal", "KeyboardInterrupt"),
        (MemoryError(), "invalid_request", "a rank may take 17179869184 bytes"),
        (RuntimeError("can't allocate memory"), "invalid_request", "ran out of memory: a rank may take"),
        (RuntimeError(OF_A_GPU), "invalid_request", "ran out of memory: GPU 1 has 139.81 GiB.\n"),
        (RuntimeError("CUDA error: out of memory"), "invalid_request", "ran out of memory: the rank's GPU has no more.\n"),
    ],
)
def test_whose_fault_an_end_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: BaseException, code: str, message: str
) -> None:
    ending = perform(gang(tmp_path), raising(error), Plan(), 1, Port())
    assert (ending["type"], ending["error"]["code"]) == ("failed", code)
    assert message in ending["error"]["message"]
    assert ("Traceback" in capsys.readouterr().err) is not isinstance(error, SystemExit | Conflict)


@pytest.mark.parametrize(("memory", "code"), [(64 << 20, "invalid_request"), (1 << 50, "internal")])
def test_a_thread_that_finds_no_room_says_so_where_there_is_none(tmp_path: Path, memory: int, code: str) -> None:
    ending = perform(gang(tmp_path, memory=memory), raising(RuntimeError("can't start new thread")), Plan(), 1, Port())
    assert ending["error"]["code"] == code
    assert ("ran out of memory" in ending["error"]["message"]) is (code == "invalid_request")


@pytest.mark.parametrize("source", ["def f():\n    return 1 / 0\n", "def f(:\n"])
def test_an_error_in_the_callers_file_is_the_callers(tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
    path = tmp_path / "code" / "model.py"

    def run(config: Any, inputs: Any, outputs: Any, context: Any) -> None:
        scope: dict[str, Any] = {}
        exec(compile(source, str(path), "exec"), scope)
        scope["f"]()

    spec = gang(tmp_path / "work", inputs={"code": GangInput("artefact:0", "0", {}, tmp_path / "code")})
    assert perform(spec, run, Plan(), 0, Port())["error"]["code"] == "invalid_request"
    assert perform(gang(tmp_path / "work"), run, Plan(), 0, Port())["error"]["code"] == "internal"


def test_cancelled_passes_through_users_excepts(tmp_path: Path) -> None:
    def run(config: Any, inputs: Any, outputs: Any, context: Any) -> None:
        try:
            context.check()
        except Exception:
            pytest.fail("Cancelled is no Exception")

    assert perform(gang(tmp_path), run, Plan(), 0, Port([{"cancel": True}])) == {"type": "cancelled"}


def test_a_kind_is_loaded_or_said_to_be_missing(tmp_path: Path) -> None:
    run, config = load(gang(tmp_path, run="test_jobs_rank:done", config={"number": 3}))
    assert (run.__name__, config.number) == ("done", 3)
    with pytest.raises(Internal, match="number"):
        load(gang(tmp_path, run="test_jobs_rank:done", config={"number": "x"}))
    with pytest.raises(Internal, match="nothing"):
        load(gang(tmp_path, run="test_jobs_rank:nothing"))
    with pytest.raises(Invalid, match="no_such_library"):
        load(gang(tmp_path, run="no_such_library:run"))


def test_a_full_disk_is_the_platforms_trouble_not_a_bug(tmp_path: Path) -> None:
    def run(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    ending = perform(gang(tmp_path), run, Plan(), 0, Port())
    assert ending["error"]["code"] == "unavailable"
    assert "The disk of the job is full" in ending["error"]["message"]
