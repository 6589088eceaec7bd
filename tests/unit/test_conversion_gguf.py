"""GGUF of small models of every family: transformers' own reader finds the weights and answers as the model did."""

from __future__ import annotations

import json

import gguf
import pytest
import tiny_language
import torch

from modelyard.conversion.base import CONVERTERS
from modelyard.conversion.gguf import FILE, prove, read_back, write
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.huggingface import open_model
from modelyard.errors import Invalid
from modelyard.optimisation.language.walk import Walk

CARD = ModelCard(
    task="text-generation",
    engines=("transformers",),
    files={"config": "config.json", "weights": "model.safetensors"},
    inputs=(TensorCard(name="input_ids", datatype="INT64", shape=(-1, -1)),),
    outputs=(TensorCard(name="logits", datatype="FP32"),),
)
SIZE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


def model_in(folder, family: str, **changes):
    """A tiny model of that family in a new folder."""
    import transformers

    tiny_language.llama(folder, **SIZE)
    known = len(transformers.AutoTokenizer.from_pretrained(folder))
    config = getattr(transformers, f"{family}Config")(
        vocab_size=known, num_hidden_layers=2, max_position_embeddings=64, eos_token_id=1, pad_token_id=0, **{**SIZE, **changes}
    )
    torch.manual_seed(1)
    made = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():  # vectors as trained ones: none is one or nought alone
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Llama", {"tie_word_embeddings": True}),
        ("Llama", {"tie_word_embeddings": False}),
        ("Mistral", {"sliding_window": None}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 128}),
    ],
)
@pytest.mark.parametrize("kind", [None, "q8_0", "q4_0", "q4_1"])
def test_another_reader_finds_what_was_written(tmp_path, family, changes, kind):
    folder, out = tmp_path / "model", tmp_path / "out"
    model_in(folder, family, **changes)
    out.mkdir()
    model, _ = open_model(folder, "AutoModelForCausalLM", dtype=torch.float32)
    walk = Walk(model, lambda _: kind)
    walk.nearest()
    card = write(model, folder, CARD, out, walk.rounded)
    again = read_back(out)
    assert prove(model, walk.rounded, again) == len(dict(model.named_parameters()))
    assert (card.engines, card.files) == (("genai",), {"gguf": FILE})
    tokens = torch.tensor([[5, 9, 12, 40, 7]])
    with torch.no_grad():
        assert torch.allclose(
            again(input_ids=tokens).logits, model(input_ids=tokens).logits, atol=1e-2 if kind is None else 1e-4
        )


def test_the_tokens_are_the_tokenizer_s(tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    tiny_language.llama(folder, **SIZE)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 1, 9, 10, 100000]}')
    (folder / "LICENSE").write_text("free")
    out.mkdir()
    CONVERTERS.get("gguf").convert(folder, CARD, out, {})
    assert (out / "LICENSE").read_text() == "free"
    fields = gguf.GGUFReader(out / FILE).fields
    said = json.loads((folder / "tokenizer.json").read_text())
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.ggml.tokens"].contents() == [
        name for name, _ in sorted({**said["model"]["vocab"], **{a["content"]: a["id"] for a in said["added_tokens"]}}.items(),
                                   key=lambda pair: pair[1])
    ]  # fmt: skip
    kinds = fields["tokenizer.ggml.token_type"].contents()
    assert kinds[0] == gguf.TokenType.CONTROL
    assert kinds[50] == gguf.TokenType.NORMAL
    assert [fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("eos", "eot", "eom")] == [1, 7, 9]
    assert read_back(out).num_parameters() > 0
    assert fields["tokenizer.chat_template"].contents() == tiny_language.CHAT


def templates(folder, *names):
    """The folder's chat templates as older versions of transformers wrote several."""
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    listed = [{"name": name, "template": f"{name}: {tiny_language.CHAT}"} for name in names]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": listed}))


def test_of_several_chat_templates_the_default_is_written(tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    tiny_language.llama(folder, **SIZE)
    templates(folder, "tool_use", "default")
    out.mkdir()
    CONVERTERS.get("gguf").convert(folder, CARD, out, {})
    assert gguf.GGUFReader(out / FILE).fields["tokenizer.chat_template"].contents() == f"default: {tiny_language.CHAT}"


def test_several_chat_templates_without_a_default_are_refused(tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    tiny_language.llama(folder, **SIZE)
    templates(folder, "tool_use", "rag")
    out.mkdir()
    with pytest.raises(Invalid, match="chat templates are tool_use, rag;"):
        CONVERTERS.get("gguf").convert(folder, CARD, out, {})


def test_the_same_model_gives_the_same_bytes(tmp_path):
    folder = tmp_path / "model"
    tiny_language.llama(folder, **SIZE)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        CONVERTERS.get("gguf").convert(folder, CARD, tmp_path / name, {})
    assert (tmp_path / "one" / FILE).read_bytes() == (tmp_path / "two" / FILE).read_bytes()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}, "positions are scaled"),
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "activation"),
    ],
)
def test_what_gguf_cannot_say_is_refused(tmp_path, changes, said):
    folder, out = tmp_path / "model", tmp_path / "out"
    model_in(folder, "Llama", **changes)
    out.mkdir()
    with pytest.raises(Invalid, match=said):
        CONVERTERS.get("gguf").convert(folder, CARD, out, {})


def test_a_window_is_refused_unless_it_sees_all(tmp_path):
    (tmp_path / "out").mkdir()
    model_in(tmp_path / "wide", "Mistral", sliding_window=64)
    CONVERTERS.get("gguf").convert(tmp_path / "wide", CARD, tmp_path / "out", {})
    model_in(tmp_path / "narrow", "Mistral", sliding_window=32)
    with pytest.raises(Invalid, match="window"):
        CONVERTERS.get("gguf").convert(tmp_path / "narrow", CARD, tmp_path / "out", {})


def test_an_architecture_that_gguf_has_no_form_of_here_is_named(tmp_path):
    folder = tmp_path / "model"
    model_in(folder, "Gemma", head_dim=16)
    with pytest.raises(Invalid, match=r"GemmaForCausalLM has no form in GGUF here; there are LlamaForCausalLM"):
        CONVERTERS.get("gguf").convert(folder, CARD, tmp_path, {})


@pytest.mark.parametrize(
    "rule", [{"type": "Whitespace"}, {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}, None]
)
def test_a_tokenizer_that_cuts_otherwise_is_refused(tmp_path, rule):
    folder, out = tmp_path / "model", tmp_path / "out"
    tiny_language.llama(folder, **SIZE)
    said = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**said, "pre_tokenizer": rule}))
    out.mkdir()
    with pytest.raises(Invalid, match="cuts words by a rule"):
        CONVERTERS.get("gguf").convert(folder, CARD, out, {})


def test_another_weight_in_the_file_is_named(tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    model = tiny_language.llama(folder, **SIZE)
    out.mkdir()
    write(model, folder, CARD, out)
    again = read_back(out)
    with torch.no_grad():
        again.model.layers[1].mlp.up_proj.weight[3, 4] += 1
    with pytest.raises(Invalid, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        prove(model, {}, again)
