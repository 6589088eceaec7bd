"""Graphs with a cache of small models of many families go on, token by token, as transformers does with the same weights."""

from __future__ import annotations

import json
import warnings

import numpy as np
import onnxruntime
import pytest
import tiny_language
import torch

from modelyard.conversion import decoders, decoding
from modelyard.conversion.base import CONVERTERS, WORST
from modelyard.conversion.config import ImportModelConfig
from modelyard.conversion.importing import run
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.huggingface import open_model
from modelyard.errors import Invalid
from modelyard.kinds import FolderContext, FolderOutputs, FolderView, Input

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]
CARD = ModelCard(
    task="text-generation",
    engines=("transformers",),
    files={"config": "config.json", "weights": "model.safetensors"},
    inputs=(TensorCard(name="input_ids", datatype="INT64", shape=(-1, -1)),),
    outputs=(TensorCard(name="logits", datatype="FP32"),),
)
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "initializer_range": 0.3}  # fmt: skip
PAIR = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "init_std": 0.3, "decoder_start_token_id": 1}  # fmt: skip
FAMILIES = {
    "GPT2LMHeadModel": {"n_embd": 16, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
    "MistralForCausalLM": {**SIZE, "sliding_window": 6},
    "Qwen3ForCausalLM": {**SIZE, "head_dim": 8},
    "BartForConditionalGeneration": PAIR,
    "MarianMTModel": PAIR,
    "T5ForConditionalGeneration": {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 1,
                                   "num_heads": 4, "initializer_factor": 3.0, "decoder_start_token_id": 0},
}  # fmt: skip


def model_in(folder, family: str, **changes):
    """A tiny model of that class, with a tokenizer, in a new folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        folder.mkdir()
        known = len(tiny_language.tokenizer(folder))
        config = getattr(transformers, family).config_class(
            vocab_size=known, max_position_embeddings=64, eos_token_id=1, pad_token_id=0, bos_token_id=1, **changes
        )
        torch.manual_seed(1)
        made = getattr(transformers, family)(config).eval()
        made.save_pretrained(folder)
    return made


def converted(tmp_path, model):
    out = tmp_path / "out"
    out.mkdir()
    return out, CONVERTERS.get("onnx").convert(tmp_path / "model", CARD, out, {}), model


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return converted(folder, tiny_language.llama(folder / "model", initializer_range=0.3))


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bart")
    family = "BartForConditionalGeneration"
    return converted(folder, model_in(folder / "model", family, **FAMILIES[family]))


def feed(session, given):
    return dict(zip([one.name for one in session.get_outputs()], session.run(None, given), strict=True))


def nothing(session, rows, kept=()):
    """A past of no tokens, by what the graph itself states."""
    return {one.name: np.zeros((rows, one.shape[1], 0, one.shape[3]), np.float32) for one in session.get_inputs()
            if one.name.startswith("past_") and one.name not in kept}  # fmt: skip


def past(made):
    return {name.replace("present", "past_key_values"): array for name, array in made.items() if name.startswith("present")}


def test_tensors_are_called_and_shaped_as_elsewhere(llama):
    folder, card, _ = llama
    cache = [f"{layer}.{what}" for layer in (0, 1) for what in ("key", "value")]
    assert [spec.name for spec in card.inputs] == ["input_ids", "attention_mask", *[f"past_key_values.{at}" for at in cache]]
    assert [spec.name for spec in card.outputs] == ["logits", *[f"present.{at}" for at in cache]]
    assert {spec.shape for spec in card.inputs} == {(-1, -1), (-1, 2, -1, 4)}
    assert card.outputs[0].shape == (-1, -1, 308)
    assert (card.engines, card.files) == (("onnx",), {"onnx": "model.onnx", "config": "config.json"})
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.json"} <= {
        p.name for p in folder.iterdir()
    }


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("length", [1, 5, 17])
def test_a_loop_of_one_s_own_goes_on_as_generate_does(llama, rows, length):
    """Plain onnxruntime, with padding on the left, the graph's own likeliest token fed back."""
    folder, _, model = llama
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    ids = np.random.default_rng(rows * length).integers(5, 300, (rows, length))
    mask = (np.arange(length) >= np.array([0, length // 2, length - 1])[:rows, None]).astype(np.int64)
    wanted = model.generate(
        input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False, max_new_tokens=6, min_new_tokens=6
    ).numpy()
    given, text, kept = ids, ids, nothing(session, rows)
    for _ in range(6):
        made = feed(session, {"input_ids": given, "attention_mask": mask, **kept})
        logits = made["logits"][:, -1].copy()
        logits[:, 1] = -np.inf  # the end, which generate was told not to come to
        given, kept = logits.argmax(-1)[:, None], past(made)
        text, mask = np.hstack([text, given]), np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
    assert text.tolist() == wanted.tolist()


def test_a_text_may_be_read_in_pieces_of_any_length(llama):
    folder, _, model = llama
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    ids = np.random.default_rng(7).integers(5, 300, (2, 20))
    kept, told = nothing(session, 2), []
    for start, stop in ((0, 3), (3, 4), (4, 12), (12, 20)):
        made = feed(session, {"input_ids": ids[:, start:stop], "attention_mask": np.ones((2, stop), np.int64), **kept})
        told.append(made["logits"])
        kept = past(made)
    with torch.inference_mode():
        wanted = model(input_ids=torch.tensor(ids)).logits.numpy()
    assert np.abs(np.concatenate(told, axis=1) - wanted).max() < 1e-4


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_families_are_proved(tmp_path, family):
    model_in(tmp_path / "model", family, **FAMILIES[family])
    out, card, _ = converted(tmp_path, None)
    model, _ = open_model(tmp_path / "model", decoders.SEQUENCES if "encoder" in card.files else "AutoModelForCausalLM")
    found = decoding.prove(model, tmp_path / "model", out, card, keep=tmp_path)
    assert found.ok
    assert (found.rows, found.batches, found.tolerance) == (9, (1, 2, 3), 1e-3)
    assert 0 < found.max_abs < 1e-4
    assert not (tmp_path / WORST).exists()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("length", [1, 5, 17])
def test_an_encoder_decoder_goes_on_as_generate_does(bart, rows, length):
    folder, card, model = bart
    encoder = onnxruntime.InferenceSession(folder / card.files["encoder"])
    decoder = onnxruntime.InferenceSession(folder / card.files["onnx"])
    ids = np.random.default_rng(rows * length).integers(5, 300, (rows, length))
    mask = (np.arange(length) < length - np.array([0, length // 2, length - 1])[:rows, None]).astype(np.int64)
    wanted = model.generate(
        input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False, num_beams=1, max_new_tokens=6,
        min_new_tokens=6, forced_eos_token_id=None,
    ).numpy()  # fmt: skip
    seen = feed(encoder, {"input_ids": ids, "attention_mask": mask})
    assert seen["last_hidden_state"].shape == (rows, length, 16)
    other = past(seen)
    text = given = np.ones((rows, 1), np.int64)
    kept = nothing(decoder, rows, other)
    for _ in range(6):
        made = feed(decoder, {"input_ids": given, "encoder_attention_mask": mask, **other, **kept})
        logits = made["logits"][:, -1].copy()
        logits[:, 1] = -np.inf
        given, kept = logits.argmax(-1)[:, None], past(made)
        text = np.hstack([text, given])
    assert text.tolist() == wanted.tolist()


def test_the_same_weights_give_the_same_bytes(llama, tmp_path):
    folder, _, _ = llama
    CONVERTERS.get("onnx").convert(folder.parent / "model", CARD, tmp_path, {})
    assert (tmp_path / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()
    assert str(folder.parent).encode() not in (folder / "model.onnx").read_bytes()


def test_another_model_s_graph_fails_and_the_worst_row_is_kept(llama, tmp_path):
    folder, card, _ = llama
    other = tiny_language.llama(tmp_path / "other", seed=9, initializer_range=0.3)
    with pytest.raises(Invalid, match=r"not the same: output 'logits' differs by .* allowed 0\.001\)\. That input is kept"):
        decoding.prove(other, tmp_path / "other", folder, card, keep=tmp_path)
    kept = np.load(tmp_path / WORST)
    assert {name: kept[name].shape for name in kept} == {"input_ids": (1, 5), "attention_mask": (1, 5)}


def test_a_graph_that_goes_on_with_another_token_fails(llama, tmp_path):
    folder, card, model = llama
    candidate = decoding.open_graphs(folder, card)
    batch = next(decoding.samples(model, folder.parent / "model"))
    decoding._goes_on(candidate, batch, tmp_path)
    batch["input_ids"][1, -2] += 1
    with pytest.raises(Invalid, match=r"at step 3 of row 1"):
        decoding._goes_on(candidate, batch, tmp_path)
    assert (np.load(tmp_path / WORST)["input_ids"] == batch["input_ids"][1:2]).all()


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("MambaForCausalLM", {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}, "MambaForCausalLM.*past_key_values"),
        ("FalconH1ForCausalLM", {**SIZE, "mamba_d_ssm": 16, "mamba_n_heads": 4, "mamba_d_head": 4, "mamba_d_state": 8},
         "FalconH1ForCausalLM as a graph with a cache: layer 0 keeps a LinearAttentionAndFullAttentionLayer"),
        ("MixtralForCausalLM", {**SIZE, "num_hidden_layers": 1, "num_local_experts": 4},
         r"no operator for transformers\.grouped_mm_fallback, which layer 'model\.model\.layers\.0\.mlp\.experts'"),
    ],
)  # fmt: skip
def test_what_has_no_such_graph_is_refused_in_a_line(tmp_path, family, changes, said):
    model_in(tmp_path / "model", family, **changes)
    with pytest.raises(Invalid, match=said) as caught:
        converted(tmp_path, None)
    assert "\n" not in caught.value.message


def imported(tmp_path, **config):
    (tmp_path / "work").mkdir()
    outputs = FolderOutputs(tmp_path / "published")
    files = {"files": Input("artefact:f", {}, FolderView(tmp_path / "model", "f"))}
    run(ImportModelConfig(**config), files, outputs, FolderContext(tmp_path / "work"))
    return outputs.published["model"]


def test_a_language_model_is_imported_with_its_graph_where_that_is_asked_for(tmp_path):
    tiny_language.llama(tmp_path / "model")
    version = imported(tmp_path, onnx=True)
    card = ModelCard.load(version["folder"])
    assert card.engines == ("onnx", "transformers")
    assert card.files == {
        "config": "config.json",
        "weights": "model.safetensors",
        "tokenizer": "tokenizer.json",
        "onnx": "model.onnx",
    }
    assert version["metadata"]["verification"]["rows"] == 9
    assert "the same tokens as generate" in (version["folder"] / "README.md").read_text()
    assert decoding.open_graphs(version["folder"], card).signature.outputs[0].name == "logits"


def test_an_encoder_decoder_is_imported_with_both_graphs(tmp_path):
    model_in(tmp_path / "model", "MarianMTModel", **FAMILIES["MarianMTModel"])
    version = imported(tmp_path, task="summarization")
    card = ModelCard.load(version["folder"])
    assert (card.task, card.engines) == ("summarization", ("onnx", "transformers"))
    assert (card.files["onnx"], card.files["encoder"]) == (decoders.DECODER, decoders.ENCODER)
    assert json.loads((version["folder"] / "config.json").read_text())["model_type"] == "marian"


def test_a_graph_is_not_asked_for_of_what_generates_no_text(tmp_path):
    tiny_language.bert(tmp_path / "model")
    with pytest.raises(Invalid, match="generates no text"):
        imported(tmp_path, onnx=True)
