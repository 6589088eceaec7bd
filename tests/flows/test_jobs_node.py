"""The supervisor: it starts, limits, stops and reaps, and nothing outlives it."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from jobs_bench import eventually, processes_with, supervisor

from modelyard.errors import Conflict, Invalid, Unavailable
from modelyard.jobs import sandbox
from modelyard.jobs.executor import LocalExecutor
from modelyard.jobs.supervisor import lock
from modelyard.settings import Settings

PLAIN = {"PATH": os.environ["PATH"]}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path)


@pytest.fixture
def client(settings: Settings) -> Iterator[LocalExecutor]:
    executor = LocalExecutor(settings)
    with supervisor(settings):
        yield executor
    executor.close()


def start(client: LocalExecutor, token: str, code: str, *words: str, **rest: Any) -> int:
    argv = [sys.executable, "-c", code, *words]
    return int(client.request({"do": "start", "token": token, "label": "test", "argv": argv, "env": PLAIN, **rest})["pid"])


def exit_of(client: LocalExecutor, token: str) -> int:
    eventually(lambda: client.processes()[token]["exit"] is not None)
    return int(client.processes()[token]["exit"])


def test_the_socket_is_for_its_user_alone(client: LocalExecutor, settings: Settings) -> None:
    assert stat.S_IMODE((settings.run / "supervisor.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE(settings.run.stat().st_mode) == 0o700


def test_a_child_is_listed_with_how_it_ended(client: LocalExecutor) -> None:
    pid = start(client, "a", "sum(i for i in range(10**6)); raise SystemExit(3)")
    assert exit_of(client, "a") == 3
    told = client.processes()["a"]
    assert (told["pid"], told["label"], told["stopped"]) == (pid, "test", False)
    assert 0 < told["cpu"] < 10
    assert not Path(f"/proc/{pid}").exists()


def test_a_token_in_use_is_refused_and_a_free_one_taken_again(client: LocalExecutor) -> None:
    start(client, "a", "import time; time.sleep(60)")
    with pytest.raises(Conflict, match="'a' already runs"):
        start(client, "a", "pass")
    client.stop("a", 0)
    assert exit_of(client, "a") == -signal.SIGKILL
    start(client, "a", "pass")
    assert exit_of(client, "a") == 0


def test_stop_asks_first_and_kills_the_whole_group_after_the_grace(client: LocalExecutor, tmp_path: Path) -> None:
    polite = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); print(1, flush=True); time.sleep(60)"
    )
    start(client, "polite", polite, log=str(tmp_path / "polite"))
    eventually(lambda: (tmp_path / "polite").read_text())
    client.stop("polite", 20)
    assert exit_of(client, "polite") == 7
    mark = f"mark-{os.getpid()}-deaf"
    deaf = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    deaf += "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', sys.argv[1]]); "
    deaf += "print(1, flush=True); time.sleep(60)"
    start(client, "deaf", deaf, mark, log=str(tmp_path / "deaf"))
    eventually(lambda: (tmp_path / "deaf").read_text())
    client.stop("deaf", 0.2)
    assert exit_of(client, "deaf") == -signal.SIGKILL
    eventually(lambda: not processes_with(mark))


def test_limits_and_environment_are_the_requests(client: LocalExecutor, tmp_path: Path) -> None:
    code = "import os, resource as r; print(r.getrlimit(r.RLIMIT_DATA), r.getrlimit(r.RLIMIT_NOFILE), os.nice(0), "
    code += "dict(os.environ), os.getcwd(), os.getsid(0) == os.getpid())"
    limits = {"data": 1 << 30, "nofile": 99, "core": 0, "nice": 3, "oom": 500}
    start(client, "a", code, limits=limits, log=str(tmp_path / "log"), cwd=str(tmp_path), env={"A": "1", "LC_ALL": "C"})
    assert exit_of(client, "a") == 0
    assert (tmp_path / "log").read_text().strip() == (
        f"({1 << 30}, {1 << 30}) (99, 99) 3 {{'A': '1', 'LC_ALL': 'C'}} {tmp_path} True"
    )


def test_descriptors_are_handed_over(client: LocalExecutor) -> None:
    near, far = socket.socketpair()
    argv = [sys.executable, "-c", "import os, sys; os.write(int(sys.argv[1]), b'hello')", "{fd0}"]
    with near, far:
        client.request({"do": "start", "token": "a", "argv": argv, "env": PLAIN}, [far.fileno()])
        far.close()
        assert near.recv(10) == b"hello"
        assert near.recv(10) == b""


def test_what_cannot_be_started_is_said(client: LocalExecutor) -> None:
    with pytest.raises(Invalid, match="'/no/such' could not be started"):
        client.request({"do": "start", "token": "a", "argv": ["/no/such"], "env": PLAIN})
    with pytest.raises(Invalid, match="start, stop and list"):
        client.request({"do": "dance"})
    with pytest.raises(Invalid, match="token"):
        client.request({"do": "start"})
    assert client.processes() == {}


def test_nothing_outlives_a_killed_supervisor(settings: Settings) -> None:
    client, mark = LocalExecutor(settings), f"mark-{os.getpid()}-orphan"
    with supervisor(settings) as process:
        start(client, "a", "import time; time.sleep(60)", mark)
        assert processes_with(mark)
        process.kill()
        process.wait()
    eventually(lambda: not processes_with(mark))
    with pytest.raises(Unavailable, match="modelyard up"):
        client.processes()
    client.close()


def test_a_process_that_slipped_away_is_ended_too(client: LocalExecutor) -> None:
    mark = f"mark-{os.getpid()}-stray"
    code = "import subprocess, sys; code = 'import time; time.sleep(60)'; "
    code += "subprocess.Popen([sys.executable, '-c', code, sys.argv[1]], start_new_session=True)"
    start(client, "a", code, mark)
    assert exit_of(client, "a") == 0
    eventually(lambda: not processes_with(mark))


def half_started(folder: Path) -> str:
    """Leave a sandbox for something in `folder` behind, as the kill of a supervisor does that just starts one: bubblewrap's
    outer process dies before its inner one is tied to it. Returns what finds it."""
    for number in range(500):
        mark = f"mark-{os.getpid()}-{folder.name}-{number}"
        argv = [sys.executable, "-c", "import time; time.sleep(600)", mark]
        made = sandbox.command(argv, readonly=sandbox.interpreter(), writable=[folder], environment=PLAIN, folder=Path("/"))
        with subprocess.Popen(made, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as outer:
            wait_for = time.monotonic() + number % 10 / 2000
            while time.monotonic() < wait_for:
                pass
            outer.kill()
        time.sleep(0.02)  # what dies with it is dead by then
        if processes_with(mark):
            return mark
    raise AssertionError("no sandbox outlived its outer process in 500 tries")


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_what_an_earlier_supervisor_left_is_ended_and_nothing_else(settings: Settings, tmp_path: Path) -> None:
    ours, others = settings.run / "replicas" / "ours", tmp_path / "elsewhere" / "run" / "others"
    ours.mkdir(parents=True)
    others.mkdir(parents=True)
    left, kept = half_started(ours), half_started(others)
    try:
        with supervisor(settings):
            eventually(lambda: not processes_with(left))
            assert processes_with(kept)
    finally:
        for pid in processes_with(kept):
            with suppress(ProcessLookupError):  # the sandbox's inner process ends with its outer one
                os.kill(pid, signal.SIGKILL)


KEEPER = """
import asyncio, sys
from pathlib import Path
from modelyard.jobs.supervisor import Supervisor

