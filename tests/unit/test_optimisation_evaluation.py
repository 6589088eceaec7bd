"""The job kind `evaluate` over plain folders: what it finds and publishes, and which pairs cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import sacrebleu
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError
from tiny_datasets import COLUMNS, ROWS, table, write
from tiny_models import phrases, save, simple

from modelyard.catalogue import evaluations as catalogue
from modelyard.data.datasets import Dataset, Feature
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.onnx import OnnxEngine
from modelyard.engines.torch import TorchEngine
from modelyard.errors import Invalid
from modelyard.kinds import FolderContext, FolderOutputs, FolderView, Input
from modelyard.optimisation import evaluation, optimise
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.evaluation_config import EvaluateConfig, check_evaluation
from modelyard.optimisation.evidence import Evidence, Paired
from modelyard.optimisation.examples import Source
from modelyard.optimisation.gate import GatePolicy, decide
from modelyard.work import KINDS

LABELS = ("low", "high")
RIGHT = np.stack([-np.ones(10), np.ones(10)], axis=1).astype(np.float32)  # x · RIGHT: 'high' where the sum is above 0


def linear(folder: Path, matrix: np.ndarray = RIGHT, labels: tuple[str, ...] | None = LABELS) -> Path:
    """An ONNX version: logits[n, 2] = x[n, 10] · matrix."""
    folder.mkdir()
    outputs = matrix.shape[1]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", outputs])],
        [numpy_helper.from_array(matrix, "w")],
    )
    save(graph, folder / "model.onnx")
    ModelCard(
        task="tabular-classification",
        engines=("onnx",),
        files={"onnx": "model.onnx"},
        inputs=(TensorCard(name="x", datatype="FP32", shape=(-1, 10)),),
        outputs=(TensorCard(name="y", datatype="FP32", shape=(-1, outputs)),),
        labels=labels,
    ).save(folder)
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two classes, and a column 'light' that neither model is shown."""
    random, splits = np.random.default_rng(0), {}
    for name, rows in ROWS.items():
        matrix = random.standard_normal((rows, len(COLUMNS))).astype(np.float32)
        kind = (matrix.sum(axis=1) > 0).astype(int).tolist()
        light = [["dim", "bright"][row % 2] for row in range(rows)]
        splits[name] = {**{c: matrix[:, i].tolist() for i, c in enumerate(COLUMNS)}, "kind": kind, "light": light}
    features = {c: Feature(type="float") for c in COLUMNS}
    features |= {"kind": Feature(type="label", names=LABELS), "light": Feature(type="text")}
    folder = tmp_path_factory.mktemp("classes") / "data"
    write(folder, features, splits, "kind")
    return folder


def evaluated(work: Path, model: Path, original: Path, dataset: Path, **config: Any) -> tuple[FolderOutputs, FolderContext]:
    (work / "work").mkdir()
    outputs, context = FolderOutputs(work / "out"), FolderContext(work / "work")
    inputs = {
        "model": Input("m@2", {}, FolderView(model, "aa")),
        "original": Input("m@1", {}, FolderView(original, "bb")),
        "dataset": Input("d@1", {}, FolderView(dataset, "cc")),
    }
    evaluation.run(EvaluateConfig.model_validate(config), inputs, outputs, context)
    return outputs, context


def evidence(outputs: FolderOutputs) -> Evidence:
    return Evidence.from_json(outputs.published["evaluation"]["metadata"]["evaluation"]["evidence"])


