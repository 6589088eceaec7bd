"""What was found of a model beside another: recorded as a job ends, looked up where somebody decides by it.

`jobs.endings` records, in the transaction that marks the job succeeded; `serving.gating` asks. What the evidence means is not
known here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from modelyard.catalogue.tables import EvaluationRow
from modelyard.catalogue.types import Parent
from modelyard.db import Session, now
from modelyard.errors import Invalid

_LARGEST = 1 << 20  # bytes of JSON: some ten thousand slices


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One that was recorded: artefacts by hash, the baseline's and the dataset's references as they were then."""

    candidate: str
    baseline: str
    baseline_reference: str
    dataset: str
    dataset_reference: str
    split: str
    evidence: Mapping[str, Any]
    job: str
    created: datetime

    @property
    def dataset_name(self) -> str:
        """The dataset's name, whichever version of it."""
        return self.dataset_reference.partition("@")[0]

    @property
    def dataset_number(self) -> int:
        """The dataset's version; 0 for an artefact that is none."""
        number = self.dataset_reference.partition("@")[2]
        return int(number) if number.isdecimal() else 0

    def to_json(self) -> dict[str, Any]:
        """{'candidate', 'baseline', 'baseline_reference', 'dataset', 'dataset_reference', 'split', 'evidence', 'job',
        'created'}."""
        names = ("candidate", "baseline", "baseline_reference", "dataset", "dataset_reference", "split", "job")
        shown = {name: getattr(self, name) for name in names}
        return {**shown, "evidence": dict(self.evidence), "created": self.created.isoformat()}


def record(session: Session, project: str, job: str, said: Any, inputs: Mapping[str, Parent], output: str) -> None:
    """Record what a job's output said of itself: {'baseline', 'dataset': roles of the job's inputs, 'candidate': another, or
    absent for the output itself, 'split', 'evidence'}. Hashes and references are those of `inputs`, as they were pinned at
    submission, and of `output`, the artefact: a job can speak of nothing else. Raises `Invalid` where it says it otherwise."""
    body = said if isinstance(said, Mapping) else {}
    baseline, dataset = (_input(inputs, body.get(role), role) for role in ("baseline", "dataset"))
    if dataset.kind == "model":  # its name and number could be taken for a dataset's
        raise Invalid(f"An evaluation is on a dataset; the role '{dataset.role}' is the model {dataset.reference}.")
    candidate = _input(inputs, body["candidate"], "candidate").artefact if "candidate" in body else output
    row = EvaluationRow(
        project=project,
        candidate=candidate,
        baseline=baseline.artefact,
        baseline_reference=baseline.reference,
        dataset=dataset.artefact,
        dataset_reference=dataset.reference,
        split=str(body.get("split"))[:100],
        evidence=_checked(body.get("evidence")),
        job=job,
        created=now(),
    )
    session.add(row)
    session.flush()


def evaluations(session: Session, project: str, candidate: str, baseline: str | None = None) -> list[Evaluation]:
    """Those of an artefact, newest first; against one other where it is given."""
    query = select(EvaluationRow).where(EvaluationRow.project == project, EvaluationRow.candidate == candidate)
    if baseline is not None:
        query = query.where(EvaluationRow.baseline == baseline)
    return [_evaluation(row) for row in session.scalars(query.order_by(EvaluationRow.id.desc()))]


def _input(inputs: Mapping[str, Parent], role: Any, what: str) -> Parent:
    if not isinstance(role, str) or role not in inputs:
        there = ", ".join(f"'{name}'" for name in inputs) or "none"
        raise Invalid(f"An evaluation names the role of its {what}, not {str(role)[:40]!r}; the job's inputs are {there}.")
    return inputs[role]


def _checked(evidence: Any) -> dict[str, Any]:
    try:
        text = json.dumps(evidence, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Invalid(f"The evidence of an evaluation is not JSON (NaN and infinity are not): {error}.") from error
    if not isinstance(evidence, Mapping) or len(text) > _LARGEST:
        raise Invalid(
            f"The evidence of an evaluation is an object of at most {_LARGEST:,} bytes as JSON, not of {len(text):,}."
        )
    return dict(evidence)


def _evaluation(row: EvaluationRow) -> Evaluation:
    said = (row.candidate, row.baseline, row.baseline_reference, row.dataset, row.dataset_reference)
    return Evaluation(*said, row.split, row.evidence, row.job, row.created)
