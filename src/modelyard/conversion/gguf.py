"""A language model of transformers as GGUF, the file that llama.cpp and OpenVINO GenAI read; and back, to prove it.

How tensors are called there is the library gguf's own map. What it does not say stands here: which architectures, in what order
Llama's queries and keys lie, and by which rule a tokenizer cuts words. Called by optimisation, with matrices that are rounded,
and through `CONVERTERS` with none: those are sixteen-bit floats then.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gguf
import numpy as np
import torch
from torch import Tensor

from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.files import inside
from modelyard.engines.huggingface import copy_companions, ends, open_model, open_tokenizer
from modelyard.errors import Invalid
from modelyard.tensors import Array

FILE = "model.gguf"
KIND = "AutoModelForCausalLM"
TEXT = TensorCard(name="text", datatype="BYTES", shape=(-1,))


@dataclass(frozen=True, slots=True)
class Family:
    """What gguf calls an architecture of transformers. `turned`: of queries and keys the pairs that are rotated together lie
    side by side, as in the first Llama, and not half a head apart."""

    name: str
    turned: bool = False


FAMILIES = {
    "LlamaForCausalLM": Family("llama", turned=True),
    "MistralForCausalLM": Family("llama", turned=True),
    "Qwen2ForCausalLM": Family("qwen2"),
    "Qwen3ForCausalLM": Family("qwen3"),
}
_TURNED = (".q_proj.", ".k_proj.")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# By what words are cut before bytes are paired: a pattern, or digits one by one; then the pattern of GPT-2, or nothing more.
_CUTS = {
    (): "gpt-2",
    ("Digits",): "smollm",
    (_WORDS % "",): "qwen2",
    (_WORDS % "{1,3}",): "llama-bpe",
}


class Packed(Protocol):
    """A matrix on a grid of gguf's: its name there, its bytes [rows, bytes], and what they mean."""

    @property
    def kind(self) -> str: ...

    def packed(self) -> Array: ...

    def values(self) -> Tensor: ...


class GgufConverter:
    """A Hugging Face folder of a language model → `model.gguf` in sixteen-bit floats."""

    def convert(self, folder: Path, card: ModelCard, out: Path, samples: Mapping[str, Array]) -> ModelCard:
        model, _ = open_model(folder, KIND, dtype=torch.float32)
        return write(model, folder, card, out)


CONVERTER = GgufConverter()


def check(model: Any, folder: Path) -> None:
    """Raises `Invalid` for a model, or a tokenizer in `folder`, that `write` would refuse."""
    _begin(None, folder, model).close()
    for _ in _called(model, family_of(model)):
        pass


def write(model: Any, folder: Path, card: ModelCard, out: Path, rounded: Mapping[str, Packed] | None = None) -> ModelCard:
    """`model`, whose tokenizer lies in `folder`, as `model.gguf` in `out` with its card. Matrices are those of `rounded`, by
    the name of the weight, or FP16; vectors are FP32. Raises `Invalid` for what GGUF cannot say."""
    writer = _begin(out / FILE, folder, model)
    try:
        writer.add_file_type(_mostly(rounded or {}))
        for name, array, kind in _tensors(model, family_of(model), rounded or {}):
            writer.add_tensor(name, array, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    copy_companions(folder, out)
    made = ModelCard(task=card.task, engines=("genai",), files={"gguf": FILE}, inputs=(TEXT,), outputs=(TEXT,))
    made.save(out)
    return made


def read_back(folder: Path) -> Any:
    """The model in a folder's GGUF, its weights as the file's codes mean them, in float32: by transformers' own reader. Raises
    `Invalid` where it refuses the file."""
    inside(folder, FILE)
    model, wrong = open_model(folder, KIND, gguf_file=FILE, dtype=torch.float32)
    missing = [name for name in wrong.get("missing", []) if name != "lm_head.weight"]
    if missing:
        raise Invalid(f"'{FILE}' lacks {', '.join(missing[:5])}.")
    return model


def prove(model: Any, rounded: Mapping[str, Packed], again: Any) -> int:
    """How many tensors another reader found in the file as they were meant. Raises `Invalid`, naming one that is not."""
    there, wanted = dict(again.named_parameters()), dict(model.named_parameters())
    for name, tensor in wanted.items():
        meant = rounded[name].values() if name in rounded else tensor.detach().half().float() if tensor.ndim > 1 else tensor
        if name not in there or there[name].shape != meant.shape or not torch.equal(there[name].detach(), meant.detach()):
            raise Invalid(f"'{FILE}' holds another '{name}' than was written: this is a defect of the converter.")
    return len(wanted)


def family_of(model: Any) -> Family:
    name = type(model).__name__
    if name not in FAMILIES:
        raise Invalid(f"{name} has no form in GGUF here; there are {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def _begin(path: Path | None, folder: Path, model: Any) -> Any:
    """A writer that knows all but the tensors; it opens the file when it writes its header."""
    writer = gguf.GGUFWriter(path, family_of(model).name)
    _describe(writer, model)
    _tokenizer(writer, folder, model)
    return writer


def _describe(writer: Any, model: Any) -> None:
    config = model.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    rotation = getattr(config, "rope_parameters", None) or {}
    if (kind := rotation.get("rope_type", "default")) != "default":
        raise Invalid(f"Its positions are scaled ('{kind}'), which is not written as GGUF here.")
    window = None if getattr(config, "layer_types", None) else getattr(config, "sliding_window", None)
    sees_all = window is None or window >= config.max_position_embeddings or not getattr(config, "use_sliding_window", True)
    if not sees_all or any("sliding" in str(kind) for kind in getattr(config, "layer_types", None) or ()):
        raise Invalid("Some of its layers see only a window of what came before, which is not written as GGUF here.")
    if getattr(config, "hidden_act", "silu") != "silu" or getattr(config, "mlp_bias", False):
        raise Invalid("Its layers have biases or an activation that its family in GGUF has not.")
    if family_of(model).turned and getattr(config, "attention_bias", False):
        raise Invalid("Its attention has biases, which its family in GGUF has not.")
    writer.add_type("model")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(rotation.get("rope_theta", getattr(config, "rope_theta", 10_000.0))))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(model.get_input_embeddings().weight.shape[0])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _mostly(rounded: Mapping[str, Packed]) -> int:
    """gguf's number for the grid that most weights are on."""
    kinds = Counter[str]()
    for made in rounded.values():
        kinds[made.kind] += made.values().numel()
    kind = kinds.most_common(1)[0][0] if kinds else "f16"
    return int(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])