def test_a_version_is_held_against_its_original_on_the_report_split(classes: Path, tmp_path: Path) -> None:
    half = RIGHT.copy()
    half[:5] = 0  # decides by five of the ten columns
    outputs, context = evaluated(
        tmp_path, linear(tmp_path / "new", half), linear(tmp_path / "old"), classes, slices=["light"], confidence=0.9
    )
    [name] = outputs.published
    said = outputs.published[name]["metadata"]["evaluation"]
    assert {key: said[key] for key in said if key != "evidence"} == {
        "candidate": "model",
        "baseline": "original",
        "dataset": "dataset",
        "split": "report",
    }
    found, dataset = evidence(outputs), Dataset.open(classes)
    columns = dataset.columns("report", [*COLUMNS, "kind"])
    matrix = np.stack([columns[c] for c in COLUMNS], axis=1)
    right = (matrix[:, 5:].sum(axis=1) > 0) == columns["kind"]
    assert found.drop == Paired(int(right.sum()), int((~right).sum()), 0, 0)
    assert (found.original, found.variant, found.rows) == (1.0, right.mean(), 80)
    assert sorted(found.slices) == ["label=high", "label=low", "light=bright", "light=dim"]
    assert sum(found.slices[f"light={light}"].rows for light in ("dim", "bright")) == 80
    assert found.columns == ("light",)
    assert found.calibration is not None
    facts = context.facts
    assert (facts["rows"], facts["original"]["value"], facts["variant"]["value"]) == (80, 1.0, right.mean())
    assert facts["drop"]["low"] < facts["drop"]["value"] == found.drop.drop < facts["drop"]["high"]
    whole = json.loads((outputs.published[name]["folder"] / "evaluation.json").read_text())
    f1 = facts["f1"]
    assert (f1["original"], f1["drop"]["value"]) == (1.0, pytest.approx(100 * (1 - f1["variant"])))
    assert f1["drop"]["low"] < f1["drop"]["value"] < f1["drop"]["high"]
    assert sorted((row["class"], row["rows"]) for row in f1["classes"]) == [
        ("high", int(columns["kind"].sum())),
        ("low", int((columns["kind"] == 0).sum())),
    ]
    assert f1["variant"] == pytest.approx(np.mean([row["variant"] for row in f1["classes"]]))
    assert {**whole["figures"]["f1"], "classes": None} == {**f1, "classes": None}
    assert "f1" not in said["evidence"]  # the gate does not decide by it
    assert whole["inputs"]["model"] == {"hash": "aa", "reference": "m@2"}
    text = (outputs.published[name]["folder"] / "README.md").read_text()
    assert "m@2 beside m@1" in text
    assert "| light=dim | 40 |" in text
    assert "- macro F1: original 1.0000, model 0." in text
    assert "| high | " in text


