"""The gate over a database: which policies a version is held against, on what, and who may change them or pass them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modelyard.catalogue import service as catalogue
from modelyard.catalogue.evaluations import record
from modelyard.catalogue.tables import ArtefactRow
from modelyard.catalogue.types import Parent, Version
from modelyard.db import Base, Database, now
from modelyard.engines.base import ModelCard
from modelyard.errors import Conflict, Forbidden, Invalid, NotFound
from modelyard.optimisation.evidence import Evidence, Paired, Resampled
from modelyard.optimisation.gate import GatePolicy
from modelyard.serving import gating, releases, service
from modelyard.serving.tables import ReleaseRow
from modelyard.serving.types import DeploymentRequest
from modelyard.tenancy import ledger
from modelyard.tenancy import service as tenancy
from modelyard.tenancy.types import Principal, Scope

TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
CARD = msgspec.convert(
    {
        "task": "image-classification",
        "engines": ["onnx", "torch"],
        "files": {"onnx": "m.onnx"},
        "inputs": [TENSOR],
        "outputs": [TENSOR],
    },
    type=ModelCard,
)
GOOD, BAD, FEW = Paired(1950, 2, 1, 47), Paired(1800, 150, 0, 50), Paired(95, 0, 0, 5)
GATE = {"max_accuracy_drop": 1.0}


class Room:
    """A project 'team' whose model m has an original, m@1, and variants of it; keys of each scope, one admin's without name."""

    def __init__(self, folder: Path) -> None:
        self.db = Database(f"sqlite:///{folder / 'yard.db'}")
        Base.metadata.create_all(self.db.engine)
        with self.db.begin() as session:
            for project in ("default", "team", "other"):
                tenancy.create_project(session, project)
            keys = {"write": (Scope.write, "ci"), "admin": (Scope.admin, "ada"), "nameless": (Scope.admin, None)}
            made = {who: tenancy.create_key(session, "team", scope, b"p", name) for who, (scope, name) in keys.items()}
            root = tenancy.create_key(session, "default", Scope.admin, b"p", "root")
            other = tenancy.create_key(session, "other", Scope.admin, b"p", "eve")
        self.keys = {who: Principal("team", key.id, key.scope) for who, key in made.items()}
        self.keys["root"] = Principal("default", root.id, Scope.admin)
        self.keys["other"] = Principal("other", other.id, Scope.admin)
        self.version("m")
        for name in ("digits", "clothes"):
            self.version(name, kind="dataset")

    def version(self, name: str = "m", kind: str = "model", **metadata: Any) -> Version:
        with self.db.begin() as session:
            digest = f"{kind}-{name}-{session.query(ArtefactRow).count()}"
            session.add(ArtefactRow(project="team", hash=digest, size=1, files=1, created=now()))
            session.flush()
            return catalogue.register(session, "team", kind=kind, name=name, artefact=digest, metadata=metadata)  # type: ignore[arg-type]

    def variant(self, found: Paired | None = None, on: str = "digits@1") -> Version:
        """A variant of m@1, evaluated if `found` is given."""
        made = self.version("m", variant="int8", original="m@1")
        if found is not None:
            self.evaluated(made.reference, found, on=on)
        return made

    def evaluated(self, reference: str, found: Paired, against: str = "m@1", on: str = "digits@1", **more: Any) -> None:
        scores = ((found.both + found.original) / found.rows, (found.both + found.variant) / found.rows)
        said = {"split": "report", "drop": found, "agreement": 1.0, "slices": {"label=a": found}, **more}
        evidence = Evidence("accuracy", original=scores[0], variant=scores[1], **said)
        with self.db.begin() as session:
            inputs = {}
            for role, kind, name in (("model", "model", reference), ("original", "model", against), ("dataset", "dataset", on)):
                inputs[role] = Parent.of(role, catalogue.resolve(session, "team", kind, name))  # type: ignore[arg-type]
            roles = {"candidate": "model", "baseline": "original", "dataset": "dataset", "split": "report"}
            record(session, "team", "job1", {**roles, "evidence": evidence.to_json()}, inputs, "none")

    def deploy(self, reference: str, who: str = "write", **asked: Any) -> service.Deployment:
        with self.db.begin() as session:
            version = catalogue.resolve(session, "team", "model", reference)
            request = DeploymentRequest.model_validate({"name": "d", "model": reference, **asked})
            return service.deploy(session, self.keys[who], request, version, CARD)

    def project_gate(self, policy: dict[str, Any] | None, who: str = "admin", project: str = "team") -> GatePolicy | None:
        with self.db.begin() as session:
            wanted = None if policy is None else GatePolicy.model_validate(policy)
            return gating.set_project_gate(session, self.keys[who], project, wanted)

    def promote(self, who: str = "write", override: str | None = None) -> service.Deployment:
        with self.db.begin() as session:
            releases.promote(session, self.keys[who], "d", override)
            return service.get(session, "team", "d")

    def undeploy(self, who: str) -> None:
        with self.db.begin() as session:
            service.undeploy(session, self.keys[who], "d")

    def shown(self) -> service.Deployment:
        with self.db.read() as session:
            return service.get(session, "team", "d")

    def audited(self, action: str) -> list[dict[str, Any]]:
        with self.db.read() as session:
            return [entry for entry in ledger.audit_log(session, "team") if entry["action"] == action]

    def gone(self, kind: Any, reference: str) -> None:
        with self.db.begin() as session:
            catalogue.delete_version(session, "team", kind, reference, service.in_use)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    made = Room(tmp_path)
    yield made
    made.db.close()


