"""The verbs of `Yard` about how good a version is beside another, and about gates that decide by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelyard.client.jobs import OnEvent
from modelyard.client.outcome import dataset_of
from modelyard.client.serving import Serving
from modelyard.client.wire import segment
from modelyard.errors import Invalid

Json = dict[str, Any]


class Gating(Serving):
    """Evaluations and gates of one platform."""

    def evaluate(
        self,
        reference: str,
        *,
        against: str | None = None,
        on: str | None = None,
        slices: Sequence[str] = (),
        wait: bool = True,
        on_event: OnEvent | None = None,
        **config: Any,
    ) -> Json:
        """Hold a model version against another on the report split of a dataset, over all rows, by class, and by the values of
        the columns `slices`; the gate decides by what is found. `against` None means the version it was made from, `on` None
        the dataset nearest to it in its lineage. Returns {reference, against, dataset, job, metric, rows, original, variant,
        drop, agreement, calibration, slices}, or the job if not `wait`."""
        version = self.version(reference)
        against = against or version["metadata"].get("original")
        if not against:
            raise Invalid(f"{version['reference']} was made from no other version: say which to hold it against (--against).")
        on = on or dataset_of(self.lineage(version["reference"]), "on=…, --on")
        inputs = {"model": f"model:{version['reference']}", "original": f"model:{against}", "dataset": f"dataset:{on}"}
        job = self.submit("evaluate", {"slices": list(slices), **config}, inputs)
        return self.evaluated(job["id"], on_event) if wait else job

    def evaluated(self, job: str, on_event: OnEvent | None = None) -> Json:
        """Wait for a job of kind `evaluate` and return what it found, as `evaluate` does."""
        ended = self.wait(job, on_event)
        of = {role: str(ended["inputs"][role]).partition(":")[2] for role in ("model", "original", "dataset")}
        found = {"reference": of["model"], "against": of["original"], "dataset": of["dataset"], "job": job}
        return {**found, **ended["facts"]["0"]}

    def evaluations(self, reference: str) -> list[Json]:
        """What was found of a model version beside others, newest first: {candidate, baseline, baseline_reference, dataset,
        dataset_reference, split, evidence, job, created}."""
        version = self.version(reference)
        return list(self._wire.get(f"/api/models/{segment(version['name'])}/versions/{version['version']}/evaluations"))

    def project_gate(self, project: str) -> Json | None:
        """What a project's variants must be shown to keep before they are deployed; None where it has no gate."""
        gate = self._wire.get(f"/api/projects/{segment(project)}/gate")["gate"]
        return None if gate is None else dict(gate)

    def set_project_gate(self, project: str, gate: Mapping[str, Any] | None) -> Json | None:
        """Hold a project's variants against the versions they were made from ({'max_accuracy_drop': 0.5, …}), or, with None,
        no longer."""
        body = {"gate": None if gate is None else dict(gate)}
        said = self._wire.put(f"/api/projects/{segment(project)}/gate", body)["gate"]
        return None if said is None else dict(said)
