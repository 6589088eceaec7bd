"""What a platform says it has answered: by the gateway's own counters, and by the ledger once it is written down."""

from __future__ import annotations

import time
from collections.abc import Mapping

import httpx

from modelyard.client import Yard


def told(url: str, headers: Mapping[str, str]) -> int:
    """Calls by the gateway's own counters, once none is under way."""
    time.sleep(0.5)
    text = httpx.get(f"{url}/metrics", headers=headers, trust_env=False).raise_for_status().text
    return int(sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("modelyard_calls_total{")))


def settled(platform: Yard, least: int, patience: float = 10.0, deployment: str | None = None) -> int:
    """Calls in the ledger (of one deployment, or of all) once they have been written down."""
    deadline = time.monotonic() + patience
    while True:
        rows = [row for row in platform.usage() if row["kind"] == "serving" and deployment in (None, row["subject"])]
        counted = sum(row["calls"] for row in rows)
        if counted >= least or time.monotonic() > deadline:
            return int(counted)
        time.sleep(0.2)
