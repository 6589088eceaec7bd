from __future__ import annotations

from typing import Any

import pytest

from modelyard.client import outcome
from modelyard.errors import Crashed, Invalid, Unsafe


def node(reference: str, kind: str = "model", *parents: dict[str, Any]) -> dict[str, Any]:
    return {"reference": reference, "kind": kind, "hash": f"hash of {reference}", "job": None, "parents": list(parents)}


DATASET = node("digits@1", "dataset")
TREE = node("cnn@2", "model", node("cnn@1", "model", DATASET), DATASET)


def test_origins_come_nearest_first_and_once() -> None:
    assert [found["reference"] for found in outcome.origins(TREE)] == ["cnn@2", "cnn@1", "digits@1"]


def test_the_dataset_of_a_model_is_the_nearest() -> None:
    assert outcome.dataset_of(node("cnn@3", "model", TREE)) == "digits@1"
    with pytest.raises(Invalid, match="imported"):
        outcome.dataset_of(node("cnn@1"))


def test_a_model_may_have_the_name_of_its_dataset() -> None:
    assert outcome.dataset_of(node("homes@1", "model", node("homes@1", "dataset"))) == "homes@1"


def test_a_dataset_that_was_deleted_is_told_from_one_that_never_was() -> None:
    with pytest.raises(Invalid, match=r"trained on digits@1, which was deleted.*--dataset"):
        outcome.dataset_of(node("cnn@1", "model", DATASET | {"deleted": "2026-01-31T12:00:00+00:00"}))


def version(number: int, *aliases: str, **metadata: Any) -> dict[str, Any]:
    return {"name": "m", "version": number, "reference": f"m@{number}", "aliases": list(aliases), "metadata": metadata}


def test_a_bare_name_to_optimise_is_the_newest_that_is_no_variant() -> None:
    versions = [version(1), version(2), version(3, variant="fp32"), version(4, "best", variant="static-int8")]
    assert outcome.newest_original({"versions": versions}) == "m@2"
    assert outcome.newest_original({"versions": versions[2:]}) == "m@4"


def test_a_bare_name_to_deploy_is_the_best_else_the_newest() -> None:
    versions = [version(1), version(2, "best"), version(3, "prod")]
    assert outcome.best_or_newest({"versions": versions}) == "m@best"
    assert outcome.best_or_newest({"versions": versions[::2]}) == "m@3"


def test_the_output_with_an_alias_is_what_the_job_was_run_for() -> None:
    outputs = [{"reference": "m@1", "alias": None}, {"reference": "m@2", "alias": "best"}, {"reference": "m@3", "alias": None}]
    assert outcome.chosen(outputs)["reference"] == "m@2"
    assert outcome.chosen(outputs[::2])["reference"] == "m@3"


def test_a_failed_job_raises_its_own_error() -> None:
    error = outcome.failure_of({"id": "j1", "state": "failed", "error": {"code": "unsafe_file", "message": "pickle with code"}})
    assert isinstance(error, Unsafe)
    assert error.message == "Job j1 failed: pickle with code"
    assert isinstance(outcome.failure_of({"id": "j1", "state": "cancelled", "error": None}), Crashed)


def test_a_receipt_has_the_jobs_and_the_serving_of_its_version_alone() -> None:
    def row(kind: str, subject: str, version: str) -> bool:
        return outcome.concerns({"kind": kind, "subject": subject, "version": version}, "digits", "cnn@3", ["j1"])

    assert row("job", "j1", "cnn@1")
    assert row("serving", "digits", "cnn@3")
    assert not row("job", "j2", "cnn@3")
    assert not row("serving", "digits", "cnn@1")
    assert not row("serving", "other", "cnn@3")