def test_more_classes_than_are_kept_are_left_out_and_told_of(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_ROOM", 250)
    new, old = linear(tmp_path / "new"), linear(tmp_path / "old")
    (tmp_path / "all").mkdir()
    outputs, context = evaluated(tmp_path / "all", new, old, classes)
    assert sorted(evidence(outputs).slices) == ["label=high", "label=low"]
    assert context.lines == []
    (tmp_path / "some").mkdir()
    outputs, context = evaluated(tmp_path / "some", new, old, classes, slices=["light"])
    found = evidence(outputs)
    assert (sorted(found.slices), found.by_class) == (["light=bright", "light=dim"], False)
    assert context.lines == ["The 2 classes are more than an evaluation holds: nothing is found by class."]
    [reason] = decide(GatePolicy(max_accuracy_drop=50, max_slice_drop=50), found).reasons
    assert reason.startswith("It was not evaluated by class")
    monkeypatch.setattr(evaluation, "_ROOM", 200)
    with pytest.raises(Invalid, match="The 2 slices by light are more than is kept: name fewer columns"):
        evaluated(tmp_path, new, old, classes, slices=["light"])


def test_an_optimise_job_loses_no_variant_to_its_many_classes(
    classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, context = linear(tmp_path / "m"), FolderContext(tmp_path)
    card = ModelCard.load(folder)
    source, engine = Source(folder, card, Dataset.open(classes)), OnnxEngine(folder, card)
    examples = source.examples("report")
    answers = source.answers(engine, examples.inputs)
    subject = optimise.Subject(folder, card, engine, source, examples)
    kept = np.ones(len(examples.wanted), bool)
    answered = optimise.Answered(examples, {optimise.ORIGINAL: answers, "fp32": answers}, kept)
    for room, slices in ((900_000, ["label=high", "label=low"]), (100, [])):
        monkeypatch.setattr(evaluation, "_ROOM", room)
        said = optimise.evaluate(answered, subject, OptimiseConfig(), context)["fp32"]["evidence"]
        assert (sorted(said["slices"]), said["by_class"]) == (slices, bool(slices))
    assert context.lines == ["The 2 classes are more than an evaluation holds: nothing is found by class."]


def test_what_is_found_of_as_many_classes_as_fit_is_kept() -> None:
    """By the catalogue, however many digits the counts have."""
    drop, count = Paired(9_999_999, 9_999_999, 9_999_999, 9_999_999), 0
    source = cast(Source, SimpleNamespace(labels=tuple(f"class {n:05} \u00fc" for n in range(20_000)), metric="accuracy"))
    while count < 20_000 and evaluation._size(source.labels[:count], source) <= evaluation._ROOM:  # type: ignore[index]
        count += 100
    slices = {f"label={name}": drop for name in (source.labels or ())[:count]}
    kept = Evidence("accuracy", "report", 0.5, 0.5, drop, 0.5, slices=slices).to_json()
    assert 5000 < count < 20_000
    assert catalogue._checked(kept) == kept


def test_each_version_runs_on_its_own_engine(tmp_path: Path) -> None:
    """Regression: a torch module beside the same numbers made by hand in ONNX."""
    engine = TorchEngine(tmp_path / "torch", simple(tmp_path / "torch"))
    noise = np.random.default_rng(7)

    def answers(x: np.ndarray) -> list[float]:
        return (engine.forward({"x": x})["output"][:, 0] + 0.05 * noise.standard_normal(len(x))).tolist()

    table(tmp_path / "data", Feature(type="float"), answers)
    outputs, context = evaluated(tmp_path, linear(tmp_path / "onnx", RIGHT[:, :1], None), tmp_path / "torch", tmp_path / "data")
    assert context.facts["f1"] is None
    found = evidence(outputs)
    assert (found.metric, found.slices, found.calibration) == ("r2", {}, None)
    assert found.original > 0.9 > found.variant
    assert found.drop.drop == pytest.approx(100 * (found.original - found.variant))


def test_what_its_original_was_trained_on_is_what_a_variant_is_shown(tmp_path: Path) -> None:
    def answers(x: np.ndarray) -> list[float]:
        return x[:, ::-1][:, :5].sum(axis=1).tolist()

    table(tmp_path / "data", Feature(type="float"), answers)
    matrix = np.concatenate([np.ones((5, 1)), np.zeros((5, 1))]).astype(np.float32)
    old, new = linear(tmp_path / "old", matrix, None), linear(tmp_path / "new", matrix, None)
    module = {"inputs": list(COLUMNS[::-1]), "target": "target"}
    (old / "training.json").write_text(json.dumps({"config": {"recipe": "module", "module": module}}))
    outputs, _ = evaluated(tmp_path, new, old, tmp_path / "data")
    assert (evidence(outputs).original, evidence(outputs).variant) == (pytest.approx(1), pytest.approx(1))


def test_scores_that_are_no_numbers_are_wrong(classes: Path, tmp_path: Path) -> None:
    broken = np.full((10, 2), np.nan, np.float32)
    with np.errstate(invalid="ignore"):
        outputs, context = evaluated(tmp_path, linear(tmp_path / "new", broken), linear(tmp_path / "old"), classes)
    assert evidence(outputs).drop == Paired(0, 80, 0, 0)
    assert context.facts["f1"]["variant"] == 0


@pytest.mark.parametrize("labels", [("low", "middle"), ("low", "high", "middle")])
def test_versions_with_different_labels_are_not_compared(classes: Path, tmp_path: Path, labels: tuple[str, ...]) -> None:
    matrix = np.ones((10, len(labels)), np.float32)
    with pytest.raises(Invalid, match=r"different labels: only the original has (high|none), only the model middle\."):
        evaluated(tmp_path, linear(tmp_path / "new", matrix, labels), linear(tmp_path / "old"), classes)


def test_a_dataset_of_other_labels_proves_nothing(classes: Path, tmp_path: Path) -> None:
    """Both would be wrong everywhere, and nothing lost."""
    others = ("cat", "dog")
    with pytest.raises(Invalid, match=r"labels that the original never answers \(high, low\)"):
        evaluated(tmp_path, linear(tmp_path / "new", labels=others), linear(tmp_path / "old", labels=others), classes)


def test_the_same_labels_in_another_order_are_compared_by_name(classes: Path, tmp_path: Path) -> None:
    outputs, _ = evaluated(
        tmp_path, linear(tmp_path / "new", RIGHT[:, ::-1].copy(), LABELS[::-1]), linear(tmp_path / "old"), classes
    )
    assert evidence(outputs).drop == Paired(80, 0, 0, 0)


def changed(classes: Path, folder: Path, **splits: dict[str, list[Any]] | None) -> Path:
    """The dataset with other rows in some of its splits."""
    before = Dataset.open(classes)
    rows = {
        name: {column: before.column(name, column).tolist() for column in before.features} if wanted is ... else wanted
        for name, wanted in {**dict.fromkeys(before.card.splits, ...), **splits}.items()
    }
    write(folder, before.features, rows, "kind")  # type: ignore[arg-type]
    return folder


def rows_of(classes: Path, split: str, start: int, stop: int) -> dict[str, list[Any]]:
    dataset = Dataset.open(classes)
    return {column: dataset.column(split, column).tolist()[start:stop] for column in dataset.features}


def test_an_empty_report_split_is_refused(classes: Path, tmp_path: Path) -> None:
    dataset = changed(classes, tmp_path / "data", report=rows_of(classes, "report", 0, 0))
    with pytest.raises(Invalid, match="The split 'report' of the dataset is empty"):
        evaluated(tmp_path, linear(tmp_path / "new"), linear(tmp_path / "old"), dataset)


def test_a_report_split_of_one_class_is_refused(classes: Path, tmp_path: Path) -> None:
    whole = rows_of(classes, "report", 0, 80)
    kept = [row for row, kind in enumerate(whole["kind"]) if kind == 1]
    one = {column: [values[row] for row in kept] for column, values in whole.items()}
    dataset = changed(classes, tmp_path / "data", report=one)
    with pytest.raises(Invalid, match="are of one class: a model that answers nothing else is right"):
        evaluated(tmp_path, linear(tmp_path / "new"), linear(tmp_path / "old"), dataset)


@pytest.mark.parametrize("split", ["calibrate", "select"])
def test_rows_that_variants_are_made_by_are_left_out_of_the_report(classes: Path, tmp_path: Path, split: str) -> None:
    report, other = rows_of(classes, "report", 0, 80), rows_of(classes, split, 0, 5)
    more = {column: values + other[column] for column, values in report.items()}
    outputs, context = evaluated(
        tmp_path, linear(tmp_path / "new"), linear(tmp_path / "old"), changed(classes, tmp_path / "data", report=more)
    )
    assert (evidence(outputs).rows, evidence(outputs).left_out) == (80, 5)
    assert context.lines == ["5 rows of the report split are in calibrate or select as well and were left out."]


def test_a_report_split_that_variants_were_made_by_is_refused(classes: Path, tmp_path: Path) -> None:
    dataset = changed(classes, tmp_path / "data", report=rows_of(classes, "select", 0, 80))
    with pytest.raises(Invalid, match="80 of 80 rows of the split 'report' are in calibrate or select as well"):
        evaluated(tmp_path, linear(tmp_path / "new"), linear(tmp_path / "old"), dataset)


def test_an_unknown_slice_is_refused(classes: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="No feature 'lihgt'"):
        evaluated(tmp_path, linear(tmp_path / "new"), linear(tmp_path / "old"), classes, slices=["lihgt"])


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ({"splits": {"train": 10, "report": 0}}, "d@1 has no row in the split 'report'"),
        ({"splits": {"report": 5}, "labels": ["a"]}, "d@1 has one class, a"),
    ],
)
def test_what_the_catalogue_knows_is_refused_at_submission(metadata: dict[str, Any], what: str) -> None:
    given = {"dataset": Input("d@1", metadata, FolderView(Path()))}
    with pytest.raises(Invalid, match=what):
        check_evaluation(given)
    assert KINDS.get("evaluate").check is check_evaluation
    check_evaluation({"dataset": Input("d@1", {"splits": {"report": 5}, "labels": ["a", "b"]}, FolderView(Path()))})


