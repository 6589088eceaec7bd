"""A Hugging Face folder as a network that learns, and back as a folder that plain transformers loads.

The fine-tuning recipes call it; `engines/huggingface.py` opens the folder, which is a version's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modelyard.engines.huggingface import CONFIG, copy_companions, hub, open_model
from modelyard.errors import Invalid


def check_folder(folder: Path | None, recipe: str) -> Path:
    """Raises `Invalid` where there is no Hugging Face model to begin from."""
    if folder is None or not (folder / CONFIG).is_file():
        there = "there is none" if folder is None else f"this one has no {CONFIG}"
        raise Invalid(
            f"Recipe '{recipe}' fine-tunes a Hugging Face model: name its version as the input 'base' ({there}); "
            "`modelyard model import NAME --from FOLDER` makes one."
        )
    return folder


def open_network(folder: Path, kind: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """The model in `folder`, ready to learn. Raises `Invalid` where weights of it are missing or of another shape, save those
    of a head that `options` make new."""
    network, wrong = open_model(folder, kind, dtype=dtype, **options)
    network.train()
    fresh = head_of(network) if "num_labels" in options else set()
    if fresh:
        wrong.pop("unexpected", None)  # of the head that the base had
    missing = [name for names in wrong.values() for name in names if name.partition(".")[0].strip("('") not in fresh]
    if missing:
        raise Invalid(f"The weights in the folder are not those of {type(network).__name__}: {', '.join(missing[:5])}.")
    return network


def head_of(network: Any) -> set[str]:
    """The sub-modules of a classifier that are not its backbone: what a new set of labels makes anew."""
    base = getattr(network, "base_model_prefix", "")
    return {name for name, part in network.named_children() if name != base and any(True for _ in part.parameters())}


def save_network(network: Any, state: Mapping[str, torch.Tensor], base: Path, folder: Path) -> None:
    """`state` in transformers' own form in `folder`, with the base's tokenizer beside it. The same state gives the same
    bytes."""
    with hub():
        network.save_pretrained(folder, state_dict=dict(state), max_shard_size="4GB")
    copy_companions(base, folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner alone
