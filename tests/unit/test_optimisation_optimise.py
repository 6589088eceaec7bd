from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_conversion_gguf import CARD
from tiny_datasets import table, write
from tiny_models import matmul, phrases, simple

from modelyard.data.datasets import Dataset, Feature
from modelyard.engines.base import ENGINES, ModelCard
from modelyard.engines.torch import TorchEngine
from modelyard.errors import Invalid
from modelyard.kinds import FolderContext, FolderOutputs, FolderView, Input
from modelyard.optimisation import optimise, variants
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.evaluate import r2

COLUMNS = {
    "variant",
    "verified",
    "accuracy",
    "low",
    "high",
    "drop",
    "size",
    "memory",
    "p50_ms",
    "p99_ms",
    "items_per_s",
    "verdict",
    "chosen",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Input]:
    root = tmp_path_factory.mktemp("inputs")
    engine = TorchEngine(root / "model", simple(root / "model"))
    noise = np.random.default_rng(7)

    def answers(x: np.ndarray) -> list[float]:
        return (engine.forward({"x": x})["output"][:, 0] + 0.05 * noise.standard_normal(len(x))).tolist()

    table(root / "data", Feature(type="float"), answers)
    return {
        "model": Input("simple@1", {}, FolderView(root / "model", "aa")),
        "dataset": Input("numbers@2", {}, FolderView(root / "data", "bb")),
    }


@pytest.fixture(scope="module")
def done(inputs: dict[str, Input], tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderOutputs, FolderContext]:
    return optimised(inputs, tmp_path_factory.mktemp("done"))


def optimised(inputs: dict[str, Input], folder: Path, **config: object) -> tuple[FolderOutputs, FolderContext]:
    (folder / "work").mkdir()
    outputs, context = FolderOutputs(folder / "out"), FolderContext(folder / "work")
    optimise.run(OptimiseConfig(seconds=0.05, max_accuracy_drop=2, **config), inputs, outputs, context)
    return outputs, context


def test_a_variant_is_not_optimised_again(
    inputs: dict[str, Input], done: tuple[FolderOutputs, FolderContext], tmp_path: Path
) -> None:
    made = done[0].published["static-int8"]
    variant = Input("simple@3", made["metadata"], FolderView(made["folder"]))
    with pytest.raises(Invalid, match=r"simple@3 is already the variant static-int8 of simple@1; optimise that one\."):
        optimised({**inputs, "model": variant}, tmp_path)
    with pytest.raises(Invalid, match="artefact:aa is what an optimise job made"):
        optimise.read({**inputs, "model": Input("artefact:aa", {}, FolderView(made["folder"]))})


def test_a_graph_that_is_quantised_already_is_no_float_variant(
    inputs: dict[str, Input], done: tuple[FolderOutputs, FolderContext], tmp_path: Path
) -> None:
    shutil.copytree(done[0].published["static-int8"]["folder"], tmp_path / "imported")
    (tmp_path / "imported" / "optimisation.json").unlink()
    with pytest.raises(Invalid, match="quantised already"):
        optimised({**inputs, "model": Input("q@1", {}, FolderView(tmp_path / "imported"))}, tmp_path)


def test_language_models_use_the_processors_that_the_job_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(optimise, "load", lambda path: lambda *given: used.append(torch.get_num_threads()))
    CARD.save(tmp_path)
    before = torch.get_num_threads()
    for given in (1, 3):
        monkeypatch.setenv("RANK_CPUS", str(given))
        model = {"model": Input("smol@1", {}, FolderView(tmp_path))}
        optimise.run(OptimiseConfig(), model, FolderOutputs(tmp_path / "out"), FolderContext(tmp_path))
    assert (used, torch.get_num_threads()) == ([1, 3], before)


