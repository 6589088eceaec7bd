"""What must not end a deployment, with real processes: replicas killed again and again, models that exit, hang and leak while
others wait, more calls than one replica can answer, and versions on trial that are slow or wrong."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from test_releases import ask, key, odd, scaled, until

from modelyard.client import Yard
from modelyard.errors import NotFound
from modelyard.testing import yard

HANGS, EXITS, LEAKS = 666, 667, 668
TROUBLE = """
        asked = set(x[:, 0].int().tolist())
        if 666 in asked:
            time.sleep(3600)
        if 667 in asked:
            time.sleep(1.0)
            __import__("os")._exit(3)
        if 668 in asked:
            self.kept = __import__("torch").ones(160_000_000)
        time.sleep(0.2)
"""
SLOW = "time.sleep(0.02 * len(x))"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    folder = tmp_path_factory.mktemp("never-down")
    with yard(folder / "yard", MODELYARD_CALL_TIMEOUT="5") as client:
        for version in (1, 2):
            client.import_model("m", scaled(folder / f"{version}.onnx", 1.0))
        odd(client, "trouble", folder / "trouble", TROUBLE.strip())
        odd(client, "slow", folder / "slow", SLOW)
        yield client


def call(platform: Yard, name: str, value: float = 1.0, timeout: float = 10.0) -> int:
    """The status of a call's answer."""
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}]}
    url = f"{platform.profile.url}/v2/models/{name}/infer"
    return httpx.post(url, json=body, headers=key(platform), timeout=timeout, trust_env=False).status_code


@contextmanager
def calling(platform: Yard, name: str, callers: int) -> Iterator[Counter[int]]:
    """Many call, one call after another each; the answers are counted by status."""
    stop, counted = threading.Event(), Counter[int]()

    def one() -> None:
        while not stop.is_set():
            counted[call(platform, name)] += 1

    with ThreadPoolExecutor(callers) as pool:
        asked = [pool.submit(one) for _ in range(callers)]
        try:
            yield counted
        finally:
            stop.set()
            for done in asked:
                done.result()


def ready(platform: Yard, name: str) -> dict[str, int]:
    """The pids of the replicas that are ready, by token."""
    return {r["token"]: r["pid"] for r in platform.deployment(name)["replicas"] if r["state"] == "ready"}


def whole(platform: Yard, name: str, replicas: int = 2, but: str = "") -> Callable[[], bool]:
    return lambda: len(there := ready(platform, name)) == replicas and but not in there


def test_replicas_killed_again_and_again_are_there_again_at_once_and_no_call_is_lost(platform: Yard) -> None:
    platform.deploy("killed", "m@1", replicas=2)
    until(whole(platform, "killed"))
    with calling(platform, "killed", 2) as counted:
        for _ in range(6):
            time.sleep(1.1)  # control has seen by now that both answer
            token, pid = next(iter(ready(platform, "killed").items()))
            os.kill(pid, signal.SIGKILL)
            until(whole(platform, "killed", but=token), 5.0)
    assert set(counted) == {200}, counted
    platform.undeploy("killed")


@pytest.fixture(scope="module")
def trouble(platform: Yard) -> Iterator[str]:
    """Two replicas of a model that does what its input says."""
    platform.deploy("trouble", "trouble@1", engine="torch", replicas=2)
    until(whole(platform, "trouble"))
    yield "trouble"
    platform.undeploy("trouble")


def behind(platform: Yard, name: str) -> list[tuple[int, float]]:
    """Statuses and seconds of calls that come to both replicas at a time."""

    def one(_: int) -> tuple[int, float]:
        began = time.monotonic()
        return call(platform, name), time.monotonic() - began

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(8)))


def test_what_waits_behind_a_call_that_ends_the_process_is_answered_elsewhere(platform: Yard, trouble: str) -> None:
    before = ready(platform, trouble)
    with pytest.raises(httpx.ReadTimeout):  # who is gone is not tried again elsewhere
        call(platform, trouble, EXITS, timeout=0.2)
    answers = behind(platform, trouble)
    assert {status for status, _ in answers} == {200}, answers
    assert max(seconds for _, seconds in answers) > 0.6  # some of them waited there
    until(lambda: len(there := ready(platform, trouble)) == 2 and there != before)


