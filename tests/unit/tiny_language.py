"""A language model of a few thousand parameters and its tokenizer, as a Hugging Face folder, made here."""

from __future__ import annotations

import json
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


def learned(folder: Path, **changes):
    """As `llama`, once it has read `TEXTS` for a few seconds: it foretells them better than chance."""
    import torch
    from transformers import AutoTokenizer

    model = llama(folder, **changes)
    tokens = torch.tensor(AutoTokenizer.from_pretrained(folder)(" ".join(TEXTS))["input_ids"])
    rows = tokens[: len(tokens) // 32 * 32].view(-1, 32)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        model(input_ids=rows, labels=rows).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    return model


def bert(
    folder: Path,
    *,
    modules: tuple[str, ...] = (),
    pooling: str = "mean_tokens",
    length: int = 24,
    seed: int = 0,
    layers: int = 1,
):
    """A BERT and a WordPiece tokenizer in the new `folder`, and what sentence-transformers says of its steps after the
    transformer: none without `modules`; returns the model."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch
        from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

        folder.mkdir(parents=True)
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False))
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
        torch.manual_seed(seed)
        options = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2}
        model = BertModel(BertConfig(vocab_size=200, max_position_embeddings=64, initializer_range=0.5, **options))
        model.save_pretrained(folder)
    if modules:
        steps = [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]
        steps += [{"idx": n, "path": f"{n}_{name}", "type": f"sentence_transformers.models.{name}"} for n, name in
                  enumerate(modules, start=1)]  # fmt: skip
        (folder / "modules.json").write_text(json.dumps(steps))
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length, "do_lower_case": False}))
        (folder / "1_Pooling").mkdir()
        flags = {f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens", "max_tokens")}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **flags}))
    return model.eval()


def embeddings(folder: Path, model, texts, *, pooling: str = "mean_tokens", normalised: bool = False, length: int = 24):
    """What transformers and a few lines of torch make of texts, each by itself."""
    import torch
    from transformers import AutoTokenizer

    tokenizer, rows = AutoTokenizer.from_pretrained(folder), []
    with torch.inference_mode():
        for text in texts:
            states = model(**tokenizer(text, truncation=True, max_length=length, return_tensors="pt")).last_hidden_state[0]
            row = states.mean(0) if pooling == "mean_tokens" else states[0]
            rows.append(row / row.norm() if normalised else row)
    return torch.stack(rows).numpy()
