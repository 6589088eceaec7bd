"""A tiny language model through `optimise`: a file that another reader finds as it was meant, figures, and what is refused."""

from __future__ import annotations

import json
import random
from collections import Counter

import gguf
import pytest
import tiny_datasets
import tiny_language
import torch
from test_conversion_gguf import CARD, SIZE

from modelyard.conversion.gguf import FILE, KIND, read_back
from modelyard.data.datasets import Dataset, Feature
from modelyard.engines.base import ModelCard
from modelyard.engines.huggingface import open_model, open_tokenizer
from modelyard.errors import Invalid
from modelyard.kinds import FolderContext, FolderOutputs, FolderView, Input
from modelyard.optimisation import optimise
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.evidence import Evidence
from modelyard.optimisation.language.texts import Texts, foretell, some


def dataset(folder, *, alike: int = 0, rows: int = 40, of: str = "calibrate", **several: int):
    """Texts by split, as many as `several` says or else `rows`, no two alike but the first `alike` of calibrate (or another)
    and report."""
    chance, splits = random.Random(0), {}
    for name in ("train", "calibrate", "select", "report"):
        texts = range(several.get(name, rows))
        splits[name] = {"text": [" ".join(chance.choices(tiny_language.TEXTS, k=3)) for _ in texts]}
    splits["report"]["text"][:alike] = splits[of]["text"][:alike]
    tiny_datasets.write(folder, {"text": Feature(type="text")}, splits, None)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    tiny_language.learned(root / "model", **SIZE)
    CARD.save(root / "model")
    dataset(root / "data")
    return {
        "model": Input("tiny@1", {}, FolderView(root / "model", "aa")),
        "dataset": Input("texts@1", {}, FolderView(root / "data", "bb")),
    }


def optimised(inputs, folder, **config):
    (folder / "work").mkdir()
    outputs, context = FolderOutputs(folder / "out"), FolderContext(folder / "work")
    optimise.run(OptimiseConfig(**{"max_accuracy_drop": 50, "goal": "size", **config}), inputs, outputs, context)
    return outputs, context


@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory):
    return optimised(inputs, tmp_path_factory.mktemp("done"))


def test_eight_and_four_bits_are_made_and_the_smaller_is_best(done):
    outputs, context = done
    assert list(outputs.published) == ["q8_0", "q4_0"]
    assert outputs.published["q4_0"]["alias"] == "best"
    rows = {row["variant"]: row for row in context.facts["table"]}
    assert rows["original"]["drop"] == 0
    assert rows["q4_0"]["size"] < rows["q8_0"]["size"] < rows["original"]["size"]
    assert abs(rows["q8_0"]["drop"]) < 0.5
    assert -0.5 < rows["q4_0"]["drop"] < 50
    assert all(rows[name]["p50_ms"] > 0 and rows[name]["items_per_s"] > 0 for name in ("q8_0", "q4_0"))
    assert all(rows[name]["memory"] > 1 << 20 for name in ("q8_0", "q4_0"))
    assert rows["original"]["memory"] is None  # nothing serves it
    json.dumps(context.facts, allow_nan=False)


def test_a_variant_carries_all_that_it_takes_to_serve_it_and_the_evidence(done):
    made = done[0].published["q4_0"]
    card = ModelCard.load(made["folder"])
    assert (card.task, card.engines, card.files) == ("text-generation", ("genai",), {"gguf": FILE})
    assert {"README.md", "optimisation.json", "tokenizer.json"} <= {path.name for path in made["folder"].iterdir()}
    assert 'LLMPipeline("model.gguf"' in (made["folder"] / "README.md").read_text()
    found = Evidence.from_json(made["metadata"]["evaluation"]["evidence"])
    report = made["metadata"]["report"]
    assert (found.metric, found.rows) == ("perplexity", report["rows"])
    assert found.drop.drop == pytest.approx(report["drop"]["value"])
    assert found.variant == pytest.approx(report["chosen"]["value"])
    assert read_back(made["folder"]).num_parameters() > 0


def test_one_step_makes_one_variant_and_says_how(inputs, tmp_path):
    outputs, _ = optimised(inputs, tmp_path, steps=["quantize:q4_1,rounding=nearest,eight_bit_layers=*down_proj"])
    (name,) = outputs.published
    assert name == "q4_1-nearest"
    metadata = outputs.published[name]["metadata"]
    assert metadata["steps"] == [{"step": 'quantize:q4_1,rounding=nearest,eight_bit_layers=["*down_proj"]'}]
    assert metadata["verification"]["tensors"] > metadata["verification"]["rounded"]