# What a project asks of its variants


def test_without_a_gate_nothing_is_asked(room: Room) -> None:
    room.variant()
    shown = room.deploy("m@2")
    assert (shown.model, shown.gate, shown.decision) == ("m@2", None, None)


def test_a_variant_without_an_evaluation_is_refused_with_the_command_that_makes_one(room: Room) -> None:
    room.project_gate(GATE)
    room.variant()
    with pytest.raises(Conflict) as refused:
        room.deploy("m@2")
    assert refused.value.message == (
        "The gate does not let m@2 through to 'd'. Held by the project against m@1: It was not evaluated. Evaluate it: "
        "`modelyard evaluate m@2 --against m@1 --on DATASET`. "
        "An admin key that has a name may pass it all the same, audited: --override REASON."
    )
    with pytest.raises(NotFound):
        room.shown()


def test_a_perplexity_is_found_where_a_version_is_made(room: Room) -> None:
    room.project_gate({**GATE, "metric": "perplexity"})
    made = room.variant()
    with pytest.raises(Conflict, match=r"`modelyard optimize m@1 --on DATASET --max-accuracy-drop 1`\.") as refused:
        room.deploy("m@2")
    assert "modelyard evaluate" not in refused.value.message
    room.project_gate(GATE)
    with room.db.begin() as session:
        named = (("original", "model", "m@1"), ("dataset", "dataset", "digits@1"))
        parents = {role: Parent.of(role, catalogue.resolve(session, "team", kind, name)) for role, kind, name in named}  # type: ignore[arg-type]
        evidence = Evidence("perplexity", "report", 10.0, 10.3, Resampled(400, 3.0, (3.0,) * 201), 0.9, left_out=2)
        said = {"baseline": "original", "dataset": "dataset", "split": "report", "evidence": evidence.to_json()}
        record(session, "team", "job1", said, parents, made.artefact)
    with pytest.raises(Conflict, match=r"all independent blocks.*`modelyard optimize m@1 --on digits@1 --max-accuracy-drop 1`"):
        room.deploy("m@2")


def test_a_variant_outside_the_budget_is_refused_with_the_figures(room: Room) -> None:
    room.project_gate(GATE)
    room.variant(BAD)
    with pytest.raises(Conflict, match=r"against m@1, evaluated on digits@1: It loses 7\.50 points of all rows \(2,000\)"):
        room.deploy("m@2")


