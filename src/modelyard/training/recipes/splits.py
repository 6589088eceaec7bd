"""How a model of transformers may be split over ranks: what its class and its config say of it, in `training/split`'s words.

The fine-tuning recipes call `split_of` once a model is as it learns, under LoRA too: its small matrices are split as the layer
is that they belong to. What is said here is measured before the first step, as any declaration is (`parallel/verify.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from modelyard.training.split import BY_INPUTS, Split

# transformers' words for our styles. What else it has (experts, packed layers) is not split here.
_STYLES = {
    "colwise": "columns",
    "rowwise": "rows",
    "colwise_gather_output": "gathered",
    "rowwise_split_input": "scattered",
    "embedding_rowwise": "rows",
    "replicated_with_grad_allreduce": "shared",
}
# Of classes that say nothing: their blocks are alike in every one of them.
_BERT = {
    "*.layer.*.attention.self.query": "colwise",
    "*.layer.*.attention.self.key": "colwise",
    "*.layer.*.attention.self.value": "colwise",
    "*.layer.*.attention.output.dense": "rowwise",
    "*.layer.*.intermediate.dense": "colwise",
    "*.layer.*.output.dense": "rowwise",
}
_VIT = {
    "vit.layers.*.attention.q_proj": "colwise",
    "vit.layers.*.attention.k_proj": "colwise",
    "vit.layers.*.attention.v_proj": "colwise",
    "vit.layers.*.attention.o_proj": "rowwise",
    "vit.layers.*.mlp.fc1": "colwise",
    "vit.layers.*.mlp.fc2": "rowwise",
}
_PLANS: Mapping[str, Mapping[str, str]] = {
    "vit": _VIT,
    **{
        name: {key.replace("*", f"{prefix}.encoder", 1): style for key, style in _BERT.items()}
        for name, prefix in (("bert", "bert"), ("roberta", "roberta"), ("xlm-roberta", "roberta"), ("electra", "electra"))
    },
}
_HEADS = ("num_attention_heads", "num_key_value_heads")


def split_of(network: Any, prefix: str) -> Split:
    """`prefix`: the model's name in the network that is trained."""
    inner, path = network, prefix
    if hasattr(network, "peft_config"):
        inner, path = network.get_base_model(), f"{prefix}.base_model.model"
    blocks = find_blocks(inner)
    tensor, strange = tensor_plan(inner)
    name = type(inner).__name__
    why = (
        f"{name} has layers that are not split here ({', '.join(strange)})"
        if strange
        else f"transformers says nothing of {name}"
    )
    return Split(
        tensor={f"{path}.{layer}": style for layer, style in tensor.items()},
        heads={prefix: [f"config.{part}" for part in _HEADS if isinstance(getattr(inner.config, part, None), int)]},
        blocks=f"{path}.{blocks}.*" if blocks else None,
        sequence=[f"{path}.{part}" for part in sequence(inner, blocks)] if blocks else (),
        passes=True,
        silent=f"{why}; use the axes data, shard and pipe",
    )


def find_blocks(network: Any) -> str:
    """The name of the list of its blocks, '' where there is none."""
    kinds = set(getattr(network, "_no_split_modules", None) or ())
    for name, part in network.named_modules():
        head, _, last = name.rpartition(".")
        if type(part).__name__ in kinds and last.isdigit():
            return str(head)
    return ""


def sequence(module: nn.Module, blocks: str, name: str = "") -> Iterator[str]:
    """What of it holds anything, in order: before, in and after its blocks."""
    for child, part in module.named_children():
        full = f"{name}.{child}" if name else child
        if full == blocks:
            yield f"{full}.*"
        elif blocks.startswith(f"{full}."):
            yield from sequence(part, blocks, full)
        elif part.state_dict():
            yield full


def tensor_plan(network: Any) -> tuple[dict[str, str], list[str]]:
    """Layers, by patterns, to styles; and what of its plan is not known here, in which case there are no layers. A layer whose
    weights are an embedding's too stays whole, and so does that."""
    said = dict(getattr(network, "_tp_plan", None) or _PLANS.get(network.config.model_type, {}))
    strange = sorted(set(said.values()) - set(_STYLES))
    found: dict[str, str] = {}
    counts: dict[int, int] = {}
    for _, parameter in network.named_parameters(remove_duplicate=False):
        counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    for name, layer in network.named_modules() if not strange else ():
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        tied = any(counts[id(parameter)] > 1 for parameter in layer.parameters(recurse=False))
        if pattern in said and not tied:
            found |= {f"{pattern}{part}": style for part, style in parts(layer, _STYLES[said[pattern]]).items()}
    return found, strange


def parts(layer: nn.Module, style: str) -> dict[str, str]:
    """A layer under LoRA is three: its own, and two small ones of which one is split as it is, where they meet."""
    if not hasattr(layer, "base_layer"):
        return {"": style}
    small = "lora_A" if style in BY_INPUTS else "lora_B"
    return {".base_layer": style, f".{small}.*": style}
