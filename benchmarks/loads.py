"""What stays behind when a model is loaded and unloaded a hundred times: nothing.

Each cycle deploys the model, calls it, and ends the deployment; memory, threads and descriptors of gateway, control and
supervisor are looked at while nothing is deployed, after some cycles to warm up (caches, and what Python keeps of the memory it
once had) and after a hundred more.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections import Counter
from pathlib import Path

import models
import numpy as np
from record import MB, Record, memory_of, processes, recording, timed

from modelyard.client import Yard
from modelyard.testing import yard

CALLS = 20  # a cycle
RELAYED = 1500  # requests to control to warm up: the gateway looks for what they leave in cycles only after a thousand or so
QUIET = 12.0  # seconds after which what ends late has ended: control lets threads go that had nothing to do for ten
ROLES = ("gateway", "control", "up")
Look = dict[str, dict[str, float]]
Open = dict[str, Counter[str]]


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cycles", type=int, help="that are measured (default: 100)")


def main() -> None:
    with recording("loads", __doc__ or "", options) as record, tempfile.TemporaryDirectory() as folder:
        cycles, warm = record.given.cycles or (5 if record.quick else 100), 3 if record.quick else 20
        record.parameters = {
            "cycles": cycles,
            "cycles_to_warm_up": warm,
            "calls_a_cycle": CALLS,
            "quiet_seconds": QUIET,
            "relayed": RELAYED,
        }
        with yard(Path(folder) / "yard") as platform:
            platform.import_model("tiny", models.tiny(Path(folder) / "tiny.onnx"))
            cycle(platform, warm)
            for _ in range(RELAYED):
                platform.deployments()
            before, files = look(platform), opened(platform)
            show("before", before)
            seconds: list[float] = []
            courses = [before]
            for part in range(5):
                seconds += cycle(platform, cycles * (part + 1) // 5 - cycles * part // 5)
                courses.append(look(platform))
                show(f"after {len(seconds)}", courses[-1])
            report(record, courses, seconds, {role: dict(now - files[role]) for role, now in opened(platform).items()})


def cycle(platform: Yard, times: int) -> list[float]:
    """Load, call, unload. Returns how long each took."""
    row = np.zeros((1, 10), np.float32)

    def once() -> None:
        platform.deploy("tiny", "tiny")
        for _ in range(CALLS):
            platform.predict("tiny", {"x": row})
        platform.undeploy("tiny")

    return [timed(once)[0] for _ in range(times)]


def look(platform: Yard) -> Look:
    """Of each role that stays, once all is quiet: bytes resident, threads, descriptors; and how many processes there are."""
    time.sleep(QUIET)
    found = processes(platform)
    seen: Look = {"all": {"processes": len(found)}}
    for pid, role in found.items():
        if role in ROLES:
            here = Path(f"/proc/{pid}")
            counts = {"threads": len(list((here / "task").iterdir())), "descriptors": len(list((here / "fd").iterdir()))}
            seen[role] = {"memory": memory_of(pid, "VmRSS"), "private": memory_of(pid, "RssAnon"), **counts}
    return seen


def opened(platform: Yard) -> Open:
    """What the descriptors of each role are: files by name, all else by kind."""
    found: Open = {}
    for pid, role in processes(platform).items():
        for entry in Path(f"/proc/{pid}/fd").iterdir() if role in ROLES else ():
            with contextlib.suppress(OSError):
                to = str(entry.readlink())
                found.setdefault(role, Counter())[to.rpartition("/")[2] if to.startswith("/") else to.partition(":")[0]] += 1
    return found


def show(when: str, seen: Look) -> None:
    sizes = ", ".join(f"{role} {seen[role]['memory'] / MB:.1f} MB" for role in ROLES if role in seen)
    print(f"   {when}: {sizes}", flush=True)


def report(record: Record, courses: list[Look], seconds: list[float], more: dict[str, dict[str, int]]) -> None:
    before, after = courses[0], courses[-1]
    record.figure("a load, some calls and an unload", sum(seconds) / len(seconds), "s", longest=max(seconds))
    for role in [role for role in ROLES if role in after]:
        course = [seen[role]["memory"] / MB for seen in courses]
        grown = 100 * (after[role]["memory"] / before[role]["memory"] - 1)
        most = 2 if role in ("gateway", "control") else None
        private = [seen[role]["private"] / MB for seen in courses]
        record.figure(f"{role}: memory grown", grown, "%", most=most, mb=course, private_mb=private)
        for what in ("threads", "descriptors"):
            each = [seen[role][what] for seen in courses]
            record.figure(f"{role}: {what} more", after[role][what] - before[role][what], what, most=0, each=each)
        print(f"   {role}: descriptors that were not there before: {more[role] or 'none'}", flush=True)
    left = after["all"]["processes"] - before["all"]["processes"]
    record.figure("processes more", left, "processes", most=0, there=after["all"]["processes"])


if __name__ == "__main__":
    main()
