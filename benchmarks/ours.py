"""What the benchmarks want of a platform besides calls: a key whose calls are counted against quotas, a deployment that is
there in full, and how many calls it says it has answered, by the gateway's own counters and by the ledger once it is written
down."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import httpx
from record import command_of, processes

from modelyard.client import Yard

PLENTY = 1e6  # calls a second: a quota that counts every call and refuses none


def limited(platform: Yard) -> str:
    """A key for calls; it and its project have a quota."""
    platform.set_quota(rate=PLENTY)
    return str(platform.create_key("infer", name="bench", rate=PLENTY)["key"])


def deployed(platform: Yard, name: str, model: str, replicas: int = 1, patience: float = 60.0, **more: Any) -> None:
    """Deploy, and wait for every replica: `deploy` returns when the first answers."""
    platform.deploy(name, model, replicas=replicas, **more)
    deadline = time.monotonic() + patience
    while serving(platform, name) < replicas:
        if time.monotonic() > deadline:
            raise TimeoutError(f"deployment '{name}' has no {replicas} replicas after {patience:g} s")
        time.sleep(0.1)


def serving(platform: Yard, name: str) -> int:
    """How many replicas of a deployment are ready."""
    return sum(replica["state"] == "ready" for replica in platform.deployment(name)["replicas"])


def replicas(platform: Yard) -> list[int]:
    """The pids of all replicas; not of the sandboxes around them."""
    found = [pid for pid, role in processes(platform).items() if role == "replica"]
    return [pid for pid in found if "bwrap" not in command_of(pid).partition(" ")[0]]


def told(url: str, headers: Mapping[str, str]) -> int:
    """Calls by the gateway's own counters, once none is under way."""
    time.sleep(0.5)
    text = httpx.get(f"{url}/metrics", headers=headers, trust_env=False).raise_for_status().text
    return int(sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("modelyard_calls_total{")))


def settled(platform: Yard, least: int, patience: float = 10.0) -> int:
    """Calls in the ledger once they have been written down: at least so many, or after some patience what there is."""
    deadline = time.monotonic() + patience
    while True:
        counted = sum(row["calls"] for row in platform.usage() if row["kind"] == "serving")
        if counted >= least or time.monotonic() > deadline:
            return int(counted)
        time.sleep(0.2)
