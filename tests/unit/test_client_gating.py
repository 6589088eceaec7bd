"""The SDK's verbs about evaluations and gates: what they ask for, and what a bare reference means to them."""

from __future__ import annotations

from typing import Any

import pytest
from test_client_yard import END, Wire, a_yard

from modelyard.errors import Invalid

VERSION = {"reference": "m@2", "name": "m", "version": 2, "metadata": {"original": "m@1"}, "artefact": "aa"}
LINEAGE = {
    "kind": "model",
    "reference": "m@2",
    "parents": [{"kind": "dataset", "reference": "digits@1", "parents": []}],
}
JOB = {
    "id": "j1",
    "state": "succeeded",
    "inputs": {"model": "model:m@2", "original": "model:m@1", "dataset": "dataset:digits@1"},
    "facts": {"0": {"rows": 10, "agreement": 1.0}},
}


class Api(Wire):
    """Also takes PUTs."""

    def put(self, path: str, body: Any = None) -> Any:
        self.posted.append((path, body))
        return body


def api(**more: Any) -> Api:
    at = "/api/models/m/versions/2"
    answers = {at: VERSION, f"{at}/lineage": LINEAGE, f"{at}/evaluations": [{"job": "j1"}], "/api/jobs": JOB}
    return Api({**answers, "/api/jobs/j1": JOB, **more}, [[END]])


def test_a_variant_is_held_against_what_it_was_made_from_on_its_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = api()
    found = a_yard(wire, monkeypatch).evaluate("m@2", slices=["light"], confidence=0.9)
    assert found == {"reference": "m@2", "against": "m@1", "dataset": "digits@1", "job": "j1", "rows": 10, "agreement": 1.0}
    [(path, asked)] = wire.posted
    assert path == "/api/jobs"
    assert asked["kind"] == "evaluate"
    assert asked["config"] == {"slices": ["light"], "confidence": 0.9}
    assert asked["inputs"] == {"model": "model:m@2", "original": "model:m@1", "dataset": "dataset:digits@1"}


def test_what_was_made_from_nothing_else_needs_another_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = api(**{"/api/models/m/versions/2": {**VERSION, "metadata": {}}})
    with pytest.raises(Invalid, match=r"m@2 was made from no other version.*--against"):
        a_yard(wire, monkeypatch).evaluate("m@2", on="digits")
    assert a_yard(wire, monkeypatch).evaluate("m@2", against="m@7", on="clothes@3", wait=False) == JOB
    assert wire.posted[-1][1]["inputs"] == {"model": "model:m@2", "original": "model:m@7", "dataset": "dataset:clothes@3"}


def test_what_rests_on_no_dataset_needs_one_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = api(**{"/api/models/m/versions/2/lineage": {**LINEAGE, "parents": []}})
    with pytest.raises(Invalid, match=r"Say which to measure on \(on=…, --on\)"):
        a_yard(wire, monkeypatch).evaluate("m@2")


def test_what_was_found_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    assert a_yard(api(), monkeypatch).evaluations("m@2") == [{"job": "j1"}]


def test_a_projects_gate_is_set_shown_and_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = api(**{"/api/projects/team/gate": {"gate": None}})
    client = a_yard(wire, monkeypatch)
    assert client.project_gate("team") is None
    assert client.set_project_gate("team", {"max_accuracy_drop": 1}) == {"max_accuracy_drop": 1}
    assert client.set_project_gate("team", None) is None
    assert wire.posted == [
        ("/api/projects/team/gate", {"gate": {"max_accuracy_drop": 1}}),
        ("/api/projects/team/gate", {"gate": None}),
    ]
