"""Which logs of replicas stay: those of the running, and the newest of the ended; and that none grows for ever."""

import os
from pathlib import Path

import pytest

from modelyard.serving import logs as module
from modelyard.serving.logs import KEPT, KEPT_EACH, Log, Logs, surplus


def log(deployment: str, number: int) -> Log:
    return Log(Path(f"{deployment}-{number}"), deployment, f"r-{number:x}", 1, float(number))


def test_of_each_deployment_the_newest_ended_stay_and_all_that_run() -> None:
    there = [log("p.a", number) for number in range(6)] + [log("p.b", 7)]
    removed = surplus(there, running={"r-0"})
    assert {one.token for one in removed} == {"r-1", "r-2"}
    assert KEPT_EACH == 3


def test_of_all_no_more_stay_than_are_of_use() -> None:
    there = [log(f"p.d{number}", number) for number in range(KEPT + 5)]
    assert {one.written for one in surplus(there, running=())} == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_the_folder_is_tidied_and_nothing_else_in_it_is_touched(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    for number in range(5):
        path = logs.path("team", "chat", f"r-00{number}")
        path.write_text("x")
        os.utime(path, (number, number))
    (tmp_path / "control.log").write_text("x")
    (tmp_path / "team.chat-r-00f.log").symlink_to(tmp_path / "control.log")
    logs.tidy({"r-000"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "control.log",
        *(f"team.chat-r-00{number}.log" for number in (0, 2, 3, 4)),
        "team.chat-r-00f.log",
    ]
    logs.tidy(set())  # a moment later: it does not look again yet
    assert len(list(tmp_path.iterdir())) == 6


def test_a_log_that_grew_too_long_keeps_its_end_and_its_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST", 1000)
    monkeypatch.setattr(module, "LEFT", 100)
    logs = Logs(tmp_path)
    path = logs.path("team", "chat", "r-001")
    with path.open("ab", buffering=0) as writer:
        for number in range(200):
            writer.write(b"line %d\n" % number)
        logs.tidy({"r-001"})
        writer.write(b"after\n")
    lines = path.read_text().splitlines()
    assert lines[0] == "(what stood here was cut: the log had grown too long)"
    assert lines[-2:] == ["line 199", "after"]
    assert path.stat().st_size < 200


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    Logs(tmp_path / "none").tidy(set())