def test_what_waits_behind_a_call_that_hangs_is_answered_elsewhere_in_time(platform: Yard, trouble: str) -> None:
    before = ready(platform, trouble)
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        hanging = pool.submit(call, platform, trouble, HANGS)
        time.sleep(0.1)
        answers = behind(platform, trouble)
        assert hanging.result() == 504
        assert time.monotonic() - began < 4.5  # sooner than its deadline
    assert {status for status, _ in answers} == {200}, answers
    assert max(seconds for _, seconds in answers) > 2.0
    until(lambda: len(there := ready(platform, trouble)) == 2 and there != before)


def test_a_replica_that_leaks_is_replaced_and_serves_until_then(platform: Yard, trouble: str) -> None:
    before = ready(platform, trouble)
    with calling(platform, trouble, 2) as counted:
        assert call(platform, trouble, LEAKS) == 200
        until(lambda: len(there := ready(platform, trouble)) == 2 and there != before)
    assert set(counted) == {200}, counted
    assert len(before.keys() & ready(platform, trouble).keys()) == 1


def test_it_grows_with_what_waits_and_with_what_is_refused_for_the_latency_target(platform: Yard) -> None:
    """The second deployment's replicas are told what the first one's measured."""
    platform.deploy("grows", "slow@1", engine="torch", max_replicas=2)
    assert len(ready(platform, "grows")) == 1
    with calling(platform, "grows", 24) as counted:
        until(whole(platform, "grows"), 90.0)
    assert set(counted) == {200}, counted
    platform.undeploy("grows")  # another release would begin with as many as serve
    platform.deploy("grows", "slow@1", engine="torch", max_replicas=2, latency_target=0.1)
    until(whole(platform, "grows", 1))
    with calling(platform, "grows", 12) as counted:
        until(whole(platform, "grows"), 90.0)
    assert counted[429] > 0
    assert set(counted) <= {200, 429}, counted
    platform.undeploy("grows")


def tried(platform: Yard, name: str, each: Callable[[], None]) -> str:
    """Call until nothing is on trial any more; what is said of it then."""
    gives_up = time.monotonic() + 60
    while platform.deployment(name)["trial"] and time.monotonic() < gives_up:
        for _ in range(20):
            each()
    shown = platform.deployment(name)
    assert shown["trial"] is None
    return str(shown["note"])


def test_a_canary_that_is_slow_is_taken_back(platform: Yard) -> None:
    platform.deploy("lags", "m@1")
    platform.deploy("lags", "slow@1", engine="torch", canary=50)
    note = tried(platform, "lags", lambda: ask(platform, "lags"))
    assert "slow@1: Rolled back. The canary took more than 1.2 times as long in" in note
    platform.undeploy("lags")


def test_a_canary_whose_answers_people_call_wrong_is_taken_back(platform: Yard) -> None:
    platform.deploy("wrong", "m@1")
    platform.deploy("wrong", "m@2", canary=50)

    def judged() -> None:
        answer = platform.predict("wrong", {"x": np.ones((1, 1), np.float32)})
        with suppress(NotFound):  # once it was taken back, it serves no more
            platform.feedback(answer, score=float(answer.version == "1"))

    assert "m@2: Rolled back. The canary was wrong in" in tried(platform, "wrong", judged)
    platform.undeploy("wrong")


def test_a_canary_that_ends_its_process_again_and_again_is_taken_back(platform: Yard, tmp_path: Path) -> None:
    """Its one replica is gone whenever it was called: what was seen of it must outlive it."""
    odd(platform, "dies", tmp_path / "dies", "__import__('os')._exit(3) if float(x[0, 0]) == 5 else None")
    platform.deploy("falls", "m@1")
    platform.deploy("falls", "dies@1", engine="torch", canary=50)
    note = tried(platform, "falls", lambda: time.sleep(0.01) or call(platform, "falls", 5))  # type: ignore[func-returns-value]
    assert "dies@1: Rolled back. The canary" in note
    assert call(platform, "falls", 5) == 200
    platform.undeploy("falls")
