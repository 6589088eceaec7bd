"""Language models of transformers as ONNX graphs with a cache: the keys and values of the tokens that were read come out and
go in again, so that a further token costs one token. A decoder alone (Llama, Qwen, GPT-2, …) is one graph; an encoder-decoder
(T5, BART, Marian) is two, of which the encoder's also gives the keys and values that the decoder looks back at, once a text.

Tensors are called as optimum and onnxruntime-genai call them. Called late by the import of Hugging Face folders and through
`CONVERTERS`; that the graphs go on as the model does is proved in `decoding`.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxscript  # noqa: F401 - torch's exporter needs it, and would say so late and in its own words
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from modelyard.conversion.decoding import positions, prove
from modelyard.conversion.onnx import FILE, export
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.files import inside
from modelyard.engines.huggingface import CONFIG, copy_companions, hub, open_model
from modelyard.errors import Invalid
from modelyard.kinds import JobContext
from modelyard.tensors import DATATYPES

SEQUENCES = "AutoModelForSeq2SeqLM"
ENCODER = "encoder_model.onnx"
DECODER = "decoder_with_past_model.onnx"
_IDS = TensorCard(name="input_ids", datatype="INT64", shape=(-1, -1))
_MASK = TensorCard(name="attention_mask", datatype="INT64", shape=(-1, -1))
_SOURCE_MASK = TensorCard(name="encoder_attention_mask", datatype="INT64", shape=(-1, -1))
# Rows and lengths a graph is traced by: all differ, and none is 0 or 1, which the exporter would take for the only one.
_ROWS, _NEW, _PAST, _SOURCE = 3, 5, 7, 11
_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")

Lengths = Sequence[tuple[TensorCard, int]]  # tensors with the length that each is traced by


class Cached(nn.Module):
    """A model that takes and gives its cache as plain tensors, a key and a value [batch, heads, tokens, size] a layer."""

    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        with hub() as transformers:
            self._kinds = transformers.cache_utils

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        """A cache that holds `tensors`: whole, for a layer that sees a window is told so by its mask."""
        cache = self._kinds.DynamicCache()
        for keys, values in zip(tensors[::2], tensors[1::2], strict=True):
            layer = self._kinds.DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        return cache

    def pair(self, own: Any, other: Any, *, known: bool) -> Any:
        """A decoder's `own` cache and that of the `other` text, which is `known` already or to be made."""
        made = self._kinds.EncoderDecoderCache(own, other)
        made.is_updated = dict.fromkeys(range(len(other.layers)), known)
        return made


class Decoder(Cached):
    """input_ids [batch, new], attention_mask [batch, past + new], past … → logits [batch, new, vocabulary], present …"""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        ids, mask, *past = tensors
        cache = self.filled(past)
        given = positions(self.model, mask, ids.shape[1])
        made = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **given)
        return (made.logits, *_tensors(cache))


class Encoder(Cached):
    """input_ids, attention_mask [batch, source] → last_hidden_state [batch, source, size], keys and values to look back at.
    `heads` are their heads and sizes."""

    def __init__(self, model: nn.Module, heads: Sequence[tuple[int, int]]) -> None:
        super().__init__(model)
        self._heads = heads

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        ids, mask = tensors
        other = self.filled([torch.zeros((ids.shape[0], heads, 0, size)) for heads, size in self._heads])
        cache = self.pair(self._kinds.DynamicCache(), other, known=False)
        first = torch.zeros_like(ids[:, :1])  # any token: what is looked back at does not depend on it
        made = self.model(input_ids=ids, attention_mask=mask, decoder_input_ids=first, past_key_values=cache, use_cache=True)
        return (made.encoder_last_hidden_state, *_tensors(other))


