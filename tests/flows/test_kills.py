"""Eight processes of a working platform are killed, control stays dead, the database is locked: nothing is lost or doubled.

The run's header tells the seed; the environment's KILLS_SEED plays the same kills again.
"""

from __future__ import annotations

import contextlib
import fcntl
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kill_outage import Serving, outage
from kill_processes import Platform, until
from kill_tools import ordeal

GRACE = 3.0


@pytest.mark.timeout(600)
def test_eight_kills(tmp_path: Path, seed: int) -> None:
    assert ordeal(tmp_path, seed, storms=1, kills=8, patience=1.5).resumed > 0


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("serving")
    platform = Platform(folder / "yard", MODELYARD_GRACE=str(GRACE))
    try:
        platform.start()
        serving = Serving(platform, folder)
        yield serving
        serving.close()
    finally:
        platform.close()


@contextlib.contextmanager
def unreadable(database: Path) -> Iterator[None]:
    """Nobody gets to read a SQLite database in WAL mode while all its readers' locks (bytes 123 to 127 of -shm) are taken."""
    with database.with_name(f"{database.name}-shm").open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 5, 123)
        yield


def test_calls_are_answered_without_control_for_the_grace(serving: Serving) -> None:
    outage(serving, seconds=GRACE + 1.0, grace=GRACE, successors=signal.SIGSTOP)


def test_calls_are_answered_without_the_database_for_the_grace(serving: Serving) -> None:
    assert serving.is_whole()
    with unreadable(serving.platform.data / "modelyard.db"):
        gone = time.monotonic()
        until(lambda: serving.ready()[1]["database"] == "gone", GRACE, "the database is missed")
        while time.monotonic() < gone + GRACE - 0.5:
            assert serving.call().status_code == 200
            time.sleep(0.1)
        until(lambda: serving.call().status_code == 503, 3, "calls are refused")
        assert time.monotonic() - gone > GRACE - 0.5
        status, said = serving.ready()
        assert (status, said["error"]["code"]) == (503, "unavailable")
        assert "cannot see the database" in said["error"]["message"]
    until(serving.is_whole, 10, "the database is back")


def test_who_names_what_is_unknown_while_the_database_is_locked_is_not_kept_waiting(serving: Serving) -> None:
    strange = "my_0123456789ab_" + "0" * 48
    assert serving.is_whole()
    assert (serving.call(strange).status_code, serving.call(deployment="nosuch").status_code) == (401, 404)
    with unreadable(serving.platform.data / "modelyard.db"):
        for asked in ({"key": strange}, {"deployment": "nosuch"}):
            began = time.monotonic()
            answer = serving.call(**asked)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert time.monotonic() - began < 3.0
    until(serving.is_whole, 10, "the database is back")
