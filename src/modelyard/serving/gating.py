"""The gate as verbs: which policies a version is held against, what is known of it, and who may pass all the same.

`service` and `releases` ask before a release is written, in the transaction that writes it. What is good enough is decided by
`optimisation.gate`, a pure function; here the policies and the evaluations are looked up, and rights are checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modelyard.catalogue import service as catalogue
from modelyard.catalogue.evaluations import Evaluation, evaluations
from modelyard.catalogue.types import Version
from modelyard.db import Session
from modelyard.errors import Conflict, Forbidden, Invalid, NotFound, not_found
from modelyard.optimisation.evidence import Evidence
from modelyard.optimisation.gate import Decision, GatePolicy, counts, decide, loosened
from modelyard.serving.tables import DeploymentRow, ReleaseRow
from modelyard.tenancy import service as tenancy
from modelyard.tenancy.ledger import audit
from modelyard.tenancy.types import DEFAULT_PROJECT, Principal, Scope

Asked = GatePolicy | Literal["off"]
_ARTEFACT = "artefact:"


@dataclass(frozen=True, slots=True)
class Held:
    """A version held against one policy, `by` a deployment or its project, on one evaluation (None: there is none)."""

    by: str
    policy: GatePolicy
    baseline: str
    evaluation: Evaluation | None
    decision: Decision

    def to_json(self) -> dict[str, Any]:
        found = self.evaluation
        on = {"dataset": found.dataset_reference, "job": found.job} if found else {"dataset": self.policy.dataset, "job": None}
        policy = self.policy.model_dump(mode="json", exclude_defaults=True)
        return {"by": self.by, "policy": policy, "baseline": self.baseline, **on, **self.decision.to_json()}


def admit(
    session: Session,
    caller: Principal,
    row: DeploymentRow,
    version: Version,
    gate: Asked | None = None,
    override: str | None = None,
) -> dict[str, Any] | None:
    """Let a version through to a deployment, whose gate becomes `gate` where that is given; what was decided, as the release
    keeps it (None where no gate applies). What the deployment serves already is not asked again, unless its gate changes.

    Raises `Conflict` with figures where it is refused, `Forbidden` for who may not loosen a gate or override one."""
    stable = session.get(ReleaseRow, (row.id, row.stable)) if row.id is not None else None
    changed = gate is not None and _set(session, caller, row, gate, version, stable)
    if stable is not None and stable.artefact == version.artefact and not changed:
        return stable.decision
    held = [*judged(session, version, policy_of(row), "deployment"), *_by_project(session, version)]
    refused = [one for one in held if not one.decision.allowed]
    if not held:
        return None
    said: dict[str, Any] = {"allowed": not refused, "held": [one.to_json() for one in held], "override": None}
    if not refused:
        return said
    if override is None:
        raise Conflict(_refusal(row.name, version, refused))
    said["override"] = _overridden(session, caller, override)
    detail = {"model": version.reference, **said["override"], "held": [one.to_json() for one in refused]}
    audit(session, caller.project, caller.key, "gate.override", row.name, detail)
    return said


def policy_of(row: DeploymentRow) -> GatePolicy | None:
    return None if row.gate is None else GatePolicy.model_validate(row.gate)


def check_end(caller: Principal, row: DeploymentRow) -> None:
    """Raises `Forbidden` where a deployment's gate would end with it, for who may not lift that."""
    if row.gate is not None and caller.scope < Scope.admin:
        raise Forbidden(
            f"The gate of deployment '{row.name}' ({_shown(policy_of(row))}) would end with it, and a new one of that name "
            "would have none: an admin key may end it."
        )


def judged(session: Session, version: Version, policy: GatePolicy | None, by: str) -> Iterator[Held]:
    """A version held against a policy with a baseline: on every dataset that counts, since one on which it does well says
    nothing of another; nothing for the baseline itself."""
    if policy is None or policy.baseline is None:
        return
    try:
        artefact = _artefact(session, version.project, policy.baseline)
    except NotFound as error:
        yield Held(by, policy, policy.baseline, None, Decision(False, (f"Its baseline is gone: {error.message}",)))
        return
    if artefact == version.artefact:
        return
    found = [one for one in evaluations(session, version.project, version.artefact, artefact) if _counts(policy, one)]
    if not (counting := list(_counting(found, policy.dataset))):
        yield Held(by, policy, policy.baseline, None, decide(policy, None))
    for several in counting:
        for evaluation, decision in _decisions(policy, several):
            yield Held(by, policy, policy.baseline, evaluation, decision)