class LookingBack(Cached):
    """input_ids [batch, new], encoder_attention_mask [batch, source], its own past …, the source's … → logits, present …"""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        ids, mask, *past = tensors
        own, other = self.filled(past[: len(past) // 2]), self.filled(past[len(past) // 2 :])
        size = self.model.config.hidden_size
        unread = torch.zeros((ids.shape[0], mask.shape[1], size))  # for its shape alone: its keys and values are known
        made = self.model(
            attention_mask=mask,
            decoder_input_ids=ids,
            encoder_outputs=(unread,),
            past_key_values=self.pair(own, other, known=True),
            use_cache=True,
        )
        return (made.logits, *_tensors(own))


def convert(model: Any, folder: Path, card: ModelCard, out: Path) -> ModelCard:
    """`model`, whose config and tokenizer lie in `folder`, as graphs in float32 in `out`, the tokenizer beside, and the card of
    the graph that decodes; `files.encoder` is the encoder's, where there is one. Raises `Invalid` naming the model, and the
    operator and layer, for what keeps no cache of keys and values or has no form in ONNX."""
    model.float().eval()
    name = type(model).__name__
    try:
        with hub():
            own, other = _slots(model)
        logits = TensorCard(name="logits", datatype="FP32", shape=(-1, -1, -1))
        if other:
            _encoder(model, card.task, other, out)
            takes = [(_IDS, _NEW), (_SOURCE_MASK, _SOURCE), *_past(own, _PAST), *_past(other, _SOURCE)]
            made = _export(LookingBack(model), card.task, takes, [logits, *_present(own)], out / DECODER)
        else:
            takes = [(_IDS, _NEW), (_MASK, _PAST + _NEW), *_past(own, _PAST)]
            made = _export(Decoder(model), card.task, takes, [logits, *_present(own)], out / FILE)
    except Invalid as error:
        raise Invalid(f"{name} as a graph with a cache: {error.message}") from error
    copy_companions(folder, out)
    if not (out / CONFIG).exists():
        shutil.copyfile(folder / CONFIG, out / CONFIG)
    made = made.changed(files={**made.files, "config": CONFIG, **({"encoder": ENCODER} if other else {})})
    made.save(out)
    return made


def from_folder(folder: Path, card: ModelCard, out: Path) -> ModelCard:
    """As `convert`, of the model that lies in `folder`."""
    pair = json.loads(inside(folder, CONFIG).read_bytes()).get("is_encoder_decoder")
    model, wrong = open_model(folder, SEQUENCES if pair else "AutoModelForCausalLM")
    if wrong:
        raise Invalid(f"The weights in the folder are not those of {type(model).__name__}: {wrong}.")
    return convert(model, folder, card, out)


def add(card: ModelCard, model: Any, folder: Path, context: JobContext) -> tuple[ModelCard, dict[str, Any]]:
    """The card of the version in `folder` with the graphs as its first engine, and facts with notes; `model` is the folder's,
    opened. Raises `Invalid`, the worst input kept in the job's folder, where the graphs go on otherwise."""
    made = context.work / "onnx"
    made.mkdir()
    graph = convert(model, folder, card, made)
    context.check()
    found = prove(model, folder, made, graph, keep=context.work)
    for part in sorted(made.glob("*.onnx*")):
        shutil.move(part, folder / part.name)
    note = (
        f"As ONNX with a cache it goes on as in PyTorch, {found.rows} texts token by token: greatest difference "
        f"{found.max_abs:.2g}, the same tokens as generate of transformers. It takes and gives tensors, not texts."
    )
    served = {"inputs": graph.inputs, "outputs": graph.outputs, "engines": ("onnx", *card.engines)}
    return card.changed(**served, files={**card.files, **graph.files}), {"verification": found.to_json(), "notes": [note]}


def _encoder(model: Any, task: str, other: list[TensorCard], out: Path) -> None:
    states = TensorCard(name="last_hidden_state", datatype="FP32", shape=(-1, -1, model.config.hidden_size))
    heads = [(int(spec.shape[1]), int(spec.shape[3])) for spec in other if spec.shape]
    takes = [(_IDS, _SOURCE), (_MASK, _SOURCE)]
    _export(Encoder(model, heads), task, takes, [states, *_present(other)], out / ENCODER)


def _export(module: nn.Module, task: str, takes: Lengths, gives: Sequence[TensorCard], path: Path) -> ModelCard:
    inputs = tuple(spec for spec, _ in takes)
    card = ModelCard(task=task, engines=("onnx",), files={"onnx": path.name}, inputs=inputs, outputs=tuple(gives))
    samples = {spec.name: np.ones(_shape(spec, length), DATATYPES[spec.datatype]) for spec, length in takes}
    with sdpa_kernel(SDPBackend.MATH):  # the others' views of the answer hold for fixed lengths alone (T5's)
        return export(module, card, path.parent, samples, path.name)


def _shape(spec: TensorCard, length: int) -> tuple[int, ...]:
    return (_ROWS, *(length if dim == -1 else dim for dim in (spec.shape or ())[1:]))


def _slots(model: Any) -> tuple[list[TensorCard], list[TensorCard]]:
    """What the model keeps of a token in each layer, and of the other text; found by running it."""
    takes = inspect.signature(model.forward).parameters
    if not {"input_ids", "attention_mask", "past_key_values"} <= takes.keys():
        raise Invalid("its forward takes no input_ids, attention_mask and past_key_values, which such a graph is made of.")
    pair = bool(getattr(model.config, "is_encoder_decoder", False))
    ids = torch.zeros((1, 2), dtype=torch.int64)
    given: Mapping[str, Tensor] = {"decoder_input_ids": ids} if pair else {}
    with torch.inference_mode():
        kept = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, **given).past_key_values
    if pair:
        return _kept(kept.self_attention_cache, "decoder."), _kept(kept.cross_attention_cache, "encoder.")
    return _kept(kept, ""), []


def _kept(cache: Any, whose: str) -> list[TensorCard]:
    found = []
    for number, layer in enumerate(getattr(cache, "layers", ())):
        kind, keys = type(layer).__name__, getattr(layer, "keys", None)
        if kind not in _LAYERS or keys is None or keys.ndim != 4:
            raise Invalid(f"layer {number} keeps a {kind}, and no keys and values of every token by its heads.")
        for what, tensor in (("key", keys), ("value", layer.values)):
            shape = (-1, tensor.shape[1], -1, tensor.shape[3])
            found.append(TensorCard(name=f"{number}.{whose}{what}", datatype="FP32", shape=shape))
    if not found:
        raise Invalid("it keeps no keys and values of what it read (past_key_values).")
    return found


def _past(slots: Sequence[TensorCard], length: int) -> list[tuple[TensorCard, int]]:
    return [(spec.changed(name=f"past_key_values.{spec.name}"), length) for spec in slots]


def _present(slots: Sequence[TensorCard]) -> list[TensorCard]:
    return [spec.changed(name=f"present.{spec.name}") for spec in slots]


def _tensors(cache: Any) -> list[Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