@pytest.mark.parametrize(
    ("steps", "name", "kind"),
    [
        (("prune:weights=0.3,by=sparsegpt,rows=4",), "prune30-sparsegpt", "F16"),
        (('prune:weights=0.5,pattern="2:4"', "quantize:q4_0,tune=1"), "prune50-2of4+q4_0-tuned", "Q4_0"),
    ],
)
def test_what_is_pruned_is_nought_in_the_file(inputs, tmp_path, steps, name, kind):
    outputs, context = optimised(inputs, tmp_path, steps=steps, max_accuracy_drop=1e6)
    (made,) = outputs.published.values()
    assert made["metadata"]["variant"] == name
    again, columns = read_back(made["folder"]), SIZE["hidden_size"]
    layer = again.model.layers[0]
    noughts = (layer.mlp.up_proj.weight == 0).sum(1)
    least = int(0.3 * columns) if kind == "F16" else columns // 2
    assert (noughts == least).all() if kind == "F16" else (noughts >= least).all()
    if kind != "F16":
        assert ((layer.self_attn.q_proj.weight == 0).view(columns, -1, 4).sum(-1) >= 2).all()
    assert (again.get_input_embeddings().weight == 0).float().mean() < 0.1
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(made["folder"] / FILE).tensors}
    assert types["blk.0.ffn_up.weight"] == kind
    proof = made["metadata"]["verification"]
    assert proof["pruned"] == pytest.approx(0.3 if kind == "F16" else 0.5, abs=0.01)
    assert proof["pruned"] <= proof["sparsity"] < proof["pruned"] + 0.2
    assert [step["step"] for step in context.facts["steps"]] == list(steps)
    assert context.facts["steps"][0]["sparsity"] == proof["sparsity"]
    assert made["metadata"]["select"]["items_per_s"] > 0
    assert "is nought in the file, which makes no engine here faster" in (made["folder"] / "README.md").read_text()


def test_a_config_is_the_same_once_it_was_kept():
    for step in ("quantize:q4_1", "quantize:static-int8", "quantize:dynamic-int8,sensitive=2", "quantize:q4_0,embeddings=q4_0"):
        config = OptimiseConfig(steps=[step])
        assert OptimiseConfig.model_validate(config.model_dump(mode="json")) == config
    for step in ("quantize:q4_0,sensitive=2", "quantize:static-int8,embeddings=q4_0"):
        with pytest.raises(Invalid, match="no option of"):
            OptimiseConfig(steps=[step])


def test_layers_stay_as_they_are_named_whichever_name_they_go_by(inputs, tmp_path):
    small, large = tmp_path / "small", tmp_path / "large"
    for folder, more in ((small, ""), (large, ",float_layers=lm_head")):
        folder.mkdir()
        outputs, _ = optimised(inputs, folder, steps=[f"quantize:q4_0,rounding=nearest{more}"])
        (made,) = outputs.published.values()
        types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(made["folder"] / FILE).tensors}
        assert types["token_embd.weight"] == ("Q8_0" if folder is small else "F16")
        assert types["blk.0.ffn_up.weight"] == "Q4_0"
    (tmp_path / "none").mkdir()
    with pytest.raises(Invalid, match=r"'head' is the name of no layer"):
        optimised(inputs, tmp_path / "none", steps=["quantize:q4_0,float_layers=head"])


def test_an_original_that_knows_nothing_proves_nothing(inputs, tmp_path):
    tiny_language.llama(tmp_path / "model", **SIZE)
    CARD.save(tmp_path / "model")
    with pytest.raises(Invalid, match="no better than chance"):
        optimised({**inputs, "model": Input("fresh@1", {}, FolderView(tmp_path / "model", "cc"))}, tmp_path)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (["prune:channels=0.5"], "'prune:channels=0.5' is not for language models.*prune:weights"),
        (["prune:weights=0.5", "finetune"], "'finetune' is not for language models"),
        (["quantize:dynamic-int8"], "they are quantised to q8_0, q5_0, q4_1, q4_0"),
        (["prune:weights=0.5", "prune:weights=0.1", "quantize:q4_0"], "is pruned once"),
    ],
)
def test_steps_for_other_models_are_refused(inputs, tmp_path, steps, said):
    with pytest.raises(Invalid, match=said):
        optimised(inputs, tmp_path, steps=steps)


def test_variants_of_graphs_are_refused_with_what_to_give_instead(inputs, tmp_path):
    with pytest.raises(Invalid, match=r"'variants' are of graphs \(fp32, litert\).* by steps, as quantize:q8_0"):
        optimised(inputs, tmp_path, variants=("fp32", "litert"))


def test_texts_that_calibrate_and_judge_are_refused(inputs, tmp_path):
    dataset(tmp_path / "data", alike=10)
    with pytest.raises(Invalid, match=r"10 of 40 texts of the split 'report' are in calibrate or select as well"):
        optimised({**inputs, "dataset": Input("texts@2", {}, FolderView(tmp_path / "data", "cc"))}, tmp_path)