def test_a_column_is_named_once() -> None:
    with pytest.raises(ValidationError, match="each column may be named once"):
        EvaluateConfig(slices=("a", "a"))


def test_versions_that_predict_different_columns_are_not_compared(tmp_path: Path) -> None:
    table(tmp_path / "data", Feature(type="float"), lambda x: x.sum(axis=1))
    old, new = (linear(tmp_path / name, RIGHT[:, :1], None) for name in ("old", "new"))
    for folder, target in ((old, "target"), (new, "c0")):
        module = {"inputs": list(COLUMNS), "target": target}
        (folder / "training.json").write_text(json.dumps({"config": {"recipe": "module", "module": module}}))
    with pytest.raises(Invalid, match="predict different things: the original 'target', the model 'c0'"):
        evaluated(tmp_path, new, old, tmp_path / "data")


def test_a_version_that_cannot_be_loaded_is_the_jobs_error(classes: Path, tmp_path: Path) -> None:
    new = linear(tmp_path / "new")
    model = onnx.load(new / "model.onnx")
    model.graph.node[0].op_type = "NoSuchOp"
    (new / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Invalid):
        evaluated(tmp_path, new, linear(tmp_path / "old"), classes)


NOUNS, PLACES = ("cat", "dog", "bird", "house", "king"), ("rome", "paris", "oslo", "york")
ENGLISH = [f"the {colour} {noun} is in {place}" for colour in ("red", "blue") for noun in NOUNS for place in PLACES]
WORDS = {"the": "die", "red": "rote", "blue": "blaue", "cat": "Katze", "dog": "Hündin", "bird": "Möwe", "house": "Villa",
         "king": "Königin", "is": "ist", "rome": "Rom", "paris": "Paris", "oslo": "Oslo", "york": "York"}  # fmt: skip
