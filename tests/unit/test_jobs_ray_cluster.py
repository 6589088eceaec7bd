"""Joining a cluster that refuses; what a real one does is for the contracts and the flows."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.errors import Unavailable
from modelyard.jobs.ray import cluster as module
from modelyard.jobs.ray.cluster import Cluster


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("Invalid address format"), "cannot be joined: Invalid address format$"),
        (
            RuntimeError("Version mismatch:\n  Ray: 2.1\n  Python: 3.9"),
            r"cannot be joined: Version mismatch: Ray: 2\.1 Python: 3\.9$",
        ),
    ],
)
def test_what_waiting_does_not_mend_is_said_at_once(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    tries = list[str]()

    def init(address: str, **_: Any) -> None:
        tries.append(address)
        raise error

    monkeypatch.setattr(module.ray, "init", init)
    with pytest.raises(Unavailable, match=said):
        Cluster("10.0.0.1:6379", "ours")
    assert tries == ["10.0.0.1:6379"]
