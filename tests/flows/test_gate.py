"""The gate on a real platform: variants that are evaluated or not, good or bad, deployed by keys of each kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from modelyard.client import Yard
from modelyard.errors import Conflict, Forbidden, Invalid, NotFound
from modelyard.testing import yard

GATE = {"max_accuracy_drop": 5.0}


def never(source: Path, path: Path, label: int) -> Path:
    """The graph in `source`, but that one label is never answered: its bias is far below all others."""
    model = onnx.load(source)
    [bias] = [tensor for tensor in model.graph.initializer if list(tensor.dims) == [10]]
    values = numpy_helper.to_array(bias).copy()
    values[label] = -1e4
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """cnn@1 is a classifier of digits as it was trained, cnn@2 … are its optimised variants."""
    folder = tmp_path_factory.mktemp("gate")
    with yard(folder / "yard") as client:
        client.import_dataset("digits", "sklearn:digits")
        client.train("cnn", "digits", epochs=12, image_classifier={"width": 16, "blocks": 1})
        client.optimize("cnn@1", max_accuracy_drop=50, seconds=0.05, variants=["fp32", "static-int8"])
        yield client


@pytest.fixture(scope="module")
def keys(platform: Yard) -> Iterator[dict[str, Yard]]:
    """The platform as keys of each kind see it."""
    made = {
        "write": platform.create_key("write", name="ci")["key"],
        "nameless": platform.create_key("admin")["key"],
    }
    clients = {who: Yard(platform.profile.url, key) for who, key in made.items()}
    yield clients
    for client in clients.values():
        client.close()


@pytest.fixture
def gated(platform: Yard) -> Iterator[None]:
    """The project holds its variants against what they were made from."""
    platform.set_project_gate("default", GATE)
    yield
    platform.set_project_gate("default", None)


def variant(platform: Yard, name: str) -> str:
    """The version that is this variant of cnn@1."""
    found = platform.versions("cnn")["versions"]
    return str(next(version["reference"] for version in found if version["metadata"].get("variant") == name))


@pytest.fixture(scope="module")
def broken(platform: Yard, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A version that is right but for one class, imported: nobody said what it was made from."""
    folder = tmp_path_factory.mktemp("broken")
    platform.fetch(variant(platform, "fp32"), folder / "fp32")

    path = never(folder / "fp32" / "model.onnx", folder / "broken.onnx", 3)
    card = json.loads((folder / "fp32" / "model.json").read_text())
    made = platform.import_model("broken", path, labels=card["labels"], transform=card["transform"])
    return str(made["reference"])


def test_an_optimise_job_evaluates_every_variant_on_the_report_split(platform: Yard) -> None:
    report = platform.version("digits", "dataset")["metadata"]["splits"]["report"]
    for name in ("fp32", "static-int8"):
        [found] = platform.evaluations(variant(platform, name))
        assert (found["baseline_reference"], found["dataset_reference"], found["split"]) == ("cnn@1", "digits@1", "report")
        assert found["evidence"]["rows"] == report
        assert set(found["evidence"]["slices"]) == {f"label={digit}" for digit in range(10)}
        assert found["candidate"] == platform.version(variant(platform, name))["artefact"]
        assert "evaluation" not in platform.version(variant(platform, name))["metadata"]


@pytest.mark.usefixtures("gated")
def test_a_variant_within_the_budget_is_deployed_and_says_by_what(platform: Yard, keys: dict[str, Yard]) -> None:
    shown = keys["write"].deploy("within", variant(platform, "fp32"))
    [held] = shown["decision"]["held"]
    assert (held["by"], held["baseline"], held["dataset"], held["allowed"]) == ("project", "cnn@1", "digits@1", True)
    assert held["checks"][0]["bound"] < 5
    platform.set_project_gate("default", {"max_accuracy_drop": 0.0})
    with pytest.raises(Conflict, match=r"may be lost\. .* `modelyard evaluate cnn@\d --against cnn@1 --on digits@1`"):
        keys["write"].deploy("elsewhere", variant(platform, "fp32"))


def test_without_an_evaluation_it_is_refused_and_with_a_bad_one_too(platform: Yard, broken: str) -> None:
    platform.deploy("digits", "cnn@1", wait=False, gate={**GATE, "max_slice_drop": 30.0})
    with pytest.raises(Conflict, match="It was not evaluated"):
        platform.deploy("digits", broken)
    found = platform.evaluate(broken, against="cnn@1", on="digits")
    assert found["drop"]["value"] > 0
    worst = {row["slice"]: row["drop"]["value"] for row in found["slices"]}
    assert worst["label=3"] == max(worst.values())
    with pytest.raises(Conflict, match=r"where label=3 \(\d+\), at 0\.95 confidence up to \d+\.\d\d; 30 may be lost"):
        platform.deploy("digits", broken)
    assert platform.deployment("digits")["model"] == "cnn@1"