def test_too_few_rows_are_refused_with_how_many_would_do(room: Room) -> None:
    room.project_gate(GATE)
    room.variant(FEW)
    with pytest.raises(Conflict, match=r"About 3\d\d rows of the report split would settle it"):
        room.deploy("m@2")


def test_a_variant_within_the_budget_passes_and_its_release_says_why(room: Room) -> None:
    room.project_gate({**GATE, "max_slice_drop": 2})
    room.variant(GOOD)
    decision = room.deploy("m@2").decision
    assert decision is not None
    [held] = decision["held"]
    assert (decision["allowed"], decision["override"]) == (True, None)
    assert (held["by"], held["baseline"], held["dataset"], held["job"]) == ("project", "m@1", "digits@1", "job1")
    [check] = held["checks"]
    assert (check["what"], check["rows"], check["seen"], check["met"]) == ("all rows", 2000, 0.05, True)


def test_a_project_asks_nothing_of_what_is_no_variant(room: Room) -> None:
    room.project_gate(GATE)
    assert room.deploy("m@1").decision is None


def test_evaluations_are_of_artefacts_not_of_names(room: Room) -> None:
    room.project_gate(GATE)
    room.variant(GOOD)
    room.variant()  # m@3: another artefact of the same name
    with pytest.raises(Conflict, match="It was not evaluated"):
        room.deploy("m@3")
    room.version("m")  # m@4
    room.evaluated("m@3", GOOD, against="m@4")
    with pytest.raises(Conflict, match="It was not evaluated"):  # against another than what it was made from
        room.deploy("m@3")


def test_on_the_same_rows_a_later_evaluation_undoes_nothing(room: Room) -> None:
    room.project_gate(GATE)
    room.variant(BAD)
    room.evaluated("m@2", GOOD)
    with pytest.raises(Conflict, match="evaluated on digits@1"):
        room.deploy("m@2")
    room.version("digits", kind="dataset")
    room.evaluated("m@2", GOOD, on="digits@2")
    assert room.deploy("m@2").decision is not None


def test_what_one_evaluation_leaves_out_another_may_say_on_the_same_rows(room: Room) -> None:
    room.project_gate({**GATE, "slices": ["light"]})
    room.variant(GOOD)
    with pytest.raises(Conflict, match="It was not evaluated by 'light'"):
        room.deploy("m@2")
    room.evaluated("m@2", GOOD, columns=("light",))
    assert room.deploy("m@2").decision is not None
    room.variant(BAD)
    room.evaluated("m@3", GOOD, columns=("light",))
    with pytest.raises(Conflict, match="The gate does not let m@3 through"):
        room.deploy("m@3")


def test_on_each_dataset_the_newest_version_counts_and_all_of_them_must_allow(room: Room) -> None:
    room.project_gate(GATE)
    room.variant(GOOD)
    room.deploy("m@2")
    room.variant(GOOD)
    room.evaluated("m@3", BAD, on="clothes@1")
    with pytest.raises(Conflict, match="evaluated on clothes@1"):
        room.deploy("m@3")
    room.version("clothes", kind="dataset")
    room.evaluated("m@3", GOOD, on="clothes@2")  # more rows of the same name settle it
    decision = room.deploy("m@3").decision
    assert decision is not None
    assert {held["dataset"] for held in decision["held"]} == {"digits@1", "clothes@2"}


def test_a_policy_may_name_the_dataset(room: Room) -> None:
    room.project_gate({**GATE, "dataset": "clothes"})
    room.variant(GOOD)
    with pytest.raises(Conflict, match=r"evaluated\. Evaluate it: `modelyard evaluate m@2 --against m@1 --on clothes`"):
        room.deploy("m@2")
    room.evaluated("m@2", GOOD, on="clothes@1")
    assert room.deploy("m@2").decision is not None
    room.version("clothes", kind="dataset")
    room.project_gate({**GATE, "dataset": "clothes@2"})
    room.variant(GOOD, on="clothes@1")
    with pytest.raises(Conflict, match="--on clothes@2"):
        room.deploy("m@3")
    with pytest.raises(NotFound, match="No dataset 'digts'"):
        room.project_gate({**GATE, "dataset": "digts"})


