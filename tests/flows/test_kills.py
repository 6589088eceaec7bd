"""Eight processes of a working platform are killed, control stops, the database is locked: nothing is lost and nothing doubled.

The seed is printed; the environment's KILLS_SEED plays the same kills again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from attack_tools import CALL, serve_matmul
from kill_processes import Platform, until
from kill_tools import ordeal, seed_of

GRACE = 3.0


def test_eight_kills(tmp_path: Path) -> None:
    ordeal(tmp_path, seed_of(os.environ.get("KILLS_SEED")), storms=1, kills=8)


class Serving:
    """A platform with one deployment and a short grace."""

    def __init__(self, platform: Platform, folder: Path) -> None:
        self.platform = platform
        with platform.yard() as yard:
            serve_matmul(yard, folder, "matmul")
            self._key = yard.profile.key

    def ready(self) -> tuple[int, dict[str, Any]]:
        answer = httpx.get(f"{self.platform.url}/readyz", timeout=5)
        return answer.status_code, answer.json()

    def call(self) -> int:
        headers = {"Authorization": f"Bearer {self._key}"}
        answer = httpx.post(f"{self.platform.url}/v2/models/matmul/infer", json=CALL, headers=headers, timeout=10)
        return answer.status_code

    def is_whole(self) -> bool:
        return self.ready() == (200, {"status": "ready", "control": "ok", "database": "ok"}) and self.call() == 200


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("serving")
    platform = Platform(folder / "yard", MODELYARD_GRACE=str(GRACE))
    try:
        platform.start()
        yield Serving(platform, folder)
    finally:
        platform.close()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def unreadable(database: Path) -> Iterator[None]:
    """Nobody gets to read a SQLite database in WAL mode while all its readers' locks (bytes 123 to 127 of -shm) are taken."""
    with database.with_name(f"{database.name}-shm").open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 5, 123)
        yield


def test_calls_are_answered_without_control_and_readyz_says_so(serving: Serving) -> None:
    """It answers no one for longer than the grace: what the gateway needs to know is in the database, which it sees."""
    assert serving.is_whole()
    (control,) = serving.platform.find("control")
    with stopped(control.pid):
        without = until(lambda: serving.ready()[1]["control"] == "gone" and time.monotonic(), 10, "control is missed")
        while time.monotonic() < without + GRACE + 1:
            assert serving.ready() == (200, {"status": "ready", "control": "gone", "database": "ok"})
            assert serving.call() == 200
            time.sleep(0.2)
    until(serving.is_whole, 10, "control is back")


def test_calls_are_answered_without_the_database_for_the_grace(serving: Serving) -> None:
    assert serving.is_whole()
    with unreadable(serving.platform.data / "modelyard.db"):
        gone = time.monotonic()
        until(lambda: serving.ready()[1]["database"] == "gone", GRACE, "the database is missed")
        while time.monotonic() < gone + GRACE - 0.5:
            assert serving.call() == 200
            time.sleep(0.1)
        until(lambda: serving.call() == 503, 3, "calls are refused")
        assert time.monotonic() - gone > GRACE - 0.5
        status, said = serving.ready()
        assert (status, said["error"]["code"]) == (503, "unavailable")
        assert "cannot see the database" in said["error"]["message"]
    until(serving.is_whole, 10, "the database is back")
