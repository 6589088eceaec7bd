"""A text encoder of transformers as one ONNX graph: tokens in, a vector a text out, with pooling and normalising inside, so
that a replica needs onnxruntime and the library tokenizers alone. Loaded late by the import of Hugging Face folders, which
goes on without it where an extra is missing.

Two things are proved before anything is served: the version's tokenizer makes the tokens that transformers makes, and the graph
answers as the PyTorch model does, over texts of several lengths and batches of several sizes.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxscript  # noqa: F401 - torch's exporter needs it, and would say so late and in its own words
import torch
from torch import nn
from torch.nn.functional import normalize

from modelyard.conversion import sentences
from modelyard.conversion.base import Verification, verify
from modelyard.conversion.onnx import export
from modelyard.conversion.sentences import Sentences
from modelyard.data.tokens import Tensor, TextOptions, TextTransform
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.huggingface import open_model, open_tokenizer
from modelyard.engines.onnx import OnnxEngine
from modelyard.errors import Invalid
from modelyard.kinds import JobContext
from modelyard.tensors import Array, Signature

TOKENIZER = "tokenizer.json"
OUTPUT = "sentence_embedding"
_INPUTS: tuple[Tensor, ...] = ("input_ids", "attention_mask", "token_type_ids")
_LONGEST = 512  # tokens: what nothing bounds is cut there, and no longer text is proved
_TEXTS = (
    "A cat sat on the mat.",
    "",
    "Ünïcödé, 東京 and 😀: naïve?",
    "word",
    "One, two; three (four) — five. " * 3,
    "[MASK] </s> <s> [SEP]",
    "internationalisation\tof\nspaces   and lines",
    "The quick brown fox jumps over the lazy dog. " * 200,
)


class Encoder(nn.Module):
    """Tokens by the `names` of its tensors, in order → one vector a row."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], said: Sentences) -> None:
        super().__init__()
        self.model, self._names, self._said = model, names, said

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        given = dict(zip(self._names, tensors, strict=True))
        states: torch.Tensor = self.model(**given).last_hidden_state
        if self._said.pooling == "mean":
            there = given["attention_mask"].unsqueeze(-1).to(states.dtype)
            pooled = (states * there).sum(1) / there.sum(1).clamp(min=1e-9)
        else:
            pooled = states[:, 0]
        return normalize(pooled, dim=1) if self._said.normalise else pooled


