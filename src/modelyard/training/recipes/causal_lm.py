"""Recipe `causal-lm`: a causal language model from a Hugging Face folder learns a column of texts or chats, whole or by LoRA.

Rows become tokens, tokens blocks of one length (`packing`), in which documents are kept apart: a token sees its own document
alone. The loss is the mean over the tokens that are learned; of a chat these are the assistant's answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from modelyard.data.chats import messages
from modelyard.data.datasets import Dataset
from modelyard.data.transforms import build
from modelyard.engines.base import ModelCard
from modelyard.engines.huggingface import open_tokenizer
from modelyard.errors import Invalid
from modelyard.tensors import Array
from modelyard.training.config import CausalLm, TrainConfig
from modelyard.training.recipes import Plan, lora
from modelyard.training.recipes.finetuning import Tuning, Wrapped
from modelyard.training.recipes.packing import IGNORED, Blocks, pack
from modelyard.training.recipes.pretrained import check_folder
from modelyard.training.recipes.splits import split_of
from modelyard.training.recipes.texts import conversations, documents

_PROBE = 12  # tokens: two documents of as many in one block, and alone
_CLOSE = 1e-3


def causal_lm(config: TrainConfig, dataset: Dataset, code: Path | None) -> Plan:
    """Raises `Invalid` where the base, the data and the config do not go together. `code` is the base's folder."""
    folder, options = check_folder(code, config.recipe), config.causal_lm
    column = find_column(dataset, options.column)
    tokenizer = open_tokenizer(folder)
    tuning = Tuning(folder, "AutoModelForCausalLM", "CAUSAL_LM", config.lora, {}, ModelCard.load(folder))
    model = tuning.network(torch.float64 if config.dtype == "float64" else torch.float32)
    check_length(model.config, options.length)
    check_vocabulary(model, tokenizer)
    if options.together:
        check_apart(model)
    return Plan(
        network=Wrapped(model, predict),
        weights="model.safetensors",
        task="text-generation",
        transform=build(None),
        features=(column,),
        read=reader(tokenizer, dataset, column, options),
        input="blocks",
        output="logits",
        target=column,
        labels=None,
        loss=token_loss,
        count=learned,
        answer=(options.length, model.get_input_embeddings().weight.shape[0]),
        figures=perplexity,
        load=lambda other: lora.load_adapter(model, other),
        write=tuning.write,
        fixed=True,
        split=split_of(model, "model"),
    )


def predict(model: Any, blocks: torch.Tensor) -> torch.Tensor:
    """Blocks [n, 2, length] → logits [n, length, vocabulary]. Positions that begin again keep documents apart."""
    tokens, positions = blocks.long().unbind(1)
    logits: torch.Tensor = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
    return logits


def token_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The losses of all learned tokens added up, by row: the loop divides by what `learned` counts of the whole step."""
    flat = cross_entropy(logits.flatten(0, 1), targets.long().flatten(), ignore_index=IGNORED, reduction="sum")
    return flat / len(targets)


def learned(targets: Array) -> int:
    return int((targets != IGNORED).sum())


def perplexity(loss: float) -> dict[str, float]:
    return {"perplexity": math.exp(min(loss, 700.0))}


def reader(
    tokenizer: Any, dataset: Dataset, column: str, options: CausalLm
) -> Callable[[Dataset, str, Callable[[], None]], tuple[Array, Array]]:
    """A split's blocks. Raises `Invalid` where nothing of it can be learned."""
    chats = dataset.feature(column).type == "chat"
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0

    def read(dataset: Dataset, split: str, check: Callable[[], None]) -> tuple[Array, Array]:
        rows = [text for text in dataset.column(split, column) if text]
        found = (
            conversations(tokenizer, [messages(text) for text in rows], check, answers=options.learn == "answers")
            if chats
            else documents(tokenizer, rows, check)
        )
        blocks: Blocks = pack(found, options.length, padding, together=options.together, part=not chats)
        if not len(blocks.targets):
            raise Invalid(
                f"The {split} split has nothing to learn in '{column}': {len(rows)} rows, each of fewer than two tokens"
                + (f" or with no answer in the first {options.length}." if chats else ".")
            )
        return blocks.inputs, blocks.targets

    return read


def find_column(dataset: Dataset, asked: str | None) -> str:
    """The chat or text column: the one asked for, or the only one there is, chats before texts."""
    if asked is not None:
        if dataset.feature(asked).type not in ("text", "chat"):
            raise Invalid(f"'{asked}' is of type {dataset.feature(asked).type}; recipe 'causal-lm' learns text or chat.")
        return asked
    found = dataset.of_type("chat") or dataset.of_type("text")
    if len(found) != 1:
        kinds = {name: feature.type for name, feature in dataset.features.items()}
        raise Invalid(
            f"Recipe 'causal-lm' learns one column of text or chats; name it as causal_lm.column. The dataset has {kinds}."
        )
    return found[0]


def check_length(config: Any, length: int) -> None:
    most = getattr(config, "max_position_embeddings", None)
    if isinstance(most, int) and length > most:
        raise Invalid(f"causal_lm.length is {length}; the model knows {most} positions.")


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    known = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > known:
        raise Invalid(f"The tokenizer makes {len(tokenizer)} tokens; the model embeds {known}.")


def check_apart(model: Any) -> None:
    """Raises `Invalid` where a document's answers change with what stands before it in the block: not every architecture sees
    by its positions that documents are packed."""
    device, known = model.get_input_embeddings().weight.device, model.get_input_embeddings().weight.shape[0]
    first, second = (torch.arange(at, at + _PROBE, device=device) % known for at in (0, 1))
    positions = torch.arange(_PROBE, device=device)
    was = model.training
    model.eval()
    with torch.no_grad():
        both = predict(model, torch.stack([torch.cat([first, second]), positions.repeat(2)])[None])[0, _PROBE:]
        alone = predict(model, torch.stack([second, positions])[None])[0]
    model.train(was)
    difference = float((both - alone).abs().max() / alone.abs().max().clamp(min=1e-6))
    if not difference <= _CLOSE:
        raise Invalid(
            f"{type(model).__name__} does not keep packed documents apart (its answers change by {difference:.2g} of "
            "its size); use causal_lm.together=false: one document a block."
        )
