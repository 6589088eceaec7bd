"""LoRA: small matrices beside the linear layers of a model learn in its stead. Put on before training, taken off after it: as
an adapter in peft's own files, or merged into the model.

The fine-tuning recipes call it. What is learned is told by `requires_grad`; the loop, the checkpoint and the other ranks need
no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from modelyard.engines.huggingface import hub
from modelyard.errors import Invalid
from modelyard.training.config import Lora
from modelyard.training.recipes.pretrained import head_of

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_LINEAR = ("Linear", "Conv1D")  # the second is GPT-2's


def wrap(network: Any, options: Lora, task: str | None, *, whole: tuple[str, ...] = ()) -> Any:
    """`network` with LoRA on the layers that `options` name, all else frozen but the sub-modules `whole` (a new head). Raises
    `Invalid` where it has no such layer."""
    with hub():
        import peft

        config = peft.LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,  # type: ignore[arg-type]
            lora_dropout=options.dropout,
            target_modules=list(options.layers or linear_layers(network)),
            modules_to_save=list(whole) or None,
            task_type=task,
        )
        return peft.get_peft_model(network, config)


def linear_layers(network: Any) -> list[str]:
    """The last parts of the names of all linear layers but the output's and the head's."""
    head = head_of(network)
    output = network.get_output_embeddings() if hasattr(network, "get_output_embeddings") else None
    found = {
        name.rpartition(".")[2]
        for name, part in network.named_modules()
        if type(part).__name__ in _LINEAR and part is not output and name.partition(".")[0] not in head
    }
    if not found:
        raise Invalid(f"{type(network).__name__} has no linear layers for LoRA; leave out 'lora' to train the whole model.")
    return sorted(found)


def save_adapter(wrapped: Any, state: Mapping[str, torch.Tensor], base: str, folder: Path) -> None:
    """What was learned, as peft reads it, into the new `folder`; `base` names what it is an adapter of. The same state gives
    the same bytes."""
    with hub():
        import peft

        learned = peft.get_peft_model_state_dict(wrapped, state_dict=dict(state))
    folder.mkdir(parents=True)
    save_file({name: learned[name].detach().cpu().contiguous() for name in sorted(learned)}, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)
    config = wrapped.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": base, "inference_mode": True, "auto_mapping": None}
    text = json.dumps(config, indent=1, sort_keys=True, default=_plain)
    (folder / CONFIG).write_text(text + "\n")


def load_adapter(wrapped: nn.Module, folder: Path) -> None:
    """Go on from another adapter of the same base. Raises `Invalid` where it is none, or of other layers or another rank."""
    if not (folder / WEIGHTS).is_file():
        raise Invalid(f"The model to continue from has no {WEIGHTS}: with 'lora' it is an adapter version of the same base.")
    with hub():
        import peft

        told: Any = peft.set_peft_model_state_dict(wrapped, load_file(folder / WEIGHTS))
    learning = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    wrong = [*sorted(learning & set(told.missing_keys)), *sorted(told.unexpected_keys)]
    if wrong:
        raise Invalid(f"The adapter to continue from is of other layers: {', '.join(wrong[:5])}.")


def merge(wrapped: Any, state: Mapping[str, torch.Tensor]) -> Any:
    """The model with what was learned added to its own weights; peft is gone from it."""
    wrapped.load_state_dict(dict(state), strict=True)
    with hub():
        return wrapped.merge_and_unload(safe_merge=True)


def _plain(value: Any) -> Any:
    """What JSON does not know: sets in order, enumerations by their value."""
    return sorted(value) if isinstance(value, set | frozenset) else getattr(value, "value", str(value))