def test_texts_that_choose_and_are_reported_are_left_out_or_refused_before_anything_is_made(inputs, tmp_path):
    for name, alike in (("few", 3), ("many", 10)):
        (folder := tmp_path / name).mkdir()
        dataset(folder / "data", alike=alike, of="select")
        given = {**inputs, "dataset": Input("texts@2", {}, FolderView(folder / "data", "cc"))}
        if name == "few":
            _, context = optimised(given, folder, steps=["quantize:q8_0"])
            assert context.facts["report"]["left_out"] == 3
        else:
            with pytest.raises(Invalid, match=r"10 of 40 texts of the split 'report' are in calibrate or select as well"):
                optimised(given, folder)
            assert list((folder / "work").iterdir()) == []


def test_parts_of_one_text_prove_no_more_than_it(inputs, tmp_path):
    texts = [" ".join(random.Random(seed).choices(tiny_language.TEXTS, k=40)) for seed in range(9)]
    tiny_datasets.write(tmp_path / "data", {"text": Feature(type="text")}, {"report": {"text": texts}}, None)
    folder = inputs["model"].view.local()
    model, _ = open_model(folder, KIND, dtype=torch.float32)
    found = Texts.of(Dataset.open(tmp_path / "data"), open_tokenizer(folder), model)
    blocks, _ = found.blocks("report", (), lambda: None)
    assert len(blocks.targets) > 40
    assert foretell(model, blocks, lambda: None).independent <= 9
    assert set(some(blocks, 10, 0).groups) <= set(blocks.groups)


def test_it_takes_as_many_processors_as_the_job_was_given(inputs, tmp_path, monkeypatch):
    seen = set()

    class Context(FolderContext):
        def check(self):
            seen.add(torch.get_num_threads())

    monkeypatch.setenv("RANK_CPUS", "3")
    (tmp_path / "work").mkdir()
    config = OptimiseConfig(max_accuracy_drop=50, goal="size", steps=["quantize:q8_0"])
    optimise.run(config, inputs, FolderOutputs(tmp_path / "out"), Context(tmp_path / "work"))
    assert seen == {3}


def test_too_few_texts_are_refused(inputs, tmp_path):
    dataset(tmp_path / "data", rows=5)
    with pytest.raises(Invalid, match=r"has 5 texts; at least 8"):
        optimised({**inputs, "dataset": Input("texts@2", {}, FolderView(tmp_path / "data", "cc"))}, tmp_path)


def test_a_budget_that_nothing_meets_says_how_close_the_best_came(inputs, tmp_path):
    (tmp_path / "work").mkdir()
    config = OptimiseConfig(max_accuracy_drop=0, goal="size", steps=["quantize:q4_0,embeddings=q4_0,rounding=nearest"])
    with pytest.raises(Invalid, match=r"the nearest, q4_0-nearest, loses"):
        optimise.run(config, inputs, FolderOutputs(tmp_path / "out"), FolderContext(tmp_path / "work"))


def test_scales_that_are_tuned_lose_less(inputs, tmp_path):
    lost = {}
    for epochs in (0, 4):
        (folder := tmp_path / str(epochs)).mkdir()
        _, context = optimised(inputs, folder, steps=[f"quantize:q4_0,embeddings=q4_0,tune={epochs},tune_lr=0.005"])
        name = "q4_0-tuned" if epochs else "q4_0"
        lost[epochs] = next(row["drop"] for row in context.facts["table"] if row["variant"] == name)
    assert lost[4] < 0.9 * lost[0]


def test_the_mean_weight_has_so_many_bits_and_the_file_says_which_have_more(inputs, tmp_path):
    outputs, context = optimised(inputs, tmp_path, steps=["quantize:q4_0,bits=5.2"])
    (name,) = outputs.published
    assert name == "q4_0-5.2bits"
    tensors = gguf.GGUFReader(outputs.published[name]["folder"] / FILE).tensors
    kinds = {tensor.name: tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1}
    sizes = {tensor.name: int(tensor.n_elements) for tensor in tensors if tensor.name in kinds}
    bits = {"Q4_0": 4.5, "Q5_0": 5.5, "Q8_0": 8.5}
    assert len(set(kinds.values())) > 1
    assert set(kinds.values()) <= set(bits)
    mean = sum(bits[kinds[name]] * size for name, size in sizes.items()) / sum(sizes.values())
    assert 4.8 < mean <= 5.2
    (step,) = context.facts["steps"]
    assert {kind.upper(): len(names) for kind, names in step["finer"].items()} == {
        kind: number for kind, number in Counter(kinds.values()).items() if kind != "Q4_0"
    }


@pytest.mark.parametrize(
    ("step", "words"), [("q8_0,bits=5", "bits: no option of q8_0"), ("q4_0,bits=4.4", "more than bits=4.4")]
)
def test_bits_that_cannot_be_had_are_refused(inputs, tmp_path, step, words):
    with pytest.raises(Exception, match=words):
        optimised(inputs, tmp_path, steps=[f"quantize:{step}"])