def test_an_original_that_is_gone_proves_nothing(room: Room) -> None:
    room.project_gate(GATE)
    room.variant(GOOD)
    room.gone("model", "m@1")
    with pytest.raises(Conflict, match="Its baseline is gone: No version of model 'm' '1'"):
        room.deploy("m@2")


def test_evidence_that_is_none_is_no_evidence(room: Room) -> None:
    room.project_gate(GATE)
    made = room.variant()
    with room.db.begin() as session:
        parents = {
            role: Parent.of(role, catalogue.resolve(session, "team", kind, name))
            for role, kind, name in (  # type: ignore[arg-type]
                ("original", "model", "m@1"),
                ("dataset", "dataset", "digits@1"),
            )
        }
        said = {"baseline": "original", "dataset": "dataset", "split": "report", "evidence": {"allowed": True}}
        record(session, "team", "job1", said, parents, made.artefact)
    with pytest.raises(Conflict, match="The evaluation is no evidence"):
        room.deploy("m@2")


def test_what_serves_already_is_not_asked_again_but_anything_else_is(room: Room) -> None:
    room.variant()
    room.deploy("m@2")
    room.project_gate(GATE)
    assert room.deploy("m@2", replicas=3).options.max_replicas == 3
    assert room.deploy("m@2", threads=2).decision is None
    room.project_gate(None)
    room.evaluated("m@2", BAD)
    room.deploy("m@2", gate={"max_accuracy_drop": 100})
    room.project_gate(GATE)
    assert room.deploy("m@2", gate={"max_accuracy_drop": 100}, replicas=2).options.max_replicas == 2
    with pytest.raises(Conflict, match="The gate does not let m@2 through"):
        room.deploy("m@2", gate={"max_accuracy_drop": 99})
    room.variant()
    for trial in ({}, {"canary": 10}, {"shadow": 10}):
        with pytest.raises(Conflict, match="The gate does not let m@3 through"):
            room.deploy("m@3", **trial)


def test_promotion_is_asked_anew(room: Room) -> None:
    room.deploy("m@1")
    room.variant()
    room.deploy("m@2", canary=10)
    room.project_gate(GATE)
    with pytest.raises(Conflict, match="The gate does not let m@2 through to 'd'"):
        room.promote()
    room.evaluated("m@2", GOOD)
    shown = room.promote()
    assert shown.model == "m@2"
    assert shown.decision is not None


def test_what_served_before_is_gone_back_to_unasked(room: Room) -> None:
    room.variant()
    room.deploy("m@2")
    with room.db.begin() as session:
        session.query(ReleaseRow).update({"signature": {"inputs": []}, "settled": True})  # it has served
    room.deploy("m@1")
    room.project_gate(GATE)
    with pytest.raises(Conflict, match="The gate does not let m@2 through"):
        room.deploy("m@2")
    with room.db.begin() as session:
        releases.roll_back(session, room.keys["write"], "d")
    assert room.shown().model == "m@2"


# What a deployment asks


def test_a_deployments_gate_pins_what_it_serves_and_stays(room: Room) -> None:
    room.deploy("m@1")
    room.version("other")
    with pytest.raises(Conflict, match="Held by the deployment against m@1: It was not evaluated"):
        room.deploy("other@1", gate=GATE)  # that sets the gate, and is the first to be held by it
    assert room.shown().gate is None
    shown = room.deploy("m@1", gate=GATE)
    assert shown.gate is not None
    assert (shown.gate["max_accuracy_drop"], shown.gate["baseline"]) == (1.0, "m@1")
    with pytest.raises(Conflict, match="against m@1: It was not evaluated"):
        room.deploy("other@1")
    room.evaluated("other@1", GOOD)
    decision = room.deploy("other@1").decision
    assert decision is not None
    assert [held["by"] for held in decision["held"]] == ["deployment"]
    assert room.deploy("m@1").decision is None  # the baseline itself


