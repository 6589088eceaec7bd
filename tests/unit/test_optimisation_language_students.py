"""Students of a tiny language model: better than what was cut, beside a control of equal budget, and in a file."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest
import tiny_language
import torch
from test_conversion_gguf import CARD, SIZE
from test_optimisation_language_run import dataset, optimised
from torch.nn.functional import cross_entropy

from modelyard.conversion.gguf import KIND, read_back
from modelyard.data.datasets import Dataset
from modelyard.engines.huggingface import open_model, open_tokenizer
from modelyard.errors import Invalid
from modelyard.kinds import FolderContext, FolderView, Input
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.language.students import distil, worth
from modelyard.optimisation.language.texts import Texts, foretell
from modelyard.optimisation.steps.config import Distil
from modelyard.optimisation.steps.cut import cut, learn
from modelyard.training.recipes.causal_lm import predict

LR = 3e-3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A teacher of four layers that has read all texts of the train split ten times."""
    root = tmp_path_factory.mktemp("inputs")
    tiny_language.llama(folder := root / "model", **SIZE, num_hidden_layers=4)
    CARD.save(folder)
    dataset(root / "data", train=300)
    given = {
        "model": Input("tiny@1", {}, FolderView(folder, "aa")),
        "dataset": Input("texts@1", {}, FolderView(root / "data", "bb")),
    }
    blocks, model = texts(given, "train"), fresh(folder)

    def loss(rows):
        logits = predict(model, torch.from_numpy(blocks.inputs[rows]))
        found = cross_entropy(logits.flatten(0, 1), torch.from_numpy(blocks.targets[rows]).long().flatten())
        found.backward()
        return float(found.detach())

    learn(model, loss, len(blocks.targets), 8, epochs=10, lr=LR, seed=0, check=check, say=lambda _: None)
    model.save_pretrained(folder)
    return given


def fresh(folder):
    return open_model(folder, KIND, dtype=torch.float32)[0]


def texts(inputs, split, most=None):
    folder = inputs["model"].view.local()
    found = Texts.of(Dataset.open(inputs["dataset"].view.local()), open_tokenizer(folder), fresh(folder))
    return found.blocks(split, (), check, most)[0]


def check() -> None: ...


def taught(inputs, tmp_path, step):
    (tmp_path / "work").mkdir()
    folder = inputs["model"].view.local()
    blocks = texts(inputs, "train", step.rows)
    return distil(partial(fresh, folder), folder, step, blocks, 0, FolderContext(tmp_path / "work")), blocks


@pytest.mark.parametrize(
    "step",
    [
        Distil(layers=2, epochs=10, lr=LR, rows=12),
        Distil(layers=1, epochs=10, lr=LR, rows=12, alpha=1, temperature=2, features=0.1),
    ],
)
def test_a_student_foretells_better_than_what_was_cut_and_than_its_control_which_had_as_much(inputs, tmp_path, step):
    lesson, train = taught(inputs, tmp_path, step)
    report, folder = texts(inputs, "report"), inputs["model"].view.local()
    kept = cut(student := fresh(folder), step.layers)
    assert lesson.told["layers"] == kept == ([0, 3] if step.layers == 2 else [0])
    before, teacher = foretell(student, report, check), foretell(fresh(folder), report, check)
    found = worth(lesson, report, teacher, OptimiseConfig(), check)
    left = found["distilled"]["value"] - teacher.perplexity
    assert left < 0.2 * (before.perplexity - teacher.perplexity)
    assert found["teacher"]["value"] == teacher.perplexity
    curves = lesson.told["curves"]
    budget = [(epoch["rows"], epoch["steps"]) for epoch in curves["distil"]]
    assert budget == [(epoch["rows"], epoch["steps"]) for epoch in curves["control"]] == [(12, 1)] * 10
    assert lesson.told["tokens"] == train.learned
    assert found["gain"]["value"] == pytest.approx(100 * (found["control"]["value"] / found["distilled"]["value"] - 1))
    assert 0 < found["gain"]["low"] <= found["gain"]["value"] <= found["gain"]["high"]
    taught_weights, control = (fresh(part).state_dict() for part in (lesson.distilled, lesson.control))
    assert taught_weights.keys() == control.keys() == student.state_dict().keys()
    assert not any(torch.equal(taught_weights[name], control[name]) for name in control)


