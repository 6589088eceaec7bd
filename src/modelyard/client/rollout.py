"""Waiting until callers meet what was asked for: control decides, and the gateway follows the database a moment later.

`Yard.deploy` and `Yard.undeploy` call it, so that the next prediction of whoever deployed is answered by the new version alone.
"""

from __future__ import annotations

import time
from typing import Any

from modelyard.client.wire import Wire, segment
from modelyard.errors import Crashed, NotFound, TimedOut, Unavailable

# Seconds between looks at a deployment that is on its way.
_LOOK = 0.05


def until_ready(wire: Wire, deployment: dict[str, Any], patience: float = 600.0) -> dict[str, Any]:
    """Wait until control calls a deployment ready and the gateway routes to its model. Raises `Crashed` where it failed,
    `TimedOut` after `patience` seconds."""
    name, gives_up = deployment["name"], time.monotonic() + patience
    while deployment["state"] not in ("ready", "asleep") or not _is_routed(wire, name, deployment["model"]):
        if deployment["state"] == "failed":
            raise Crashed(f"Deployment '{name}' of {deployment['model']} failed: {deployment['error']}")
        if time.monotonic() > gives_up:
            raise TimedOut(f"Deployment '{name}' was not ready within {patience:g} s; `modelyard deployment show {name}`.")
        time.sleep(_LOOK)
        deployment = dict(wire.get(f"/api/deployments/{segment(name)}"))
    return deployment


def until_tried(wire: Wire, deployment: dict[str, Any], patience: float = 600.0) -> dict[str, Any]:
    """Wait until a version on trial is given calls. Raises `Crashed` where it cannot be served, `TimedOut` as `until_ready`."""
    name, gives_up = deployment["name"], time.monotonic() + patience
    model = str(deployment["trial"]["model"])
    while not (trial := deployment["trial"]) or trial["state"] != "ready" or not _is_routed(wire, name, model, "trial"):
        if not trial or trial["state"] == "failed":
            raise Crashed(f"Deployment '{name}' goes on as before: {deployment['note'] or (trial or {}).get('error')}")
        if time.monotonic() > gives_up:
            raise TimedOut(f"Nothing was on trial at '{name}' within {patience:g} s; `modelyard deployment show {name}`.")
        time.sleep(_LOOK)
        deployment = dict(wire.get(f"/api/deployments/{segment(name)}"))
    return deployment


def until_gone(wire: Wire, name: str, patience: float = 5.0) -> None:
    """Wait until the gateway knows no deployment of this name, for at most `patience` seconds."""
    gives_up = time.monotonic() + patience
    while wire.exists(f"/v2/models/{segment(name)}") and time.monotonic() < gives_up:
        time.sleep(_LOOK)


def _is_routed(wire: Wire, name: str, model: str, what: str = "model") -> bool:
    """Whether the gateway gives calls to this model; with `what` 'trial', whether it is the one that is tried."""
    try:
        routed = wire.get(f"/v2/models/{segment(name)}/ready")
    except (NotFound, Unavailable):
        return False
    return bool(routed.get(what) == model)
