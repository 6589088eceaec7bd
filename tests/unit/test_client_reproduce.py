"""Which job is run again and as what, and which of its outputs is compared."""

from pathlib import Path
from typing import Any

import pytest

from modelyard.client import reproduce as module
from modelyard.client.reproduce import reproduce
from modelyard.errors import Invalid

JOB = {
    "id": "j1",
    "kind": "train",
    "config": {"seed": 3},
    "inputs": {"dataset": "dataset:digits@1"},
    "target": {"kind": "model", "name": "cnn"},
    "ranks": 2,
    "resources": {"cpus": 1, "gpus": 1, "memory": 0},
    "timeout": None,
    "max_restarts": 4,
    "outputs": [{"name": "other", "reference": "cnn@2"}, {"name": "model", "reference": "cnn@3"}],
}


class Platform:
    """A platform on which job 'j1' made cnn@3 and, run again, makes 'cnn-reproduced@1' with the hash `second`."""

    def __init__(self, second: str = "aa", **job: Any) -> None:
        self.submitted: list[tuple[Any, Any]] = []
        again = JOB | {"id": "j2", "outputs": [{"name": "model", "reference": "cnn-reproduced@1"}]}
        self.jobs = {"j1": JOB | job, "j2": again}
        self.versions = {
            "cnn": {"name": "cnn", "reference": "cnn@3", "job": "j1", "artefact": "aa"},
            "raw": {"name": "raw", "reference": "raw@1", "job": None, "artefact": "bb"},
            "cnn-reproduced@1": {"name": "cnn-reproduced", "reference": "cnn-reproduced@1", "artefact": second},
        }

    def version(self, reference: str) -> Any:
        return self.versions[reference]

    def job(self, job: str) -> Any:
        return self.jobs[job]

    def submit(self, *given: Any, **named: Any) -> Any:
        self.submitted.append((given, named))
        return self.jobs["j2"]

    def wait(self, job: str, on_event: Any) -> None:
        assert job == "j2"

    def fetch(self, reference: str, folder: Path) -> Path:
        return Path(reference)


def test_the_recorded_job_is_run_again_under_a_name_of_its_own() -> None:
    platform = Platform()
    found = reproduce(platform, "cnn")  # type: ignore[arg-type]
    ((given, named),) = platform.submitted
    assert given == ("train", {"seed": 3}, {"dataset": "dataset:digits@1"})
    assert named["target"] == {"kind": "model", "name": "cnn-reproduced"}
    assert (named["ranks"], named["max_restarts"], named["resources"]["gpus"]) == (2, 4, 1)
    assert (found["reference"], found["reproduced"], found["job"]) == ("cnn@3", "cnn-reproduced@1", "j2")
    assert (found["identical"], found["differences"]) == (True, [])


def test_bytes_that_differ_are_fetched_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = {"identical": False, "largest": 0.5}
    monkeypatch.setattr(module, "load", lambda path: lambda ours, theirs: compared | {"pair": (str(ours), str(theirs))})
    found = reproduce(Platform(second="cc"), "cnn")  # type: ignore[arg-type]
    assert (found["identical"], found["pair"]) == (False, ("cnn@3", "cnn-reproduced@1"))


def test_what_no_job_of_its_own_made_is_refused() -> None:
    with pytest.raises(Invalid, match="made by no job"):
        reproduce(Platform(), "raw")  # type: ignore[arg-type]


def test_a_trial_whose_model_its_sweep_registered_is_run_again_itself() -> None:
    platform = Platform(target=None, outputs=[{"name": "model", "reference": None, "hash": "aa"}])
    assert reproduce(platform, "cnn")["reproduced"] == "cnn-reproduced@1"  # type: ignore[arg-type]
    assert platform.submitted[0][1]["target"] == {"kind": "model", "name": "cnn-reproduced"}


def test_an_output_that_is_missing_now_is_told() -> None:
    platform = Platform()
    platform.jobs["j2"]["outputs"] = []
    with pytest.raises(Invalid, match="made no output 'model'"):
        reproduce(platform, "cnn")  # type: ignore[arg-type]


def test_a_long_name_stays_one() -> None:
    platform = Platform()
    platform.versions["cnn"]["name"] = "x" * 63
    reproduce(platform, "cnn")  # type: ignore[arg-type]
    assert len(platform.submitted[0][1]["target"]["name"]) == 63