def test_a_student_is_rounded_and_told_of(inputs, tmp_path):
    steps = [f"distil:epochs=2,lr={LR},layers=2,rows=8", "prune:weights=0.3", "quantize:q4_0"]
    outputs, context = optimised(inputs, tmp_path, steps=steps, max_accuracy_drop=1e6)
    (made,) = outputs.published.values()
    metadata = made["metadata"]
    assert metadata["variant"] == "distil2+prune30+q4_0"
    assert read_back(made["folder"]).config.num_hidden_layers == 2
    lesson, prune, _ = metadata["steps"]
    assert lesson["layers"] == [0, 3]
    assert lesson["curves"]["distil"][0]["rows"] == 8
    assert "sparsity" not in lesson
    assert prune["sparsity"] == metadata["verification"]["sparsity"]
    for split in ("select", "report"):
        found = metadata["distillation"][split]
        assert all(
            found[name]["low"] <= found[name]["value"] <= found[name]["high"] for name in ("teacher", "distilled", "gain")
        )
    assert metadata["distillation"]["report"]["teacher"]["value"] == pytest.approx(metadata["report"]["original"]["value"])
    assert context.facts["distillation"] == metadata["distillation"]
    said = (made["folder"] / "README.md").read_text()
    assert "the control is the same layers, from the texts alone, trained for as long" in said
    assert "1. `distil:epochs=2,lr=0.003,layers=2,rows=8`" in said


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (["distil:layers=4"], "distil:layers=4: the teacher has 4 layers; a student of it has from 1 to 3"),
        (["distil:student.width=8"], "'distil:student=.*' is not for language models.*distil:layers=12"),
        (["prune:weights=0.5", "distil:layers=2"], "'distil:layers=2': a language model is distilled once, and first"),
        (["distil:layers=3", "distil:layers=2"], "'distil:layers=2': a language model is distilled once, and first"),
    ],
)
def test_students_that_cannot_be_are_refused(inputs, tmp_path, steps, said):
    with pytest.raises(Invalid, match=said):
        optimised(inputs, tmp_path, steps=steps)


@pytest.mark.parametrize(
    ("tokenizer", "calibrate", "steps", "said"),
    [
        ({"byte_fallback": True}, 40, ["quantize:q8_0"], "tokenizer is not of pairs of bytes"),
        ({}, 5, ["quantize:q4_0"], "The split 'calibrate' has 5 texts; at least 8"),
        ({}, 40, ["quantize:q4_0,float_layers=head"], "'head' is the name of no layer"),
        ({}, 40, ["prune:weights=0.001"], r"A share of 0\.001 of a matrix .* is 0 weights of each row"),
    ],
)
def test_what_could_not_be_made_of_the_student_is_refused_before_it_learns(inputs, tmp_path, tokenizer, calibrate, steps, said):
    shutil.copytree(inputs["model"].view.local(), tmp_path / "model")
    there = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    there["model"] |= tokenizer
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(there))
    dataset(tmp_path / "data", calibrate=calibrate)
    given = {
        "model": Input("tiny@2", {}, FolderView(tmp_path / "model", "cc")),
        "dataset": Input("texts@2", {}, FolderView(tmp_path / "data", "dd")),
    }
    with pytest.raises(Invalid, match=said):
        optimised(given, tmp_path, steps=["distil:layers=2", *steps])
    assert list((tmp_path / "work").iterdir()) == []


def test_a_dataset_with_too_few_texts_to_learn_is_refused(inputs, tmp_path):
    dataset(tmp_path / "data", train=5)
    given = {**inputs, "dataset": Input("texts@2", {}, FolderView(tmp_path / "data", "cc"))}
    with pytest.raises(Invalid, match=r"The split 'train' has 5 texts; at least 8"):
        optimised(given, tmp_path, steps=["distil:layers=2"])