def test_every_verified_variant_is_published_and_one_is_best(done: tuple[FolderOutputs, FolderContext]) -> None:
    outputs, context = done
    assert set(outputs.published) == {"fp32", "static-int8", "dynamic-int8"}
    best = [name for name, made in outputs.published.items() if made["alias"] == "best"]
    assert best == [context.facts["chosen"]] == [list(outputs.published)[-1]]
    for name, made in outputs.published.items():
        assert made["task"] == "tabular-regression"
        assert (made["metadata"]["variant"], made["metadata"]["chosen"]) == (name, [name] == best)
        card = ModelCard.load(made["folder"])
        assert card.engines == ("onnx",)
        assert sorted(p.name for p in made["folder"].iterdir()) == [
            "README.md",
            "model.json",
            "model.onnx",
            "optimisation.json",
        ]
        assert ENGINES.get("onnx")(made["folder"], card).forward({"x": np.ones((2, 10), np.float32)})["output"].shape == (2, 1)


def test_the_table_has_the_original_and_all_figures(done: tuple[FolderOutputs, FolderContext]) -> None:
    _, context = done
    rows = context.facts["table"]
    assert [row["variant"] for row in rows] == ["original", "fp32", "static-int8", "dynamic-int8"]
    assert all(set(row) >= COLUMNS for row in rows)
    assert rows[0]["verdict"] == "original"
    assert rows[1]["drop"] == pytest.approx(0, abs=1e-3)
    assert [row["chosen"] for row in rows].count(True) == 1
    held = {row["variant"]: row["memory"] for row in rows}
    assert held["original"] > 2 * held["fp32"] > 2 << 20  # torch takes more than a graph
    assert all(row["low"] <= row["accuracy"] <= row["high"] and 0 < row["p50_ms"] <= row["p99_ms"] for row in rows)
    json.dumps(context.facts, allow_nan=False)


def test_the_report_is_of_the_report_split(done: tuple[FolderOutputs, FolderContext], inputs: dict[str, Input]) -> None:
    outputs, context = done
    report = context.facts["report"]
    subject = optimise.read(inputs)
    held_out = subject.source.examples("report")
    original = subject.source.predict(subject.engine, held_out.inputs)
    assert report["rows"] == 80
    assert report["original"]["value"] == pytest.approx(r2(original, held_out.wanted))
    assert report["original"]["value"] != pytest.approx(context.facts["table"][0]["accuracy"], abs=1e-6)
    best = outputs.published[context.facts["chosen"]]
    assert best["metadata"]["report"] == report
    whole = json.loads((best["folder"] / "optimisation.json").read_text())
    assert whole["inputs"] == {
        "dataset": {"hash": "bb", "reference": "numbers@2"},
        "model": {"hash": "aa", "reference": "simple@1"},
    }
    others = [made for made in outputs.published.values() if made["alias"] is None]
    assert [made["metadata"]["report"] for made in others] == [None, None]


def shared(inputs: dict[str, Input], folder: Path, rows: int) -> dict[str, Input]:
    """The first rows of the report split are those of select."""
    whole = Dataset.open(inputs["dataset"].view.local())
    names = [*whole.features]
    splits = {split: {name: whole.column(split, name).tolist() for name in names} for split in whole.card.splits}
    for name in names:
        splits["report"][name][:rows] = splits["select"][name][:rows]
    write(folder, whole.features, splits, "target")
    return {**inputs, "dataset": Input("numbers@3", {}, FolderView(folder, "cc"))}


def test_rows_that_were_chosen_by_are_in_no_figure_of_the_report(inputs: dict[str, Input], tmp_path: Path) -> None:
    given = shared(inputs, tmp_path / "data", 8)
    outputs, context = optimised(given, tmp_path, variants=("fp32",))
    subject, report = optimise.read(given), context.facts["report"]
    held_out = subject.source.examples("report", among=np.arange(8, 80))
    predicted = subject.source.predict(subject.engine, held_out.inputs)
    assert (report["rows"], report["left_out"]) == (72, 8)
    assert report["original"]["value"] == pytest.approx(r2(predicted, held_out.wanted))
    (made,) = outputs.published.values()
    found = made["metadata"]["evaluation"]["evidence"]
    assert (found["rows"], found["left_out"]) == (72, 8)
    assert found["original"] == pytest.approx(report["original"]["value"])
    assert found["drop"]["drop"] == pytest.approx(report["drop"]["value"], abs=1e-9)
    assert "Of that split 8 rows were left out" in (made["folder"] / "README.md").read_text()


