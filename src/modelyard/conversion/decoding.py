"""The proof that graphs with a cache go on as their model does: through onnxruntime, a prompt and then token by token, against
what PyTorch makes of the whole text at once and without a cache. Called by `decoders`, and by whoever converts.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelyard.conversion.base import Verification, keep_worst, verify
from modelyard.conversion.cards import tensor_cards
from modelyard.engines.base import BatchEngine, ModelCard
from modelyard.engines.files import inside
from modelyard.engines.huggingface import hub, open_tokenizer
from modelyard.engines.onnx import OnnxEngine, signature_of
from modelyard.errors import Invalid
from modelyard.tensors import DATATYPES, Array, Signature, TensorSpec

PROMPTS = (1, 5, 17)  # tokens
STEPS = 4
ROWS = 3
# Logits are tens and go through every layer: what rounding leaves of them in SmolLM2-135M is 8e-5 already.
TOLERANCES: Mapping[str, float] = {"FP32": 1e-3}
_TEXT = "The quick brown fox jumps over the lazy dog; 東京, naïve: 3.14 (one, two) and\n  so on. " * 4


def positions(model: Any, mask: Tensor, new: int) -> dict[str, Tensor]:
    """The places of the last `new` tokens among those that `mask` [batch, tokens] shows, where the model is told them."""
    told = "position_ids" in inspect.signature(model.forward).parameters
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, -new:]} if told else {}


class Whole:
    """The PyTorch model as a `BatchEngine`: whole texts, without a cache."""

    def __init__(self, model: Any, signature: Signature) -> None:
        self._model, self.signature = model, signature

    def forward(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        given = {name: torch.from_numpy(array.copy()) for name, array in batch.items()}
        pair = "decoder_input_ids" in given
        told = {} if pair else positions(self._model, given["attention_mask"], given["input_ids"].shape[1])
        with torch.inference_mode(), hub():
            return _shown(self._model(**given, **told, use_cache=False).logits.numpy(), batch)

    def close(self) -> None:
        del self._model


class Stepwise:
    """Graphs with a cache as a `BatchEngine` of whole texts: half of all but `STEPS` tokens at once, then the other half, and
    those `STEPS` one by one."""

    def __init__(self, decoder: BatchEngine, encoder: BatchEngine | None) -> None:
        self._decoder, self._encoder = decoder, encoder
        names = ("input_ids", "attention_mask") if encoder is None else ("input_ids", "attention_mask", "decoder_input_ids")
        self.signature = Signature(tuple(TensorSpec(name, "INT64", (-1, -1)) for name in names), decoder.signature.outputs[:1])

    def forward(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        ids, mask = _decoded(batch), batch["attention_mask"]
        kept: dict[str, Array] = {}
        if self._encoder is not None:
            made = self._encoder.forward({"input_ids": batch["input_ids"], "attention_mask": mask})
            kept = {"encoder_attention_mask": mask, **_past(made)}
        past = self._nothing(len(ids), kept)
        prompt, told = ids.shape[1] - STEPS, []
        cuts = sorted({0, prompt // 2, *range(prompt, ids.shape[1] + 1)})
        for start, stop in pairwise(cuts):
            seen = {"attention_mask": mask[:, :stop]} if self._encoder is None else kept
            made = self._decoder.forward({"input_ids": ids[:, start:stop], **seen, **past})
            told.append(made["logits"])
            past = _past(made)
        return _shown(np.concatenate(told, axis=1), batch)

    def _nothing(self, rows: int, kept: Mapping[str, Array]) -> dict[str, Array]:
        """A past of no tokens."""
        specs = [spec for spec in self._decoder.signature.inputs if spec.name.startswith("past_") and spec.name not in kept]
        shapes = {spec.name: (rows, *(0 if dim == -1 else dim for dim in (spec.shape or ())[1:])) for spec in specs}
        return {spec.name: np.zeros(shapes[spec.name], DATATYPES[spec.datatype]) for spec in specs}

    def close(self) -> None:
        self._decoder.close()
        if self._encoder is not None:
            self._encoder.close()


def open_graphs(folder: Path, card: ModelCard) -> Stepwise:
    """The graphs of the version in `folder`, by the engine that serves them."""
    return Stepwise(
        OnnxEngine(folder, card), OnnxEngine(folder, encoder_card(folder, card)) if "encoder" in card.files else None
    )


def encoder_card(folder: Path, card: ModelCard) -> ModelCard:
    """The card by which the engine opens the encoder beside the decoder that `card` tells of."""
    signature, _ = signature_of(inside(folder, card.files["encoder"]))
    inputs, outputs = tensor_cards(signature.inputs), tensor_cards(signature.outputs)
    return ModelCard(task=card.task, engines=("onnx",), files={"onnx": card.files["encoder"]}, inputs=inputs, outputs=outputs)


def prove(model: Any, folder: Path, out: Path, card: ModelCard, *, keep: Path) -> Verification:
    """The worst of the comparisons of the graphs in `out` with `model`, whose tokenizer lies in `folder`, over prompts of
    `PROMPTS` tokens and `STEPS` more, in batches of 1, 2 and 3, shorter ones padded (on the left where the decoder reads them).
    Raises `Invalid` past the tolerance of the datatype, or where the graphs would go on with another token than `generate` of
    transformers, after writing that row into the folder `keep`."""
    candidate = open_graphs(out, card)
    reference = Whole(model, candidate.signature)
    found = []
    try:
        for batch in samples(model, folder):
            found.append(verify(reference, candidate, batch, TOLERANCES, keep=keep))
            _goes_on(candidate, batch, keep)
    finally:
        candidate.close()
    if not found:
        raise Invalid(f"The model takes fewer than {PROMPTS[0] + STEPS} tokens: there is nothing to verify its graph with.")
    return replace(max(found, key=lambda one: one.max_rel), rows=sum(one.rows for one in found))


def samples(model: Any, folder: Path) -> Iterator[dict[str, Array]]:
    """Prompts of tokens that the folder's tokenizer makes of a text (made up where it has none), with what `generate` of
    transformers adds to them when it takes the likeliest."""
    pair = bool(getattr(model.config, "is_encoder_decoder", False))
    known = _tokens(folder, model.get_input_embeddings().num_embeddings)
    longest = getattr(model.config, "max_position_embeddings", None) or PROMPTS[-1] + STEPS
    for length in (length for length in PROMPTS if length + STEPS <= longest):
        ids = np.resize(known, (ROWS, length))
        absent = np.array([0, length // 2, length - 1])[:, None]
        there = np.arange(length)[None, :]
        mask = (there < length - absent if pair else there >= absent).astype(np.int64)
        made = _generated(model, ids, mask)
        if pair:
            yield {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": made}
        else:
            yield {"input_ids": made, "attention_mask": np.pad(mask, ((0, 0), (0, STEPS)), constant_values=1)}


def _tokens(folder: Path, vocabulary: int) -> Array:
    try:
        with hub():
            said = np.array(open_tokenizer(folder)(_TEXT)["input_ids"], np.int64)
    except Invalid:
        said = np.random.default_rng(0).integers(0, vocabulary, 97)
    return said[said < vocabulary]


def _generated(model: Any, ids: Array, mask: Array) -> Array:
    """The prompts, or an encoder-decoder's first token, and `STEPS` tokens, whatever the model's own habits of generating."""
    habits = model.generation_config
    with hub() as transformers, torch.inference_mode():
        first = getattr(habits, "decoder_start_token_id", None)
        model.generation_config = transformers.GenerationConfig(
            do_sample=False, max_new_tokens=STEPS, pad_token_id=0, decoder_start_token_id=first
        )
        try:
            made = model.generate(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        finally:
            model.generation_config = habits
    generated: Array = made.numpy()
    return generated


def _goes_on(candidate: Stepwise, batch: Mapping[str, Array], keep: Path) -> None:
    """Raises `Invalid` where a token of the batch's last ones is less likely to the graph than another by more than the
    tolerance: between tokens that are equally likely a rounding may decide."""
    logits, chosen = candidate.forward(batch)["logits"][:, -STEPS - 1 : -1], _decoded(batch)[:, -STEPS:]
    best = logits.max(axis=-1)
    behind = best - np.take_along_axis(logits, chosen[..., None], axis=-1)[..., 0]
    allowed = 2 * TOLERANCES[candidate.signature.outputs[0].datatype] * np.maximum(1.0, np.abs(best))
    rows, steps = np.nonzero(behind > allowed)
    if len(rows):
        keep_worst(batch, int(rows[0]), keep)
        other = int(logits[rows[0], steps[0]].argmax())
        raise Invalid(
            f"The graph goes on with token {other} where generate of transformers has {chosen[rows[0], steps[0]]}, at step "
            f"{steps[0] + 1} of row {rows[0]}."
        )


def _decoded(batch: Mapping[str, Array]) -> Array:
    return batch["decoder_input_ids"] if "decoder_input_ids" in batch else batch["input_ids"]


def _shown(logits: Array, batch: Mapping[str, Array]) -> dict[str, Array]:
    """Logits without those of padding, which mean nothing."""
    if "decoder_input_ids" not in batch:
        logits = np.where(batch["attention_mask"][..., None] == 1, logits, np.zeros_like(logits))
    return {"logits": logits}


def _past(made: Mapping[str, Array]) -> dict[str, Array]:
    """What came out as present, as what goes in."""
    return {
        f"past_key_values{name.removeprefix('present')}": array for name, array in made.items() if name.startswith("present")
    }