async def main():
    supervisor = Supervisor(Path(sys.argv[1]))
    await supervisor.start()
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    supervisor.keep("fixed", [sys.executable, "-c", code], log_file=Path(sys.argv[2]))
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_a_kept_child_is_started_again(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "fixed.log"
    process = subprocess.Popen([sys.executable, "-c", KEEPER, str(settings.run), str(log)], stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: log.exists() and len(log.read_text().split()) == 1)
        os.kill(int(log.read_text()), signal.SIGKILL)
        eventually(lambda: len(log.read_text().split()) == 2)
    finally:
        process.kill()
        process.wait()
    first, second = map(int, log.read_text().split())
    assert first != second
    eventually(lambda: not Path(f"/proc/{second}").exists())


def test_a_data_folder_has_one_holder(tmp_path: Path) -> None:
    held = lock(tmp_path)
    with pytest.raises(Conflict, match=rf"already runs on .* \(process {os.getpid()}\)"):
        lock(tmp_path)
    os.close(held)
    os.close(lock(tmp_path))


def test_a_child_whose_processes_hold_too_much_together_is_killed(client: LocalExecutor) -> None:
    code = "import os, time\nfor _ in range(4):\n    if not os.fork(): break\n"
    code += "kept = b'x' * (64 << 20)\ntime.sleep(60)"
    limits = {"data": 200 << 20, "processes": 64}
    start(client, "modest", code, limits={**limits, "held": 1 << 30})
    start(client, "greedy", code, limits={**limits, "held": 200 << 20})
    assert exit_of(client, "greedy") == -signal.SIGKILL
    assert client.processes()["modest"]["exit"] is None


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("open(f'{sys.argv[1]}/x', 'wb').write(b'x' * (2 << 20))", "more than 1,048,576 bytes on disk"),
        ("for n in range(11): open(f'{sys.argv[1]}/{n}', 'wb')", "more than 10 files"),
    ],
)
def test_a_child_that_fills_its_folder_is_killed(client: LocalExecutor, tmp_path: Path, code: str, what: str) -> None:
    limits = {"processes": 64, "disk": 1 << 20, "files": 10}
    for token, done in (("modest", "open(f'{sys.argv[1]}/y', 'wb')"), ("greedy", code)):
        folder = tmp_path / token
        folder.mkdir()
        script = f"import sys, time\n{done}\ntime.sleep(60)"
        start(client, token, script, str(folder), limits=limits, folder=str(folder))
    assert exit_of(client, "greedy") == -signal.SIGKILL
    assert client.processes()["greedy"]["reason"] == f"left {what} in its folder"
    assert client.processes()["modest"]["exit"] is None