def test_only_a_named_admin_overrides_and_it_is_audited(platform: Yard, keys: dict[str, Yard], broken: str) -> None:
    platform.deploy("over", "cnn@1", gate=GATE)
    for who in ("write", "nameless"):
        with pytest.raises(Forbidden, match="only an admin key that has a name"):
            keys[who].deploy("over", broken, override="I want to")
    shown = platform.deploy("over", broken, override="a demo of what goes wrong")
    assert (shown["model"], shown["decision"]["override"]["reason"]) == (broken, "a demo of what goes wrong")
    [entry] = [one for one in platform.audit() if one["action"] == "gate.override"]
    assert (entry["key"], entry["subject"]) == (platform.whoami()["key"], "over")
    assert entry["detail"]["held"][0]["baseline"] == "cnn@1"
    assert platform.rollback("over")["model"] == "cnn@1"


def test_who_writes_tightens_and_an_admin_loosens(platform: Yard, keys: dict[str, Yard]) -> None:
    keys["write"].deploy("rights", "cnn@1", wait=False, gate=GATE)
    tighter = keys["write"].deploy("rights", "cnn@1", wait=False, gate={"max_accuracy_drop": 1.0})
    assert tighter["gate"]["max_accuracy_drop"] == 1.0
    with pytest.raises(Forbidden, match="would loosen the gate"):
        keys["write"].deploy("rights", "cnn@1", wait=False, gate=GATE)
    with pytest.raises(Forbidden, match="would loosen the gate"):
        keys["write"].deploy("rights", "cnn@1", lift_gate=True)
    assert keys["nameless"].deploy("rights", "cnn@1", wait=False, lift_gate=True)["gate"] is None
    with pytest.raises(Forbidden):
        keys["write"].set_project_gate("default", None)


def test_a_promotion_is_held_by_the_gate_as_it_is_then(platform: Yard, keys: dict[str, Yard]) -> None:
    keys["write"].deploy("trial", "cnn@1")
    keys["write"].deploy("trial", variant(platform, "static-int8"), canary=50)
    platform.set_project_gate("default", {"max_accuracy_drop": 0.0})
    try:
        with pytest.raises(Conflict, match="The gate does not let"):
            keys["write"].promote("trial")
        platform.set_project_gate("default", {"max_accuracy_drop": 50.0})
        assert keys["write"].promote("trial")["model"] == variant(platform, "static-int8")
    finally:
        platform.set_project_gate("default", None)


def test_what_cannot_be_compared_is_refused_at_once(platform: Yard) -> None:
    with pytest.raises(Invalid, match="was made from no other version"):
        platform.evaluate("cnn@1", on="digits")
    with pytest.raises(NotFound, match="No version of model 'cnn' '99'"):
        platform.evaluate("cnn@2", against="cnn@99")


def test_the_command_line_evaluates_gates_and_shows_why(platform: Yard, broken: str) -> None:
    assert platform.profile.file is not None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MODELYARD_")}
    environment["MODELYARD_DATA"] = str(platform.profile.file.parent)

    def typed(line: str, fails: int = 0) -> Any:
        ran = subprocess.run(
            [sys.executable, "-m", "modelyard", *line.split(), "--json"], capture_output=True, text=True, env=environment
        )
        assert ran.returncode == fails, ran.stdout + ran.stderr
        return json.loads(ran.stdout)

    fp32 = variant(platform, "fp32")
    found = typed(f"evaluate {broken} --against {fp32} --on digits --set confidence=0.9")
    assert (found["against"], found["dataset"], found["confidence"]) == (fp32, "digits@1", 0.9)
    assert found["slices"][0]["slice"] == "label=3"
    assert typed("project gate default")["gate"] is None
    gate = typed("project gate default --max-accuracy-drop 50 --gate min_agreement=0.5")["gate"]
    assert (gate["max_accuracy_drop"], gate["min_agreement"], gate["confidence"]) == (50, 0.5, 0.95)
    assert typed("project gate default --off")["gate"] is None
    shown = typed("deploy typed --no-wait --model cnn@1 --max-accuracy-drop 5 --max-slice-drop 40 --confidence 0.9")
    assert (shown["gate"]["max_slice_drop"], shown["gate"]["baseline"]) == (40, "cnn@1")
    assert "The gate does not let" in typed(f"deploy typed --model {broken}", fails=6)["error"]["message"]
    assert typed(f"deploy typed --no-wait --model {broken} --no-gate")["gate"] is None
