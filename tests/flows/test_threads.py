"""The threads of replicas on a real machine: as many as were asked for while there are cores, and what is said where not."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
from test_releases import ask, scaled, until

from modelyard.client import Yard
from modelyard.testing import yard

CORES = os.cpu_count() or 1


def threads_of(platform: Yard, name: str) -> tuple[int, int, str | None]:
    """Of the one replica of a deployment: the threads its process was started with, those that are told, and the note."""
    [replica] = platform.deployment(name)["replicas"]
    specs = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = file.read_bytes().split(b"\0")
            if b"modelyard.serving.replica" in words and b"--spec" in words:
                specs.append(json.loads(words[words.index(b"--spec") + 1]))
    [given] = {spec["threads"] for spec in specs if spec["token"] == replica["token"]}
    return given, replica["threads"], replica["note"]


@pytest.mark.skipif(CORES < 2, reason="one core has no threads to share out")
def test_replicas_together_compute_in_no_more_threads_than_there_are_cores(tmp_path: Path) -> None:
    with yard(tmp_path / "yard") as platform:
        platform.import_model("m", scaled(tmp_path / "m.onnx", 2.0))
        platform.deploy("wide", "m", threads=CORES)
        assert threads_of(platform, "wide") == (CORES, CORES, None)
        platform.deploy("late", "m", threads=2)
        note = "It computes in 1 of the 2 threads asked for: its machine had no more cores to give."
        assert threads_of(platform, "late") == (1, 1, note)
        platform.deploy("plain", "m")
        assert threads_of(platform, "plain") == (1, 1, None)
        assert [ask(platform, name)[0] for name in ("wide", "late", "plain")] == [2.0] * 3
        for name in ("plain", "wide", "late"):
            platform.undeploy(name)
        platform.deploy("late", "m", threads=2)
        assert threads_of(platform, "late") == (2, 2, None)
        for threads in (1, CORES):  # another release each time, which takes over what the one before has
            platform.deploy("late", "m", threads=threads)
            until(lambda: len(platform.deployment("late")["replicas"]) == 1)
            assert threads_of(platform, "late") == (threads, threads, None)
