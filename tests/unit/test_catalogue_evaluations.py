"""What was found of a version is recorded by artefact, of the inputs that a job was given and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelyard.catalogue.evaluations import evaluations, record
from modelyard.catalogue.types import Parent
from modelyard.db import Base, Database
from modelyard.errors import Invalid

INPUTS = {
    "model": Parent("model", "model", "cnn", 2, "hash-of-2"),
    "original": Parent("original", "model", "cnn", 1, "hash-of-1"),
    "dataset": Parent("dataset", "dataset", "digits", 3, "hash-of-digits"),
}
SAID = {"candidate": "model", "baseline": "original", "dataset": "dataset", "split": "report", "evidence": {"rows": 10}}


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'books.db'}")
    Base.metadata.create_all(database.engine)
    yield database
    database.close()


def recorded(db: Database, said: Any, project: str = "p", job: str = "j1") -> None:
    with db.begin() as session:
        record(session, project, job, said, INPUTS, "hash-of-output")


def test_roles_become_the_hashes_and_references_of_the_jobs_inputs(db: Database) -> None:
    recorded(db, SAID)
    with db.read() as session:
        [found] = evaluations(session, "p", "hash-of-2")
    shown = found.to_json()
    assert shown.pop("created").endswith("+00:00")
    assert shown == {
        "candidate": "hash-of-2",
        "baseline": "hash-of-1",
        "baseline_reference": "cnn@1",
        "dataset": "hash-of-digits",
        "dataset_reference": "digits@3",
        "split": "report",
        "evidence": {"rows": 10},
        "job": "j1",
    }
    assert found.dataset_name == "digits"


def test_without_a_role_the_candidate_is_the_output_itself(db: Database) -> None:
    recorded(db, {name: said for name, said in SAID.items() if name != "candidate"})
    with db.read() as session:
        assert [found.candidate for found in evaluations(session, "p", "hash-of-output")] == ["hash-of-output"]
        assert evaluations(session, "p", "hash-of-2") == []


def test_the_newest_comes_first_and_other_pairs_and_projects_are_apart(db: Database) -> None:
    for number in range(3):
        recorded(db, {**SAID, "evidence": {"number": number}})
    recorded(db, {**SAID, "baseline": "dataset"})
    recorded(db, SAID, project="q")
    with db.read() as session:
        found = evaluations(session, "p", "hash-of-2", "hash-of-1")
        assert [one.evidence["number"] for one in found] == [2, 1, 0]
        assert len(evaluations(session, "p", "hash-of-2")) == 4


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"baseline": "cnn@1"},
            "names the role of its baseline, not 'cnn@1'; the job's inputs are 'model', 'original', 'd",
        ),
        ({"dataset": None}, "names the role of its dataset"),
        ({"candidate": "hash-of-another"}, "names the role of its candidate"),
        ({"candidate": None}, "names the role of its candidate"),
        ({"evidence": {"drop": math.nan}}, "is not JSON"),
        ({"evidence": [1]}, "is an object of at most"),
        ({"evidence": {"x": "y" * (1 << 20)}}, "is an object of at most 1,048,576 bytes"),
    ],
)
def test_what_is_said_otherwise_is_refused(db: Database, change: dict[str, Any], what: str) -> None:
    with pytest.raises(Invalid, match=what):
        recorded(db, {**SAID, **change})
    with db.read() as session:
        assert evaluations(session, "p", "hash-of-2") == []


def test_it_is_on_a_dataset_and_not_on_a_model_of_that_name(db: Database) -> None:
    inputs = {**INPUTS, "dataset": Parent("dataset", "model", "digits", 3, "hash-of-digits")}
    with pytest.raises(Invalid, match="the role 'dataset' is the model digits@3"), db.begin() as session:
        record(session, "p", "j1", SAID, inputs, "hash-of-output")


@pytest.mark.parametrize("said", [None, "report", [], {}])
def test_what_is_no_evaluation_is_refused(db: Database, said: Any) -> None:
    with pytest.raises(Invalid, match="names the role"):
        recorded(db, said)