GERMAN = [" ".join(WORDS.get(word, word) for word in text.split()) for text in ENGLISH]


def phrasebook(folder: Path, task: str) -> Path:
    """Sentences, their translations with whitespace around them, and a column that parts them."""
    rows = {"english": ENGLISH, "german": [f" {text}\n" for text in GERMAN], "near": ["no", "yes"] * 20}
    features = {name: Feature(type="text") for name in rows}
    few = {"english": ["thanks"], "german": ["danke"], "near": ["no"]}
    write(folder, features, {"calibrate": few, "select": few, "report": rows}, "german", task)
    return folder


def test_texts_are_judged_by_what_is_usual_for_their_task_and_told_in_all_other_ways(tmp_path: Path) -> None:
    """An original that has one word wrong throughout beside a variant that answers every eighth text with nothing more."""
    said = [text.replace("Villa", "Haus") for text in GERMAN]
    worse = ["" if place % 8 == 0 else text for place, text in enumerate(said)]
    versions = [
        phrases(tmp_path / name, dict(zip(ENGLISH, texts, strict=True))) for name, texts in (("new", worse), ("old", said))
    ]
    outputs, context = evaluated(tmp_path, *versions, phrasebook(tmp_path / "data", "translation"), slices=["near"])
    found, chrf = evidence(outputs), [sacrebleu.corpus_chrf(texts, [GERMAN]).score for texts in (said, worse)]
    assert (found.metric, found.rows, found.agreement) == ("chrf", 40, 35 / 40)
    assert (100 * found.original, 100 * found.variant, found.drop.drop) == pytest.approx((*chrf, chrf[0] - chrf[1]))
    assert {name: drop.rows for name, drop in found.slices.items()} == {"near=no": 20, "near=yes": 20}
    assert found.slices["near=yes"].drop == 0 < found.slices["near=no"].drop
    facts = context.facts
    assert facts["drop"]["low"] < facts["drop"]["value"] < facts["drop"]["high"]
    others = {other["metric"]: other for other in facts["others"]}
    assert list(others) == ["rouge", "bleu", "wer", "accuracy"]
    assert 100 * others["bleu"]["variant"] == pytest.approx(sacrebleu.corpus_bleu(worse, [GERMAN]).score)
    assert (others["accuracy"]["original"], others["accuracy"]["drop"]["value"]) == (32 / 40, 100 * 4 / 40)
    wrong = others["wer"]
    assert (wrong["original"], wrong["variant"]) == pytest.approx((8 / 240, (7 + 5 * 6) / 240))
    assert 0 < wrong["drop"]["value"] == pytest.approx(100 * (wrong["variant"] - wrong["original"]))
    text = (outputs.published["evaluation"]["folder"] / "README.md").read_text()
    assert f"- chrf: original {chrf[0] / 100:.4f}, model {chrf[1] / 100:.4f}" in text
    assert "- wer: original 0.0333, model 0.1542, lost: 12.08 points (" in text
    assert "- accuracy: original 0.8000, model 0.7000, lost: 10.00 points (" in text