def test_the_baseline_is_the_one_named_else_the_original_else_the_version(room: Room) -> None:
    room.variant(GOOD)
    gate = room.deploy("m@2", gate=GATE).gate
    assert gate is not None
    assert gate["baseline"] == "m@1"
    room.version("other")
    gate = room.deploy("other@1", name="e", gate=GATE).gate
    assert gate is not None
    assert gate["baseline"] == "other@1"
    with pytest.raises(Conflict, match="Held by the deployment against m@1"):
        room.deploy("other@1", name="f", gate={**GATE, "baseline": "m@1"})
    with pytest.raises(NotFound, match="No model 'n'"):
        room.deploy("other@1", name="f", gate={**GATE, "baseline": "n"})


def test_both_gates_must_allow(room: Room) -> None:
    room.deploy("m@1", gate={"max_accuracy_drop": 10})
    room.project_gate({"max_accuracy_drop": 0.01})
    room.variant(GOOD)
    with pytest.raises(Conflict, match="Held by the project") as refused:
        room.deploy("m@2")
    assert "Held by the deployment" not in refused.value.message
    room.project_gate(GATE)
    decision = room.deploy("m@2").decision
    assert decision is not None
    assert [held["by"] for held in decision["held"]] == ["deployment", "project"]


def test_who_writes_may_tighten_a_gate_and_only_admins_loosen_it(room: Room) -> None:
    room.deploy("m@1", gate=GATE)
    gate = room.deploy("m@1", gate={"max_accuracy_drop": 0.5, "max_slice_drop": 2}).gate
    assert gate is not None
    assert (gate["max_accuracy_drop"], gate["max_slice_drop"], gate["baseline"]) == (0.5, 2.0, "m@1")
    for looser in ({"max_accuracy_drop": 0.6}, {"max_accuracy_drop": 0.5, "confidence": 0.9}):
        with pytest.raises(Forbidden, match="would loosen the gate of deployment 'd'"):
            room.deploy("m@1", gate=looser)
    with pytest.raises(Forbidden, match="max_slice_drop"):
        room.deploy("m@1", gate={"max_accuracy_drop": 0.5, "max_slice_drop": None})
    room.version("m")
    with pytest.raises(Forbidden, match="baseline"):
        room.deploy("m@1", gate={"max_accuracy_drop": 0.5, "baseline": "m@2"})
    with pytest.raises(Forbidden, match="the gate"):
        room.deploy("m@1", lift_gate=True)
    gate = room.deploy("m@1", gate={"max_accuracy_drop": 0.4}).gate
    assert gate is not None
    assert gate["max_slice_drop"] == 2.0  # what is not said anew stays
    assert room.deploy("m@1", "admin", lift_gate=True).gate is None
    assert [entry["detail"]["loosened"] for entry in room.audited("deployment.gate")] == [[], [], [], ["the gate"]]
    with pytest.raises(Invalid, match="either set or lifted"):
        room.deploy("m@1", "admin", gate=GATE, lift_gate=True)


def test_a_gate_is_not_got_rid_of_by_ending_its_deployment(room: Room) -> None:
    room.deploy("m@1", gate=GATE)
    with pytest.raises(Forbidden, match="would end with it"):
        room.undeploy("write")
    assert room.shown().gate is not None
    room.undeploy("admin")
    room.deploy("m@1")
    room.undeploy("write")  # one without a gate


def test_what_a_gate_rests_on_cannot_be_deleted(room: Room) -> None:
    room.variant(GOOD)
    room.deploy("m@2", gate={**GATE, "dataset": "digits@1"})
    for kind, reference in (("model", "m@1"), ("dataset", "digits@1")):
        with pytest.raises(Conflict, match="the gate of deployment 'd'"):
            room.gone(kind, reference)
    room.gone("dataset", "clothes@1")


# Who may pass all the same, and who may set a project's gate


