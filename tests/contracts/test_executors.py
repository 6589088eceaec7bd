"""What every `Executor` promises, over local processes, over a Ray cluster and over threads."""

import json
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_cluster import cluster

from modelyard.engines.base import ModelCard, ModuleCard, TensorCard
from modelyard.errors import Conflict
from modelyard.jobs.executor import LocalExecutor
from modelyard.jobs.types import Event, Executor, Gang, GangHandle, GangInput, ReplicaSpec
from modelyard.plugins import load
from modelyard.settings import Settings
from modelyard.testing import InlineExecutor

SUM = """
from torch import nn


class Sum(nn.Linear):
    def __init__(self):
        super().__init__(2, 1, bias=False)
"""
KINDS = Path(__file__).parents[1] / "flows"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    settings = Settings(data=tmp_path_factory.mktemp("yard"), job_cpus=4)
    process = subprocess.Popen([sys.executable, "-m", "modelyard.jobs.supervisor", str(settings.run)])
    while not (settings.run / "supervisor.sock").exists():
        time.sleep(0.01)
    executor = LocalExecutor(settings, extra_readonly=[KINDS])
    yield executor
    executor.close()
    process.terminate()
    assert process.wait(20) == 0


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executor]:
    with cluster() as (_, address):
        settings = Settings(data=tmp_path_factory.mktemp("yard"), cluster=address)
        executor = load("modelyard.jobs.ray.executor:RayExecutor")(settings, extra_readonly=[KINDS])
        yield executor
        executor.close()


@pytest.fixture(params=["local", "ray", "inline"])
def executor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Executor:
    monkeypatch.syspath_prepend(KINDS)
    return InlineExecutor(cpus=4) if request.param == "inline" else request.getfixturevalue(request.param)


def gang(folder: Path, run: str, *, ranks: int = 1, inputs: dict[str, GangInput] | None = None, **config: Any) -> Gang:
    work = folder / "work"
    work.mkdir()
    path = f"kinds_for_tests:{run}"
    return Gang(folder.name, "job", path, "kinds_for_tests:Plan", config, inputs or {}, ranks, work, memory=4 << 30)


def listen(executor: Executor, handle: GangHandle, answer: Any = None) -> list[Event]:
    """All events of a gang to its end; every question is answered with `answer`."""
    heard: list[Event] = []
    deadline = time.monotonic() + 30
    while not heard or heard[-1].type != "ended":
        assert time.monotonic() < deadline, heard
        for event in handle.poll():
            heard.append(event)
            if "ask" in event.body:
                handle.answer(event.body["ask"], answer)
        executor.wait(0.2)
    return heard


def of(events: list[Event], kind: str) -> list[Any]:
    return [event.body for event in events if event.type == kind]


def test_a_gang_tells_what_it_does_and_ends_last(executor: Executor, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "a.txt").write_text("a")
    files = {"files": GangInput("artefact:0", "0", {}, inputs)}
    handle = executor.start_gang(gang(tmp_path, "copy", inputs=files, number=3, text="note"))
    assert handle.token == tmp_path.name
    heard = listen(executor, handle)
    assert [event.type for event in heard] == ["started", "report", "output", "ended"]
    assert len(heard[0].body["pids"]) == 1
    assert of(heard, "report") == [{"facts": {"rows": 3}, "rank": 0}]
    assert of(heard, "output")[0] | {"ask": 0, "folder": ""} == {
        "name": "copy",
        "folder": "",
        "task": "text-generation",
        "metadata": {"note": "note"},
        "alias": "best",
        "version": True,
        "ask": 0,
        "rank": 0,
    }
    assert Path(of(heard, "output")[0]["folder"], "a.txt").read_text() == "a"
    ended = of(heard, "ended")[0]
    assert (ended["ok"], ended["cancelled"], ended["error"], ended["signal"]) == (True, False, None, None)
    assert ended["cpu_seconds"] >= 0
    assert handle.poll() == []