def set_project_gate(session: Session, caller: Principal, name: str, policy: GatePolicy | None) -> GatePolicy | None:
    """Hold every variant of a project against the version that it was made from; None: no longer. Raises `Invalid` for a policy
    with a baseline, since each variant has its own, and `NotFound` for a project that is not the caller's."""
    if policy is not None and policy.baseline is not None:
        raise Invalid("A project's gate holds each variant against the version it was made from: leave the baseline out.")
    check_project(session, caller, name)
    if policy is not None:
        policy = _with_dataset(session, name, policy)
    said = policy.model_dump(mode="json") if policy else None
    tenancy.set_project_gate(session, caller.project, name, said)
    audit(session, name, caller.key if caller.project == name else None, "project.gate", name, {"gate": said})
    if caller.project != name:
        audit(session, caller.project, caller.key, "project.gate", name, {"gate": said})
    return policy


def check_project(session: Session, caller: Principal, name: str) -> None:
    """Raises `NotFound` for another project than the caller's own, but to admins of 'default', and for one that is none."""
    every = caller.project == DEFAULT_PROJECT and caller.scope >= Scope.admin
    there = [str(project["name"]) for project in tenancy.projects(session)] if every else [caller.project]
    if name not in there:
        raise not_found("project", name, there)


def project_gate(session: Session, project: str) -> GatePolicy | None:
    said = tenancy.project_gate(session, project)
    return None if said is None else GatePolicy.model_validate(said)


def _by_project(session: Session, version: Version) -> Iterator[Held]:
    """The project's policy, of which each variant's original is the baseline."""
    policy, original = project_gate(session, version.project), version.metadata.get("original")
    if policy is not None and isinstance(original, str):
        yield from judged(session, version, policy.model_copy(update={"baseline": original}), "project")


def _set(
    session: Session, caller: Principal, row: DeploymentRow, asked: Asked, version: Version, stable: ReleaseRow | None
) -> bool:
    """Change a deployment's gate; whether it is another now. What is not said anew stays; whoever may write may tighten it,
    loosening is for admins."""
    present = policy_of(row)
    wanted = None
    if isinstance(asked, GatePolicy):
        kept = present.model_dump() if present else {}
        merged = GatePolicy.model_validate({**kept, **asked.model_dump(exclude_unset=True)})
        wanted = _pinned(session, caller.project, merged, version, stable)
    looser = loosened(present, wanted)
    if looser and caller.scope < Scope.admin:
        raise Forbidden(
            f"That would loosen the gate of deployment '{row.name}' ({', '.join(looser)}), which is "
            f"{_shown(present)}: whoever may write may tighten it, an admin key may loosen it."
        )
    if wanted == present:
        return False
    row.gate = wanted.model_dump(mode="json") if wanted else None
    audit(session, caller.project, caller.key, "deployment.gate", row.name, {"gate": row.gate, "loosened": list(looser)})
    return True


def _pinned(session: Session, project: str, policy: GatePolicy, version: Version, stable: ReleaseRow | None) -> GatePolicy:
    """With the version that all others will be held against: the one that is named, else the one that this one was made from,
    else what the deployment serves, else this one."""
    original = version.metadata.get("original")
    serves = stable.reference if stable is not None else version.reference
    baseline = policy.baseline or (original if isinstance(original, str) else serves)
    if not baseline.startswith(_ARTEFACT):
        baseline = catalogue.resolve(session, project, "model", baseline).reference
    return _with_dataset(session, project, policy.model_copy(update={"baseline": baseline}))


def _with_dataset(session: Session, project: str, policy: GatePolicy) -> GatePolicy:
    """With a dataset that exists; one version of it, where one is named."""
    if policy.dataset is None:
        return policy
    found = catalogue.resolve(session, project, "dataset", policy.dataset)
    return policy.model_copy(update={"dataset": found.reference if "@" in policy.dataset else found.name})