@pytest.mark.parametrize(
    ("task", "asked", "metric"),
    [
        ("automatic-speech-recognition", None, "wer"),
        ("summarization", None, "rouge"),
        ("translation", "bleu", "bleu"),
        ("translation", "accuracy", "accuracy"),
    ],
)
def test_the_gate_decides_by_the_metric_that_was_chosen(tmp_path: Path, task: str, asked: str | None, metric: str) -> None:
    dataset, right = phrasebook(tmp_path / "data", task), dict(zip(ENGLISH, GERMAN, strict=True))
    wrong = {text: f"{said} {said}" for text, said in right.items()}  # as many errors as words
    good, twice = phrases(tmp_path / "good", right), phrases(tmp_path / "twice", wrong)
    policy, decisions = GatePolicy.model_validate({"max_accuracy_drop": 10, "metric": asked}), {}
    for name, pair in {"same": (good, good), "worse": (twice, good), "blind": (twice, twice)}.items():
        (tmp_path / name).mkdir()
        outputs, _ = evaluated(tmp_path / name, *pair, dataset, metric=asked)
        found = evidence(outputs)
        assert found.metric == metric
        decisions[name] = decide(policy, found)
    assert decisions["same"].allowed
    assert "It loses" in " ".join(decisions["worse"].reasons)
    if metric in ("wer", "accuracy"):
        assert "Its baseline knows nothing of these rows" in " ".join(decisions["blind"].reasons)


def test_a_metric_that_does_not_fit_the_answers_is_refused(classes: Path, tmp_path: Path) -> None:
    version = linear(tmp_path / "v")
    with pytest.raises(Invalid, match="judged by accuracy, not by bleu"):
        evaluated(tmp_path, version, version, classes, metric="bleu")
    features = {**{name: Feature(type="float") for name in COLUMNS}, "said": Feature(type="text")}
    write(tmp_path / "texts", features, {"report": {name: [1.0] if name in COLUMNS else ["yes"] for name in features}}, "said")
    with pytest.raises(Invalid, match="target 'said' is of type text; the model answers labels or numbers"):
        evaluated(tmp_path / "texts", version, version, tmp_path / "texts")


def test_a_model_that_writes_the_names_of_classes_tells_them_apart(tmp_path: Path) -> None:
    rows = {"text": [f"row {row}" for row in range(40)], "kind": [row % 2 for row in range(40)]}
    few = {"text": ["other"], "kind": [0]}
    features = {"text": Feature(type="text"), "kind": Feature(type="label", names=LABELS)}
    write(tmp_path / "data", features, {"calibrate": few, "select": few, "report": rows}, "kind")
    said = {text: f" {LABELS[kind]}\n" for text, kind in zip(rows["text"], rows["kind"], strict=True)}
    odd = {**said, "row 0": "lowly", "row 2": "high"}
    outputs, context = evaluated(tmp_path, phrases(tmp_path / "odd", odd), phrases(tmp_path / "good", said), tmp_path / "data")
    assert evidence(outputs).drop == Paired(38, 2, 0, 0)
    assert (context.facts["f1"]["original"], context.facts["others"]) == (1.0, [])