def _tokenizer(writer: Any, folder: Path, model: Any) -> None:
    """The tokenizer.json of pairs of bytes. Raises `Invalid` for another kind."""
    said = json.loads(inside(folder, "tokenizer.json").read_bytes())
    pairs = said["model"]
    if pairs.get("type") != "BPE" or pairs.get("byte_fallback") or said.get("normalizer") not in (None, {"type": "NFC"}):
        raise Invalid("Its tokenizer is not of pairs of bytes (BPE, as GPT-2's), which alone is written as GGUF here.")
    known, total = dict(pairs["vocab"]), model.get_input_embeddings().weight.shape[0]
    kinds = dict.fromkeys(known, gguf.TokenType.NORMAL)
    for added in said.get("added_tokens", []):
        known[added["content"]] = added["id"]
        kinds[added["content"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    names = {number: name for name, number in known.items()}
    tokens = [names.get(number, f"[PAD{number}]") for number in range(total)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_cut(said.get("pre_tokenizer")))
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.get(name, gguf.TokenType.UNUSED) for name in tokens])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in pairs["merges"]])
    writer.add_add_space_prefix(False)
    _special(writer, folder, total)


def _special(writer: Any, folder: Path, total: int) -> None:
    """Tokens with a meaning, whether texts begin with one, and how chats are written. Raises `Invalid` where that has several
    ways and none is the default."""
    tokenizer = open_tokenizer(folder)
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None and number < total:
            getattr(writer, f"add_{name}_token_id")(number)
    others = [number for number in ends(folder) if number != tokenizer.eos_token_id and number < total]
    for name, number in zip(("eot", "eom"), others, strict=False):  # of a turn, of a message: other readers stop there, too
        getattr(writer, f"add_{name}_token_id")(number)
    first = tokenizer("a")["input_ids"][:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id])
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name
        if "default" not in template:
            raise Invalid(f"Its chat templates are {', '.join(template)}; a GGUF has one here, which is to be named default.")
        template = template["default"]
    if isinstance(template, str):
        writer.add_chat_template(template)


def _cut(said: Mapping[str, Any] | None) -> str:
    """The name of the rule by which words are cut. Raises `Invalid` for one that is not known."""
    parts = list((said or {}).get("pretokenizers") or [said or {}])
    last = parts.pop() if parts and parts[-1].get("type") == "ByteLevel" else {}
    rules = tuple(str((part.get("pattern") or {}).get("Regex") or part.get("type")) for part in parts)
    digits = all(part.get("individual_digits") for part in parts if part.get("type") == "Digits")
    plain = digits and not last.get("add_prefix_space") and bool(last.get("use_regex", True)) == (rules in ((), ("Digits",)))
    if not last or rules not in _CUTS or not plain:
        raise Invalid(f"Its tokenizer cuts words by a rule that has no name here: {json.dumps(said)[:200]}.")
    return _CUTS[rules]


def _tensors(model: Any, family: Family, rounded: Mapping[str, Packed]) -> Iterator[tuple[str, Array, Any]]:
    """Each tensor as gguf calls it, with its bytes and their kind."""
    config = model.config
    for called, name, tensor in _called(model, family):
        if name in rounded:
            array, kind = rounded[name].packed(), gguf.GGMLQuantizationType[rounded[name].kind.upper()]
        else:
            wide = tensor.ndim > 1
            array = tensor.detach().to(torch.float16 if wide else torch.float32).numpy()
            kind = gguf.GGMLQuantizationType.F16 if wide else gguf.GGMLQuantizationType.F32
        if family.turned and any(part in name for part in _TURNED):
            array = _turned(array, config.num_key_value_heads if ".k_proj." in name else config.num_attention_heads)
        yield called, np.ascontiguousarray(array), kind


def _called(model: Any, family: Family) -> Iterator[tuple[str, str, Tensor]]:
    """Each tensor as gguf calls it, with its own name. Raises `Invalid` for one that has none there."""
    known = gguf.get_tensor_name_map(_ARCHITECTURES[family.name], model.config.num_hidden_layers)
    for name, tensor in model.named_parameters():  # what is shared comes once
        called = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if called is None:
            raise Invalid(f"'{name}' has no name in GGUF: it is no part of a plain '{family.name}'.")
        yield called, name, tensor


def _turned(array: Array, heads: int) -> Array:
    """Rows of a head, which lie as two halves, so that those that are rotated together follow each other."""
    return array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


_ARCHITECTURES = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
