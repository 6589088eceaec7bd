from __future__ import annotations

from typing import Any

import pytest

from modelyard.client import rollout
from modelyard.errors import Crashed, NotFound, TimedOut, Unavailable

PENDING = {"name": "d", "state": "pending", "version": "2", "model": "m@2", "error": None}
READY = PENDING | {"state": "ready"}


class Wire:
    """What successive looks at control and at the gateway find; the last of each stays."""

    def __init__(self, control: list[dict[str, Any]], gateway: list[Any]) -> None:
        self.control, self.gateway = control, gateway
        self.asked: list[str] = []

    def get(self, path: str) -> dict[str, Any]:
        if path == "/api/deployments/d":
            return self.control.pop(0) if len(self.control) > 1 else self.control[0]
        found = self.look(path)
        return {"name": "d", "ready": True, **(found if isinstance(found, dict) else {"model": found})}

    def exists(self, path: str) -> bool:
        return bool(self.look(path))

    def look(self, path: str) -> Any:
        self.asked.append(path)
        found = self.gateway.pop(0) if len(self.gateway) > 1 else self.gateway[0]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout.time, "sleep", lambda seconds: None)


def test_ready_is_what_control_and_the_gateway_agree_on() -> None:
    wire = Wire([PENDING, READY], [NotFound("another version"), Unavailable("not yet"), "m@2"])
    assert rollout.until_ready(wire, PENDING) == READY  # type: ignore[arg-type]
    assert wire.asked == ["/v2/models/d/ready"] * 3


def test_the_same_number_of_another_model_is_not_what_was_deployed() -> None:
    moved = READY | {"model": "n@2"}
    wire = Wire([moved], ["m@2", "m@2", "n@2"])
    assert rollout.until_ready(wire, moved) == moved  # type: ignore[arg-type]
    assert len(wire.asked) == 3


def test_a_deployment_that_was_moved_on_meanwhile_is_followed() -> None:
    moved = READY | {"version": "3", "model": "m@3"}
    wire = Wire([moved], ["m@1", "m@3"])
    assert rollout.until_ready(wire, READY) == moved  # type: ignore[arg-type]
    assert wire.asked == ["/v2/models/d/ready"] * 2


def test_a_failure_is_raised_and_patience_ends() -> None:
    with pytest.raises(Crashed, match="does not fit"):
        rollout.until_ready(Wire([PENDING | {"state": "failed", "error": "does not fit"}], [""]), PENDING)  # type: ignore[arg-type]
    with pytest.raises(TimedOut, match="deployment show d"):
        rollout.until_ready(Wire([READY], [""]), READY, patience=-1.0)  # type: ignore[arg-type]


def test_gone_is_when_the_gateway_finds_nothing_or_patience_ends() -> None:
    wire = Wire([], [True, True, False])
    rollout.until_gone(wire, "d")  # type: ignore[arg-type]
    assert wire.asked == ["/v2/models/d"] * 3
    rollout.until_gone(Wire([], [True]), "d", patience=-1.0)  # type: ignore[arg-type]


def test_a_version_on_trial_is_waited_for_until_it_is_given_calls() -> None:
    trial = {"model": "n@2", "state": "pending", "error": None}
    begun = READY | {"trial": trial, "note": None}
    there = READY | {"trial": trial | {"state": "ready"}, "note": None}
    wire = Wire([there], [{"model": "m@2"}, {"model": "m@2", "trial": "n@2"}])
    assert rollout.until_tried(wire, begun) == there  # type: ignore[arg-type]
    assert wire.asked == ["/v2/models/d/ready"] * 2
    gone = READY | {"trial": None, "note": "n@2: Rolled back. It could not be served: damaged"}
    with pytest.raises(Crashed, match=r"goes on as before: n@2: Rolled back\..*damaged"):
        rollout.until_tried(Wire([gone], [""]), begun)  # type: ignore[arg-type]