def _artefact(session: Session, project: str, reference: str) -> str:
    if reference.startswith(_ARTEFACT):
        return reference.removeprefix(_ARTEFACT)
    return catalogue.resolve(session, project, "model", reference).artefact


def _counts(policy: GatePolicy, evaluation: Evaluation) -> bool:
    """Whether it is of the metric that the policy judges by. What is no evidence counts: it refuses."""
    try:
        return counts(policy, Evidence.from_json(evaluation.evidence))
    except Invalid:
        return True


def _counting(found: list[Evaluation], dataset: str | None) -> Iterator[list[Evaluation]]:
    """The evaluations that count, by dataset: those on its newest version that there are any on; of the dataset that is asked
    for alone, where one is."""
    by_name: dict[str, list[Evaluation]] = {}
    for one in found:
        if dataset is None or dataset in (one.dataset_name, one.dataset_reference):
            by_name.setdefault(one.dataset_name, []).append(one)
    for several in by_name.values():
        newest = max(several, key=lambda one: one.dataset_number)
        yield [one for one in several if one.dataset == newest.dataset]


def _decisions(policy: GatePolicy, several: list[Evaluation]) -> Iterator[tuple[Evaluation, Decision]]:
    """On the same rows a later evaluation undoes no earlier one, whatever it left out: each must allow. One that does not
    say all that is asked for is made good by another that does, but for what it found."""
    unlike = [one for at, one in enumerate(several) if one.evidence not in [other.evidence for other in several[:at]]]
    decided = [(one, _decision(policy, one)) for one in unlike]
    whole = [pair for pair in decided if pair[1].complete]
    failed = [pair for pair in decided if not pair[1].complete and not all(check.met for check in pair[1].checks)]
    yield from [*whole, *failed] if whole else decided[:1]


def _decision(policy: GatePolicy, evaluation: Evaluation) -> Decision:
    try:
        return decide(policy, Evidence.from_json(evaluation.evidence))
    except Invalid as error:
        return Decision(False, (error.message,))


def _overridden(session: Session, caller: Principal, reason: str) -> dict[str, str]:
    """Who overrides, by name. Raises `Forbidden` for any but an admin key that has one."""
    name = tenancy.key_name(session, caller.project, caller.key)
    if caller.scope < Scope.admin or not name:
        raise Forbidden(
            "The gate refuses this; only an admin key that has a name may override it, so that it is known who did."
        )
    return {"key_name": name, "reason": reason}


def _refusal(deployment: str, version: Version, refused: list[Held]) -> str:
    parts = [f"{_one(version, held)} {' '.join(held.decision.reasons)}" for held in refused]
    return (
        f"The gate does not let {version.reference} through to '{deployment}'. {' '.join(parts)} "
        f"{_remedy(version, refused[0])} An admin key that has a name may pass it all the same, audited: --override REASON."
    )


def _remedy(version: Version, held: Held) -> str:
    """The command that evaluates; perplexity is found by the job alone that makes a version."""
    found, policy = held.evaluation, held.policy
    dataset = found.dataset_reference if found else policy.dataset or "DATASET"
    metric = policy.metric or (found.evidence.get("metric") if found else None)
    if metric == "perplexity":
        command = f"modelyard optimize {held.baseline} --on {dataset} --max-accuracy-drop {policy.max_accuracy_drop:g}"
        return f"Make it anew, by the same steps (--with): `{command}`."
    command = f"modelyard evaluate {version.reference} --against {held.baseline} --on {dataset}"
    return f"Evaluate it: `{command}{f' --metric {policy.metric}' if policy.metric else ''}`."


def _one(version: Version, held: Held) -> str:
    on = f", evaluated on {held.evaluation.dataset_reference}" if held.evaluation else ""
    return f"Held by the {held.by} against {held.baseline}{on}:"


def _shown(policy: GatePolicy | None) -> str:
    said: Mapping[str, Any] = policy.model_dump(mode="json", exclude_defaults=True) if policy else {}
    return ", ".join(f"{name} {value}" for name, value in said.items())
