"""What the fine-tuning recipes share: the model opened whole or under LoRA, and what is published of it: the whole model,
merged or trained, and the adapter alone, each in the files that plain transformers and peft read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelyard.engines.base import BaseCard, ModelCard
from modelyard.engines.huggingface import copy_companions
from modelyard.kinds import Input
from modelyard.training.config import Lora
from modelyard.training.recipes import Made, lora
from modelyard.training.recipes.pretrained import head_of, open_network, save_network

Forward = Callable[[Any, torch.Tensor], torch.Tensor]


class Wrapped(nn.Module):
    """A model of transformers with one tensor in and one out, as the loop feeds it. `call` says how."""

    def __init__(self, model: nn.Module, call: Forward) -> None:
        super().__init__()
        self.model = model
        self._call = call

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._call(self.model, inputs)


@dataclass(frozen=True, slots=True)
class Tuning:
    """A base to fine-tune: its `folder`, transformers' class for the task `kind`, peft's name of it, and what a fresh head is
    built with. `card`: what `model.json` says of the whole model."""

    folder: Path
    kind: str
    peft: str | None
    options: Lora | None
    head: Mapping[str, Any]
    card: ModelCard

    def network(self, dtype: torch.dtype = torch.float32) -> Any:
        """The base as it learns."""
        model = open_network(self.folder, self.kind, dtype, **self.head)
        return self.wrap(model)

    def wrap(self, model: Any) -> Any:
        if self.options is None:
            return model
        return lora.wrap(model, self.options, self.peft, whole=tuple(sorted(head_of(model))) if self.head else ())

    def write(self, state: Mapping[str, torch.Tensor], inputs: Mapping[str, Input], folder: Path) -> list[Made]:
        """The outputs 'model' and 'adapter', as far as they are asked for, in folders under `folder`. `state` is that of
        `Wrapped`."""
        learned = {name.removeprefix("model."): tensor for name, tensor in state.items()}
        dtype = next(tensor.dtype for tensor in learned.values() if tensor.is_floating_point())
        network = self.network(dtype)  # another one: the one that learned may be in parts
        base = inputs["base"]
        if self.options is None:
            network.load_state_dict(learned)
            return [self._whole(network, base, folder)]
        made = []
        if self.options.keep in ("adapter", "both"):
            made.append(self._adapter(network, learned, base, folder))
        if self.options.keep in ("merged", "both"):
            made.append(self._whole(lora.merge(network, learned), base, folder))
        return made

    def _whole(self, network: Any, base: Input, folder: Path) -> Made:
        target = folder / "model"
        save_network(network, network.state_dict(), self.folder, target)
        weights = "model.safetensors" if (target / "model.safetensors").is_file() else "model.safetensors.index.json"
        card = self.card.changed(files={**self.card.files, "weights": weights})
        return Made(
            "model",
            target,
            card,
            _ABOUT.format(base=base.reference),
            _LOAD.format(kind=self.kind, **self._reader()),
            "transformers",
        )

    def _adapter(self, network: Any, state: Mapping[str, torch.Tensor], base: Input, folder: Path) -> Made:
        target = folder / "adapter"
        lora.save_adapter(network, state, base.reference, target)
        copy_companions(self.folder, target)
        pinned = BaseCard(reference=base.reference, hash=base.view.hash)
        files = {**self.card.files, "adapter": lora.WEIGHTS, "config": lora.CONFIG}
        files.pop("weights", None)
        card = self.card.changed(files=files, base=pinned)
        options = "".join(
            f", {name}={value!r}" for name, value in self.head.items() if name in ("num_labels", "ignore_mismatched_sizes")
        )
        load = _ADAPTER.format(kind=self.kind, reference=base.reference, options=options, **self._reader())
        return Made("adapter", target, card, _PINS.format(base=base.reference, hash=base.view.hash), load, "peft")

    def _reader(self) -> dict[str, str]:
        images = self.card.task == "image-classification"
        return {"reader": "AutoImageProcessor" if images else "AutoTokenizer", "name": "processor" if images else "tokenizer"}


_ABOUT = "Fine-tuned from `{base}`. "
_PINS = "An adapter (LoRA) of `{base}`, whose artefact is `{hash}`: `modelyard model fetch {base} base` brings it. "
_LOAD = """\
from transformers import {kind}, {reader}

{name} = {reader}.from_pretrained(".")
model = {kind}.from_pretrained(".")
"""
_ADAPTER = """\
from peft import PeftModel
from transformers import {kind}, {reader}

{name} = {reader}.from_pretrained(".")
model = PeftModel.from_pretrained({kind}.from_pretrained("base"{options}), ".")  # base: {reference}
"""
