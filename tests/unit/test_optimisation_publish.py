from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from tiny_datasets import COLUMNS, table
from tiny_models import matmul, simple

from modelyard.data.datasets import Dataset, Feature
from modelyard.kinds import FolderOutputs, FolderView, Input
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.examples import Source
from modelyard.optimisation.publish import Findings, machine, publish, readme
from modelyard.optimisation.variants import Variant

ROW = {
    "variant": "fp32",
    "verified": True,
    "accuracy": 0.97,
    "low": 0.95,
    "high": 0.98,
    "drop": 0.0,
    "drop_low": -1.0,
    "drop_high": 1.0,
    "size": 5,
    "memory": 65536.0,
    "p50_ms": 0.1,
    "p99_ms": 0.2,
    "items_per_s": 1e4,
    "verdict": "best latency within 1 points",
    "chosen": True,
}
BROKEN = {
    **dict.fromkeys(ROW),
    "variant": "static-int8",
    "verified": False,
    "size": 0,
    "verdict": "not verified",
    "chosen": False,
}
REPORT = {"left_out": 0, "original": {"value": 0.96}, "chosen": {"value": 0.961, "low": 0.94, "high": 0.98}}


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    view = FolderView(tmp_path, "hash")
    inputs = {"model": Input("cnn@1", {}, view), "dataset": Input("digits@1", {}, view)}
    return Findings(OptimiseConfig(), inputs, "accuracy", [ROW, BROKEN], REPORT, "fp32")


def test_the_alias_is_given_unless_it_was_not_asked_for(findings: Findings, tmp_path: Path) -> None:
    (folder := tmp_path / "fp32").mkdir()
    variant, outputs = Variant("fp32", folder, matmul(folder / "model.onnx"), None, True, {}), FolderOutputs(tmp_path / "out")
    publish(replace(findings, config=OptimiseConfig(alias=False)), variant, outputs)
    assert outputs.published["fp32"]["alias"] is None
    assert outputs.published["fp32"]["metadata"]["chosen"]


def test_a_variant_is_handed_over_with_its_figures(findings: Findings, tmp_path: Path) -> None:
    folder = tmp_path / "fp32"
    folder.mkdir()
    variant = Variant("fp32", folder, matmul(folder / "model.onnx"), None, True, {"ok": True})
    outputs = FolderOutputs(tmp_path / "out")
    (tmp_path / "LICENSE.md").write_text("free")
    (tmp_path / "training.json").write_text('{"config": {}}')
    publish(findings, variant, outputs)
    made = outputs.published["fp32"]
    assert (made["folder"] / "LICENSE.md").read_text() == "free"
    assert made["alias"] == "best"
    assert (made["folder"] / "training.json").read_text() == '{"config": {}}'
    assert made["metadata"]["select"] == ROW
    assert made["metadata"]["report"] == REPORT
    assert made["metadata"]["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]
    assert '"accuracy", "value": 0.961' in (folder / "README.md").read_text()


def test_the_table_shows_what_failed_too(findings: Findings) -> None:
    text = readme(findings)
    assert (
        "| fp32 | 0.9700 | 0.9500 to 0.9800 | 0.00 | 5 | 65536 | 0.100 | 0.200 | 10000 | best latency within 1 points |" in text
    )
    assert "| static-int8 | | | | | | | | | not verified |" in text
    assert "fp32 reaches accuracy 0.9610 (0.9400 to 0.9800), the original 0.9600" in text


@pytest.mark.parametrize("confidence", [0.95, 0.995, 0.999])
def test_the_confidence_is_said_as_it_is(findings: Findings, confidence: float) -> None:
    text = readme(replace(findings, config=OptimiseConfig(confidence=confidence)))
    assert f"intervals at {confidence}." in text


def test_a_language_model_loses_percent_and_makes_tokens(findings: Findings) -> None:
    text = readme(replace(findings, metric="perplexity"))
    assert "at most 1 percent of perplexity lost" in text
    assert "| lost (percent) | bytes | memory | p50 ms | p99 ms | tokens/s |" in text


def test_the_machine_is_named() -> None:
    found = machine()
    assert found["cpus"] > 0
    for name in ("modelyard", "torch", "onnxruntime", "openvino", "ai-edge-litert"):
        assert found[name] == version(name)


def test_what_was_found_of_a_variant_is_handed_over_with_it_alone(findings: Findings, tmp_path: Path) -> None:
    said = {"baseline": "model", "evidence": {"rows": 10}}
    outputs = FolderOutputs(tmp_path / "out")
    for name, evaluations in (("fp32", {"fp32": said}), ("static-int8", {})):
        folder = tmp_path / name
        folder.mkdir()
        variant = Variant(name, folder, matmul(folder / "model.onnx"), None, True, {"ok": True})
        whole = replace(findings, evaluations=evaluations, table=[ROW, {**ROW, "variant": "static-int8"}])
        publish(whole, variant, outputs)
    assert outputs.published["fp32"]["metadata"]["evaluation"] == said
    assert "evaluation" not in outputs.published["static-int8"]["metadata"]


def test_what_the_original_was_trained_on_is_what_one_variant_and_another_are_shown(tmp_path: Path) -> None:
    """Two of its variants can be held against each other, without it."""
    table(tmp_path / "data", Feature(type="float"), lambda x: x[:, 0].tolist())
    original = tmp_path / "original"
    card = simple(original)
    module = {"inputs": list(COLUMNS[::-1]), "target": "target"}
    (original / "training.json").write_text(json.dumps({"config": {"recipe": "module", "module": module}}))
    inputs = {"model": Input("m@1", {}, FolderView(original, "a")), "dataset": Input("d@1", {}, FolderView(tmp_path, "b"))}
    outputs = FolderOutputs(tmp_path / "out")
    folder = tmp_path / "fp32"
    folder.mkdir()
    variant = Variant("fp32", folder, card, None, True, {"ok": True})
    publish(Findings(OptimiseConfig(), inputs, "accuracy", [ROW], REPORT, "fp32"), variant, outputs)
    source = Source(outputs.published["fp32"]["folder"], card, Dataset.open(tmp_path / "data"))
    assert source.features == COLUMNS[::-1]
