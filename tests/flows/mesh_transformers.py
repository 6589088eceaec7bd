"""`mesh_gang.py` for small models of transformers, whole and under LoRA, as the fine-tuning recipes make them."""

import warnings
from dataclasses import replace

import mesh_gang
import mesh_models
import torch
from forked_ranks import serve

from modelyard.training.config import Lora
from modelyard.training.recipes import lora
from modelyard.training.recipes.causal_lm import predict
from modelyard.training.recipes.finetuning import Wrapped
from modelyard.training.recipes.splits import split_of
from modelyard.training.recipes.transformers import read_text, see

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft  # noqa: F401 - once, before the ranks are forked
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        Olmo2Config,
        Olmo2ForCausalLM,
        Phi3Config,
        Phi3ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
        ViTConfig,
        ViTForImageClassification,
    )

WORDS, LENGTH, CLASSES = 96, 12, 3
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
LLAMA = {**SIZES, "vocab_size": WORDS, "num_key_value_heads": 2, "max_position_embeddings": 64}
OWN = {"tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
BERT = {**SIZES, "vocab_size": WORDS, "max_position_embeddings": 64, "num_labels": CLASSES, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0}  # fmt: skip
KINDS = {
    "llama": lambda changes: LlamaForCausalLM(LlamaConfig(**{**LLAMA, **changes})),
    "llama-classifier": lambda changes: LlamaForSequenceClassification(
        LlamaConfig(**{**LLAMA, "num_labels": CLASSES, "pad_token_id": 0, **changes})
    ),
    "qwen": lambda changes: Qwen3ForCausalLM(Qwen3Config(**{**LLAMA, "head_dim": 8, "tie_word_embeddings": False, **changes})),
    "gpt2": lambda changes: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=WORDS,
            n_embd=32,
            n_layer=4,
            n_head=4,
            n_positions=64,
            eos_token_id=1,
            bos_token_id=1,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=False,
            **changes,
        )
    ),
    "gemma": lambda changes: Gemma3ForCausalLM(
        Gemma3TextConfig(**{**LLAMA, **OWN, "head_dim": 8, "sliding_window": 4, **changes})
    ),
    "phi": lambda changes: Phi3ForCausalLM(Phi3Config(**{**LLAMA, **OWN, **changes})),
    "olmo": lambda changes: Olmo2ForCausalLM(Olmo2Config(**{**LLAMA, **OWN, **changes})),
    "neox": lambda changes: GPTNeoXForCausalLM(GPTNeoXConfig(**{**LLAMA, **changes})),
    "bert": lambda changes: BertForSequenceClassification(BertConfig(**{**BERT, **changes})),
    "vit": lambda changes: ViTForImageClassification(
        ViTConfig(**{**SIZES, "image_size": 8, "patch_size": 4, "num_labels": CLASSES, **changes})
    ),
}
CALLS = {"bert": read_text, "llama-classifier": read_text, "vit": see}


def made(kind, adapted=None, forgotten=None, **changes):
    """The network as a recipe makes it. `adapted`: the options of LoRA; `forgotten`: a style that its split leaves out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = KINDS[kind](changes)
        if adapted is not None:
            model = lora.wrap(model, Lora(**adapted), None, whole=("classifier",) if kind == "bert" else ())
    network = Wrapped(model, CALLS.get(kind, predict))
    said = split_of(model, "model")
    network.split = replace(said, tensor={name: style for name, style in said.tensor.items() if style != forgotten})
    return network


def blocks(draw, rows):
    """Two documents a row, of any lengths."""
    tokens, ends = torch.randint(WORDS, (rows, LENGTH + 1), generator=draw), torch.randint(1, LENGTH, (rows, 1), generator=draw)
    at = torch.arange(LENGTH)
    return torch.stack([tokens[:, :-1], torch.where(at < ends, at, at - ends)], dim=1), tokens[:, 1:]


def texts(draw, rows):
    """Tokens, and how many of them are there; a class."""
    lengths = torch.randint(3, LENGTH + 1, (rows, 1), generator=draw)
    there = (torch.arange(LENGTH) < lengths).long()
    tokens = torch.randint(1, WORDS, (rows, LENGTH), generator=draw) * there
    return torch.stack([tokens, there], dim=1), torch.randint(CLASSES, (rows,), generator=draw)


def images(draw, rows):
    return torch.randn(rows, 3, 8, 8, generator=draw, dtype=torch.float64), torch.randint(CLASSES, (rows,), generator=draw)


BATCHES = {"bert": texts, "llama-classifier": texts, "vit": images}
MODELS = {
    kind: (lambda kind=kind, **options: made(kind, **options), {}, BATCHES.get(kind, blocks), mesh_models.classes, 1e-3)
    for kind in KINDS
}
mesh_models.MODELS.update(MODELS)

if __name__ == "__main__":
    serve(mesh_gang.rank_main)