def test_one_rank_that_raises_ends_the_others(executor: Executor, tmp_path: Path) -> None:
    ended = of(listen(executor, executor.start_gang(gang(tmp_path, "raises", ranks=2, rank=1))), "ended")[0]
    assert not ended["ok"]
    assert ended["error"]["code"] == "internal"
    assert "rank 1: ValueError: boom" in ended["error"]["message"]


@pytest.mark.parametrize(
    ("run", "config", "code", "message"),
    [
        ("refuses", {}, "invalid_request", "not to my taste"),
        ("exits", {"number": 3}, "invalid_request", "sys.exit(3)"),
        ("exits", {"number": 0}, "invalid_request", "sys.exit(0)"),
        ("users_code", {}, "invalid_request", "ZeroDivisionError"),
        ("copy", {"unknown": 1}, "internal", "unknown"),
        ("nothing", {}, "internal", "nothing"),
    ],
)
def test_an_error_has_the_code_of_its_fault(
    executor: Executor, tmp_path: Path, run: str, config: dict[str, Any], code: str, message: str
) -> None:
    ended = of(listen(executor, executor.start_gang(gang(tmp_path, run, **config))), "ended")[0]
    assert (ended["ok"], ended["error"]["code"]) == (False, code)
    assert message in ended["error"]["message"]


def test_cancel_reaches_every_rank(executor: Executor, tmp_path: Path) -> None:
    handle = executor.start_gang(gang(tmp_path, "waits", ranks=2))
    handle.cancel()
    ended = of(listen(executor, handle), "ended")[0]
    assert (ended["ok"], ended["cancelled"], ended["error"]) == (False, True, None)


def test_kill_ends_a_gang_that_would_not(executor: Executor, tmp_path: Path) -> None:
    handle = executor.start_gang(gang(tmp_path, "waits"))
    handle.kill()
    ended = of(listen(executor, handle), "ended")[0]
    assert (ended["ok"], ended["error"]["code"]) == (False, "crashed")


def test_an_answer_may_be_an_error(executor: Executor, tmp_path: Path) -> None:
    handle = executor.start_gang(gang(tmp_path, "copy"))
    heard: list[Event] = []
    while not heard or heard[-1].type != "ended":
        heard += handle.poll()
        for body in [e.body for e in heard if e.type == "output"][:1]:
            handle.answer(body["ask"], None, Conflict("the name is taken"))
        executor.wait(0.2)
    assert of(heard, "ended")[0]["error"] == {"code": "conflict", "message": "the name is taken"}