def test_only_a_named_admin_overrides_and_it_is_written_down(room: Room) -> None:
    room.project_gate(GATE)
    room.variant(BAD)
    for who in ("write", "nameless"):
        with pytest.raises(Forbidden, match="only an admin key that has a name may override it"):
            room.deploy("m@2", who, override="a demo for one hour")
    assert room.audited("gate.override") == []
    decision = room.deploy("m@2", "admin", override="a demo for one hour").decision
    assert decision is not None
    assert (decision["allowed"], decision["override"]) == (False, {"key_name": "ada", "reason": "a demo for one hour"})
    [entry] = room.audited("gate.override")
    assert (entry["key"], entry["subject"]) == (room.keys["admin"].key, "d")
    assert (entry["detail"]["model"], entry["detail"]["reason"]) == ("m@2", "a demo for one hour")
    assert entry["detail"]["held"][0]["reasons"][0].startswith("It loses 7.50 points of all rows")


def test_an_override_of_a_trial_is_none_of_its_promotion(room: Room) -> None:
    room.deploy("m@1")
    room.project_gate(GATE)
    room.variant(BAD)
    shown = room.deploy("m@2", "admin", canary=10, override="to see how it fares")
    assert shown.trial is not None
    assert shown.trial.decision is not None
    with pytest.raises(Conflict, match="The gate does not let m@2 through"):
        room.promote("admin")
    assert room.promote("admin", "it fared well").model == "m@2"
    assert [entry["detail"]["reason"] for entry in room.audited("gate.override")] == ["to see how it fares", "it fared well"]


def test_an_override_that_is_not_needed_is_none(room: Room) -> None:
    room.project_gate(GATE)
    room.variant(GOOD)
    decision = room.deploy("m@2", override="who knows").decision
    assert decision is not None
    assert decision["override"] is None
    assert room.audited("gate.override") == []


@pytest.mark.parametrize("reason", ["", "  ", "no"])
def test_an_override_has_a_reason(reason: str) -> None:
    with pytest.raises(ValueError, match="override"):
        DeploymentRequest.model_validate({"name": "d", "model": "m@1", "override": reason})


def test_a_projects_gate_is_its_administrators_and_the_platforms(room: Room) -> None:
    assert room.project_gate(GATE, "root") == GatePolicy(max_accuracy_drop=1.0)
    with pytest.raises(NotFound, match="No project 'team'"):
        room.project_gate(None, "other")
    with room.db.read() as session:
        assert gating.project_gate(session, "team") == GatePolicy(max_accuracy_drop=1.0)
        assert gating.project_gate(session, "other") is None
        for who in ("write", "root"):
            gating.check_project(session, room.keys[who], "team")
        with pytest.raises(NotFound):
            gating.check_project(session, room.keys["other"], "team")
    with pytest.raises(Invalid, match="leave the baseline out"):
        room.project_gate({**GATE, "baseline": "m@1"})
    assert room.project_gate(None) is None
    assert [(entry["key"], entry["detail"]["gate"] is None) for entry in room.audited("project.gate")] == [
        ("", False),
        (room.keys["admin"].key, True),
    ]


def test_another_projects_gate_is_for_admins_of_default_alone(room: Room) -> None:
    def shown(who: Principal, project: str) -> None:
        with room.db.read() as session:
            gating.check_project(session, who, project)

    root = room.keys["root"]
    for project in ("team", "other", "default"):
        shown(root, project)
    with pytest.raises(NotFound, match="No project 'tema'"):
        shown(root, "tema")
    shown(room.keys["write"], "team")
    writer = Principal("default", root.key, Scope.write)
    shown(writer, "default")
    for who, project in ((writer, "team"), (room.keys["other"], "team"), (room.keys["admin"], "default")):
        with pytest.raises(NotFound):
            shown(who, project)


def test_a_gate_set_from_default_names_a_dataset_that_is_there(room: Room) -> None:
    with pytest.raises(NotFound, match="No dataset 'digts'"):
        room.project_gate({**GATE, "dataset": "digts"}, who="root")
    found = room.project_gate({**GATE, "dataset": "digits@1"}, who="root")
    assert found is not None
    assert found.dataset == "digits@1"
