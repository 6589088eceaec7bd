"""What a gang can reach of the machine: nothing but what it was given. And what is left of that without bubblewrap."""

import os
import re
import socket
import time
from pathlib import Path

import pytest
from jobs_bench import bench, eventually, processes_with

from modelyard.errors import Unavailable
from modelyard.jobs import sandbox
from modelyard.jobs.types import State
from modelyard.telemetry import QUIET

ALLOWED = {
    *QUIET,
    *(
        "CUBLAS_WORKSPACE_CONFIG",
        "GLOO_SOCKET_IFNAME",
        "HOME",
        "LANG",
        "LC_CTYPE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MALLOC_MMAP_THRESHOLD_",
        "MALLOC_TOP_PAD_",
        "MALLOC_TRIM_THRESHOLD_",
        "PATH",
        "PWD",
    ),
    *(
        "MKL_NUM_THREADS",
        "NCCL_SOCKET_IFNAME",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "PYTHONDONTWRITEBYTECODE",
        "TZ",
        "RANK",
        "RANK_CPUS",
        "RANK_GPUS",
    ),
    *("PYTHONHASHSEED", "PYTHONPATH", "TMPDIR", "WORLD_SIZE"),
}


@pytest.mark.skipif(not sandbox.available(), reason="bubblewrap does not run here")
def test_a_gang_reaches_nothing_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVER", "canary")
    given = tmp_path / "given"
    given.mkdir()
    (given / "a.txt").write_text("a")
    with bench(tmp_path / "yard") as yard:
        reference = f"artefact:{yard.artefact(given)}"
        (given / "a.txt").write_text("of another project")
        theirs = yard.artefacts.publish("rival", given)
        copied = yard.artefacts.local("rival", theirs.hash) / "a.txt"
        other = yard.submit("waits")
        yard.until(lambda: yard.job(other).state is State.running)
        data = yard.settings.data
        (data / "secret").write_text("pepper")
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(yard.settings.run / "control.sock"))
        listening.listen()
        files = {
            "database": data / "modelyard.db",
            "secret": data / "secret",
            "blob": next(path for path in (data / "store" / "projects" / "rival" / "blobs").rglob("*") if path.is_file()),
            "manifest": next((data / "store" / "projects" / "rival" / "artefacts").glob("*.json")),
            "cached": copied,
            "other_job": next(path for path in (data / "jobs" / other).rglob("*") if path.is_file()),
        }
        sockets = [yard.settings.run / "control.sock", yard.settings.run / "supervisor.sock"]
        assert all(path.is_file() for path in files.values())
        assert sorted(yard.settings.run.glob("*.sock")) == sockets
        text = "\n".join([str(data), str(yard.settings.run), *(f"{name}={path}" for name, path in files.items())])
        job = yard.run("escapes", inputs={"files": reference}, text=text)
        listening.close()
        assert job.state is State.succeeded, yard.log(job.id)
        facts = dict(job.facts["0"])
        assert set(facts.pop("environment")) <= ALLOWED
        assert facts.pop("processes") <= 4
        assert int(str(facts.pop("capabilities")), 16) == 0
        assert facts.pop("other_jobs") == [job.id]
        assert re.fullmatch(
            r"REACHED \[PosixPath\('[^']*'\)\]", str(facts.pop("cache_list"))
        )  # the way to its own input, alone
        assert not [fact for fact in facts.items() if "REACHED" in str(fact[1])]
        assert sorted(facts) == [
            "blob", "cached", "control", "database", "home", "logs_list", "manifest", "network", "other_job", "run_list",
            "secret", "shadow", "store_list", "supervisor", "write_input", "write_package", "write_root", "write_system",
        ]  # fmt: skip
        yard.cancel(other)


@pytest.mark.parametrize(
    ("text", "what"), [("files", "more than 2,000 files"), ("bytes", "more than 100,000,000 bytes on disk")]
)
def test_a_job_that_fills_the_disk_is_ended(tmp_path: Path, text: str, what: str) -> None:
    with bench(tmp_path, job_disk=100_000_000, job_files=2000) as yard:
        job = yard.run("fills", text=text)
        assert (job.state, job.attempt) == (State.failed, 1)
        assert job.error is not None
        assert (job.error["code"], what in job.error["message"]) == ("invalid_request", True), job.error
        eventually(lambda: not list(yard.settings.jobs.iterdir()))
        assert yard.run("copy").state is State.succeeded