def test_a_report_split_that_is_the_select_split_is_refused_before_anything_is_made(
    inputs: dict[str, Input], tmp_path: Path
) -> None:
    given = shared(inputs, tmp_path / "data", 80)
    with pytest.raises(Invalid, match="80 of 80 rows of the split 'report' are in calibrate or select as well"):
        optimised(given, tmp_path)
    assert list((tmp_path / "work").iterdir()) == []


def test_the_card_for_people_shows_the_table(done: tuple[FolderOutputs, FolderContext]) -> None:
    outputs, context = done
    text = (outputs.published[context.facts["chosen"]]["folder"] / "README.md").read_text()
    assert all(f"| {name} |" in text for name in ("original", "fp32", "static-int8", "dynamic-int8"))
    assert "`simple@1`" in text
    assert "report split" in text


def test_other_formats_are_variants_that_answer_number_by_number(inputs: dict[str, Input], tmp_path: Path) -> None:
    outputs, _ = optimised(inputs, tmp_path, variants=("openvino", "pt2"))
    for name, made in outputs.published.items():
        card, proof = ModelCard.load(made["folder"]), made["metadata"]["verification"]
        assert (card.engines, card.module) == ((name,), None)
        assert (proof["ok"], proof["batches"][:3]) == (True, [1, 2, 7])
        assert proof["max_rel"] < 1e-4
    assert set(outputs.published) == {"openvino", "pt2"}


def test_the_smallest_is_chosen_when_size_is_the_goal(inputs: dict[str, Input], tmp_path: Path) -> None:
    _, context = optimised(inputs, tmp_path, goal="size", variants=("fp32", "dynamic-int8"))
    rows = {row["variant"]: row for row in context.facts["table"]}
    smallest = min(("fp32", "dynamic-int8"), key=lambda name: rows[name]["size"])
    assert context.facts["chosen"] == smallest


def test_without_a_variant_in_the_budget_nothing_is_published_but_the_table_is_told(
    inputs: dict[str, Input], tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    outputs, context = FolderOutputs(tmp_path / "out"), FolderContext(tmp_path / "work")
    config = OptimiseConfig(seconds=0.05, max_accuracy_drop=0, variants=("static-int8",))
    with pytest.raises(Invalid, match=r"No variant stays within 0 points .* static-int8, loses"):
        optimise.run(config, inputs, outputs, context)
    assert outputs.published == {}
    assert [row["variant"] for row in context.facts["table"]] == ["original", "static-int8"]
    assert all(set(row) >= COLUMNS and not row["chosen"] for row in context.facts["table"])


def test_what_is_not_verified_is_shown_but_not_published(
    inputs: dict[str, Input], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "AGREEMENT", 2.0)
    outputs, context = optimised(inputs, tmp_path, variants=("fp32", "dynamic-int8"))
    assert list(outputs.published) == ["fp32"]
    assert context.facts["table"][2]["verdict"] == "not verified"
    assert context.facts["table"][2]["accuracy"] is not None


def test_a_graph_that_answers_texts_is_evaluated_not_optimised(tmp_path: Path) -> None:
    rows = {"text": ["cat"], "said": ["Katze"]}
    write(tmp_path / "data", dict.fromkeys(rows, Feature(type="text")), {"select": rows}, "said", "translation")
    given = {"model": Input("m@1", {}, FolderView(phrases(tmp_path / "model", {"cat": "Katze"})))}
    with pytest.raises(Invalid, match="answers texts as they are: there is nothing to quantise by"):
        optimise.read({**given, "dataset": Input("d@1", {}, FolderView(tmp_path / "data"))})


def test_a_fixed_batch_is_refused(inputs: dict[str, Input], tmp_path: Path) -> None:
    matmul(tmp_path / "m.onnx", batch=4).save(tmp_path)
    with pytest.raises(Invalid, match="one fixed size"):
        optimise.read({**inputs, "model": Input("m@1", {}, FolderView(tmp_path))})
