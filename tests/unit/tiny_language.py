"""A language model of a few thousand parameters and its tokenizer, as a Hugging Face folder, made here."""

from __future__ import annotations

import warnings
from pathlib import Path

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXTS = [f"the {noun} of {place} is {colour}." for noun in ("cat", "dog", "bird", "king") for place in ("rome", "paris", "oslo")
         for colour in ("red", "blue", "green", "grey", "white")]  # fmt: skip


def tokenizer(folder: Path):
    """Trained on `TEXTS`, with a chat template; saved in `folder`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")
    fast.chat_template = CHAT
    fast.save_pretrained(folder)
    return fast


def llama(folder: Path, *, seed: int = 0, **changes):
    """Its config, weights and tokenizer in the new `folder`; returns the model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        folder.mkdir(parents=True)
        made = tokenizer(folder)
        options = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                   "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True}  # fmt: skip
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(made), eos_token_id=1, pad_token_id=0, **{**options, **changes}))
        model.save_pretrained(folder)
    return model.eval()