@pytest.mark.skipif(not sandbox.available(), reason="bubblewrap does not run here")
def test_signals_reach_nothing_outside_and_not_the_launcher(tmp_path: Path) -> None:
    with bench(tmp_path, job_restarts=0) as yard:
        (supervisor,) = processes_with(str(yard.settings.run))
        job = yard.run("signals", number=supervisor, text=str(os.getpid()))
        assert (job.state, dict(job.facts["0"])) == (
            State.succeeded,
            {
                "launcher": 1,
                "supervisor": "ProcessLookupError",
                "control": "ProcessLookupError",
                "attach": "Operation not permitted",
                "seize": "Operation not permitted",
                "memory": "Permission denied",
                "descriptors": "Permission denied",
            },
        ), yard.log(job.id)
        assert processes_with(str(yard.settings.run)) == [supervisor]
        assert yard.run("copy").state is State.succeeded


@pytest.mark.skipif(not sandbox.available(), reason="bubblewrap does not run here")
@pytest.mark.parametrize("fails", [False, True])
def test_what_outlives_the_ranks_is_ended_and_told(tmp_path: Path, fails: bool) -> None:
    mark = f"mark-{os.getpid()}-{fails}"
    with bench(tmp_path) as yard:
        job = yard.run("strays", text=mark, number=int(fails))
        assert processes_with(mark) == []
        told = [line for line in yard.log(job.id).splitlines() if "WARNING: the job left a process running" in line]
        assert len(told) == 1, yard.log(job.id)
        assert "import time; time.sleep(300)" in told[0]
        assert job.facts["0"]["strays"] == 1
        assert job.state is (State.failed if fails else State.succeeded)
        assert fails == ("It left a process running, which the platform ended" in (job.error or {"message": ""})["message"])


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_the_memory_of_all_processes_of_a_gang_is_bounded(tmp_path: Path, mode: str) -> None:
    """Each child is within what the kernel allows a process; together they are not."""
    mark = f"mark-{os.getpid()}-{mode}"
    with bench(tmp_path, sandbox=mode, job_memory=512 << 20) as yard:
        job = yard.run("breeds", number=6, text=mark, timeout=60)
        assert (job.state, job.attempt) == (State.failed, 1), yard.log(job.id)
        assert job.error is not None
        assert job.error["code"] == "invalid_request"
        found = re.search(
            r"out of memory: its (\d+) processes held ([\d,]+) bytes together; a gang of 1 may hold ([\d,]+)",
            job.error["message"],
        )
        assert found, job.error
        processes, held, most = (int(number.replace(",", "")) for number in found.groups())
        assert (most, held > most, 5 <= processes <= 9) == (1 << 30, True, True), job.error
        assert processes_with(mark) == []
        assert yard.run("copy").state is State.succeeded


def test_without_bubblewrap_jobs_run_and_strays_still_end(tmp_path: Path) -> None:
    mark = f"mark-{os.getpid()}-plain"
    with bench(tmp_path, sandbox="off") as yard:
        job = yard.run("strays", text=mark)
        assert job.state is State.succeeded, yard.log(job.id)
        assert yard.log(job.id).startswith("WARNING: NO SANDBOX, the setting sandbox is 'off'.")
        assert job.facts["0"]["strays"] == 1
        assert not processes_with(mark)
        assert yard.run("reduce_all", ranks=2).state is State.succeeded


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_a_fork_bomb_is_ended(tmp_path: Path, mode: str) -> None:
    mark = f"60.{os.getpid()}"
    with bench(tmp_path, sandbox=mode) as yard:
        job = yard.run("bombs", number=2000, text=mark, timeout=60)
        assert (job.state, job.attempt) == (State.failed, 1)
        assert job.error == {"code": "invalid_request", "message": "The job was ended: it started more than 512 processes."}
        eventually(lambda: not processes_with(mark))
        assert yard.run("copy").state is State.succeeded


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_a_bomb_whose_every_process_forks_is_ended(tmp_path: Path, mode: str) -> None:
    """2,048 processes in all if nothing ended it: no more than a machine can bear."""
    with bench(tmp_path, sandbox=mode) as yard:
        (supervisor,) = processes_with(str(yard.settings.run))
        bomb, slowest = yard.submit("forks", number=11, timeout=60), 0.0

        def ended() -> bool:
            nonlocal slowest
            began = time.monotonic()
            yard.executor.processes()  # asks the supervisor
            slowest = max(slowest, time.monotonic() - began)
            return yard.job(bomb).state.ended

        yard.until(ended)
        job = yard.job(bomb)
        assert (job.state, job.attempt) == (State.failed, 1)
        assert job.error == {"code": "invalid_request", "message": "The job was ended: it started more than 512 processes."}
        assert slowest < 5
        assert yard.run("copy").state is State.succeeded
        assert processes_with(str(yard.settings.run)) == [supervisor]


def test_a_required_sandbox_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "available", lambda: False)
    with pytest.raises(Unavailable, match="apt install bubblewrap"):
        sandbox.wanted("require")