def test_questions_of_several_ranks_get_their_own_answers(executor: Executor, tmp_path: Path) -> None:
    handle = executor.start_gang(gang(tmp_path, "asks", ranks=3))
    heard: list[Event] = []
    while not heard or heard[-1].type != "ended":
        for event in handle.poll():
            heard.append(event)
            if event.type == "submit":
                handle.answer(event.body["ask"], f"child of {event.body['rank']}")
        executor.wait(0.2)
    assert {body["rank"]: body["facts"] for body in of(heard, "report")} == {
        rank: {"child": f"child of {rank}"} for rank in range(3)
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A version that adds two numbers."""
    folder = tmp_path / "model"
    folder.mkdir()
    source = (
        "from torch import nn\n\n\nclass Sum(nn.Linear):\n    def __init__(self):\n        super().__init__(2, 1, bias=False)\n"
    )
    (folder / "model.py").write_text(source)
    torch.save({"weight": torch.ones(1, 2)}, folder / "model.pth")
    (given,), (answered,) = (
        (TensorCard(name=name, datatype="FP32", shape=shape),) for name, shape in (("x", (-1, 2)), ("y", (-1, 1)))
    )
    ModelCard(task="tabular-regression", engines=("torch",), files={"weights": "model.pth"}, inputs=(given,),
              outputs=(answered,), module=ModuleCard(file="model.py", name="Sum")).save(folder)  # fmt: skip
    return folder


def test_a_replica_is_started_listed_and_stopped(
    executor: Executor, model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    address = tmp_path_factory.mktemp("r") / "replica.sock"  # short: a socket's path has a limit
    executor.start_replica(ReplicaSpec("token1", "torch", model, address, tmp_path / "replica.log"))
    eventually(lambda: "token1" in executor.replicas())
    said = executor.replicas()["token1"]
    assert (said.token, said.exit) == ("token1", None)
    assert Path(f"/proc/{said.pid}").exists()
    if not isinstance(executor, InlineExecutor):  # which only notes them
        eventually(address.exists)
        assert stat.S_IMODE(address.stat().st_mode) == 0o600
        assert f"{address}" in Path(f"/proc/{said.pid}/cmdline").read_text()
    executor.stop_replica("token1")
    eventually(lambda: "token1" not in executor.replicas() or executor.replicas()["token1"].exit is not None)
    assert isinstance(executor, InlineExecutor) or not Path(f"/proc/{said.pid}").exists()


NOSY = """
import json, os, resource
from pathlib import Path
from torch import nn


def came_of(what):
    try:
        return what()
    except OSError as error:
        return type(error).__name__


class Nosy(nn.Linear):
    def __init__(self):
        super().__init__(2, 1, bias=False)
        if (child := os.fork()) == 0:
            facts = {"nice": os.nice(0), "session": came_of(os.setsid), "data": resource.getrlimit(resource.RLIMIT_DATA)[0]}
            facts["file"] = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            weighed = Path("/proc/self/autogroup")
            facts["weighed"] = weighed.read_text().split()[-1] if weighed.exists() else "5"
            Path(os.environ["HOME"], "facts").write_text(json.dumps(facts))
            os._exit(0)
        os.waitpid(child, 0)
"""


def test_users_code_in_a_replica_is_bounded_and_makes_way(
    local: Executor, model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (model / "model.py").write_text(NOSY)
    (model / "model.json").write_text((model / "model.json").read_text().replace('"Sum"', '"Nosy"'))
    address = tmp_path_factory.mktemp("r") / "replica.sock"
    spec = ReplicaSpec("token2", "torch", model, address, tmp_path / "replica.log", memory=3 << 30, nice=5)
    local.start_replica(spec)
    eventually((address.parent / "facts").exists)
    local.stop_replica("token2")
    eventually(lambda: local.replicas()["token2"].exit is not None)
    facts = json.loads((address.parent / "facts").read_text())
    grouped = Path("/proc/sys/kernel/sched_autogroup_enabled")
    weighed = "5" if grouped.exists() and grouped.read_text().strip() == "1" else facts["weighed"]
    assert facts == {"nice": 5, "session": "PermissionError", "data": 3 << 30, "weighed": weighed, "file": 2 << 30}


FILLING = """
import os
from pathlib import Path
from torch import nn


class Filling(nn.Linear):
    def __init__(self):
        super().__init__(2, 1, bias=False)
        for number in range(3000):
            Path(os.environ["HOME"], str(number)).touch()
"""


def test_a_replica_that_fills_its_folder_is_ended_and_said_why(
    local: Executor, model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (model / "model.py").write_text(FILLING)
    (model / "model.json").write_text((model / "model.json").read_text().replace('"Sum"', '"Filling"'))
    address = tmp_path_factory.mktemp("r") / "replica.sock"
    local.start_replica(ReplicaSpec("token3", "torch", model, address, tmp_path / "replica.log"))
    eventually(lambda: local.replicas()["token3"].exit is not None)
    assert local.replicas()["token3"].reason == "left more than 2,000 files in its folder"


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_wake_ends_a_wait(executor: Executor) -> None:
    began = time.monotonic()
    executor.wake()
    executor.wait(20.0)
    assert time.monotonic() - began < 10


def test_nodes_are_counted(executor: Executor) -> None:
    (node,) = executor.nodes()
    assert (node.name, node.room.cpus) == (node.name or "local", 4)
    assert node.room.gpus >= 0
    assert node.room.memory > 1 << 30
    assert all(status.exit is not None for status in executor.replicas().values())
    executor.stop_replica("unknown")
    assert executor.end_gangs() == {}