class Reference:
    """The PyTorch model as a `BatchEngine`, to hold the graph against."""

    def __init__(self, encoder: Encoder, signature: Signature) -> None:
        self._encoder, self.signature = encoder, signature

    def forward(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            made = self._encoder(*[torch.from_numpy(batch[spec.name].copy()) for spec in self.signature.inputs])
        return {OUTPUT: made.numpy()}

    def close(self) -> None:
        del self._encoder


def open_encoder(folder: Path, card: ModelCard, model: Any = None) -> Encoder:
    """The PyTorch encoder of a version that `convert` made, in float32 and evaluation mode, its tensors in the card's order; or
    another `model` pooled like it."""
    model = open_model(folder, "AutoModel", dtype=torch.float32)[0] if model is None else model.float()
    model.config.use_cache = False
    return Encoder(model, tuple(spec.name for spec in card.inputs), sentences.read(folder)).eval()


def convert(card: ModelCard, model: Any, folder: Path, context: JobContext) -> tuple[ModelCard, dict[str, Any]]:
    """The card of the version in `folder` with the graph as its first engine, and facts with notes; `model` is the folder's,
    opened. Raises `Invalid`, leaving the folder as it was, where the model is no such encoder or the graph is not the same."""
    said = sentences.read(folder)
    names = _takes(model)
    tokenizer = open_tokenizer(folder)
    length = _length(model, tokenizer, said)
    made = context.work / "onnx"
    made.mkdir()
    backend = _backend(tokenizer, folder, made)
    transform = TextTransform(TextOptions(length=length, pad=tokenizer.pad_token_id or 0, inputs=names, output=OUTPUT), backend)
    samples = _samples(transform, tokenizer, length)
    context.check()
    encoder = Encoder(model.float(), names, said).eval()
    stated = {
        "inputs": tuple(TensorCard(name=name, datatype="INT64", shape=(-1, -1)) for name in names),
        "outputs": (TensorCard(name=OUTPUT, datatype="FP32", shape=(-1, -1)),),
        "transform": transform.config,
    }
    graph = export(encoder, card.changed(**stated), made, samples[0])
    context.check()
    found = _verified(encoder, made, graph, samples, context)
    for part in [*made.glob("model.onnx*"), *made.glob(TOKENIZER)]:
        shutil.move(part, folder / part.name)
    files = {**card.files, **graph.files, "tokenizer": TOKENIZER}
    served = {**stated, "inputs": graph.inputs, "outputs": graph.outputs, "engines": ("onnx", *card.engines), "files": files}
    facts = {"pooling": said.pooling, "normalised": said.normalise, "tokens": length, "verification": found.to_json()}
    same = f"As ONNX it answers as in PyTorch: greatest difference {found.max_abs:.2g}. A text is cut at {length} tokens."
    return card.changed(**served), {**facts, "notes": [said.note, same]}


def _takes(model: Any) -> tuple[Tensor, ...]:
    """The tokens' tensors among what forward takes. Raises `Invalid` for a model that is no encoder of texts."""
    takes = inspect.signature(model.forward).parameters
    if not {"input_ids", "attention_mask"} <= takes.keys() or getattr(model.config, "is_encoder_decoder", False):
        raise Invalid(f"{type(model).__name__} is no encoder of texts.")
    model.config.use_cache = False
    return tuple(name for name in _INPUTS if name in takes)


def _length(model: Any, tokenizer: Any, said: Sentences) -> int:
    """The least of what the folder says, what the tokenizer says and the positions the model knows."""
    table = next((part for name, part in model.named_modules() if name.endswith("position_embeddings")), None)
    known = getattr(model.config, "max_position_embeddings", None)
    if isinstance(table, nn.Embedding):  # some keep the first positions for padding
        known = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    bounds = [bound for bound in (said.length, known, tokenizer.model_max_length) if isinstance(bound, int) and bound > 0]
    return min([bound for bound in bounds if bound < 1 << 17] or [_LONGEST])


def _backend(tokenizer: Any, folder: Path, made: Path) -> Path:
    """The folder with tokenizer.json: the version's, or `made` with one written from another form of it."""
    if (folder / TOKENIZER).is_file():
        return folder
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise Invalid(f"The folder has no {TOKENIZER}, and transformers makes none of what it has.")
    backend.save(str(made / TOKENIZER))
    return made


def _samples(transform: TextTransform, tokenizer: Any, length: int) -> list[dict[str, Array]]:
    """Short texts as one call, and the longest with a short one. Raises `Invalid` where transformers reads them otherwise."""
    calls = []
    for texts in (_TEXTS[:-1], (_TEXTS[-1], _TEXTS[0])):
        tokens = transform.before({"text": np.array([text.encode() for text in texts], object)})
        for row, text in enumerate(texts):
            wanted = tokenizer(text, truncation=True, max_length=length)["input_ids"]
            if tokens["input_ids"][row][tokens["attention_mask"][row] == 1].tolist() != list(wanted):
                raise Invalid(f"{TOKENIZER} reads {text[:40]!r} otherwise than transformers does with the folder.")
        calls.append({name: array[:, :_LONGEST] for name, array in tokens.items()})
    return calls


def _verified(
    encoder: Encoder, made: Path, graph: ModelCard, samples: list[dict[str, Array]], context: JobContext
) -> Verification:
    """The worse of all calls' verifications."""
    if any(spec.shape != (-1, -1) for spec in graph.inputs) or len(graph.outputs[0].shape or ()) != 2:
        raise Invalid("The graph takes texts of one length alone, or does not give one vector a text.")
    reference, candidate = Reference(encoder, graph.signature), OnnxEngine(made, graph)
    found = []
    for call in samples:
        found.append(verify(reference, candidate, call, keep=context.work))
        context.check()
    return max(found, key=lambda one: one.max_rel)
