"""The verbs of `Yard` that put versions to work: deploy, try beside what serves, promote, roll back, tell what was right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelyard.client.answer import Answer
from modelyard.client.jobs import Jobs
from modelyard.client.outcome import best_or_newest
from modelyard.client.rollout import until_gone, until_ready, until_tried
from modelyard.client.wire import Wire, segment

Json = dict[str, Any]


class Serving(Jobs):
    """Deployments of one platform."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire)
        self._datatypes: dict[str, Mapping[str, str]] = {}

    def deploy(
        self,
        name: str,
        model: str,
        *,
        wait: bool = True,
        replicas: int = 1,
        engine: str | None = None,
        canary: int | None = None,
        shadow: int | None = None,
        **options: Any,
    ) -> Json:
        """Serve a model version as `name`, or move `name` to it; calls go on being answered meanwhile. An alias is pinned now;
        for a bare name see `served`. With `canary` (% of the calls) or `shadow` (% of the calls, of which it is given a copy)
        the version is tried beside the one that serves, and taken back by itself where it is seen to be worse.

        Options: `min_replicas` (0: it sleeps after `idle` seconds without a call) and `max_replicas`, both `replicas` where not
        said; `latency_target` in seconds; `cache`; `threads` that a replica computes in; `policy`, what a version on trial is
        judged by; `gate`, what any version but its baseline must be shown to keep ({'max_accuracy_drop': 0.5, …}; it stays with
        the deployment), `lift_gate`, and `override`, why an administrator lets a version pass that is refused. Returns when
        calls are answered by it alone, or by it on trial, unless not `wait`. Raises the replica's own error if it cannot, and
        `Conflict` where the gate refuses it."""
        given = {"engine": engine, "canary": canary, "shadow": shadow, **options}
        body = {"name": name, "model": self.served(model), "replicas": replicas}
        body |= {key: value for key, value in given.items() if value is not None}
        deployment = dict(self._wire.post("/api/deployments", body))
        try:
            if not wait:
                return deployment
            tried = canary is not None or shadow is not None
            return (until_tried if tried else until_ready)(self._wire, deployment)
        finally:
            self._datatypes.pop(name, None)

    def served(self, model: str) -> str:
        """What `deploy` takes a reference for: a bare name for 'name@best' where that alias is given, else for the newest."""
        return model if "@" in model else best_or_newest(dict(self._wire.get(f"/api/models/{segment(model)}")))

    def promote(self, name: str, *, override: str | None = None) -> Json:
        """Have the version on trial answer every call; returns once it does. Raises `Conflict` where the gate refuses it."""
        body = {} if override is None else {"override": override}
        return until_ready(self._wire, dict(self._wire.post(f"/api/deployments/{segment(name)}/promote", body)))

    def rollback(self, name: str) -> Json:
        """End the trial, if there is one, else go back to the version that served before; returns once that answers."""
        return until_ready(self._wire, dict(self._wire.post(f"/api/deployments/{segment(name)}/rollback")))

    def feedback(self, answer: Answer, *, score: float) -> Json:
        """Say how right an answer was, from 0, wrong, to 1; a version on trial is judged by it."""
        items = [{"version": answer.model or answer.version, "score": score}]
        return dict(self._wire.post(f"/api/deployments/{segment(answer.deployment)}/feedback", {"items": items}))

    def deployments(self) -> list[Json]:
        return list(self._wire.get("/api/deployments"))

    def deployment(self, name: str) -> Json:
        return dict(self._wire.get(f"/api/deployments/{segment(name)}"))

    def undeploy(self, name: str) -> None:
        """End a deployment: calls under way are finished, new ones find nothing once this returns."""
        self._wire.delete(f"/api/deployments/{segment(name)}")
        until_gone(self._wire, name)
        self._datatypes.pop(name, None)
