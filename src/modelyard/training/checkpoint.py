"""A training run between two epochs, as a folder. What is resumed from it goes on bit for bit as if nothing had happened.

Random numbers need no place here: the loop seeds them anew at each epoch from the job's seed (`loop.py`). Loading runs no code:
tensors, numbers and text only.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

from modelyard.errors import Damaged

FILE = "state.pt"


@dataclass(slots=True)
class Progress:
    """Where a run stands: epochs done, rows seen by all ranks, and per epoch the metrics."""

    epochs: int = 0
    seen: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


def save(folder: Path, network: nn.Module, optimiser: optim.Optimizer, progress: Progress) -> None:
    """Write a checkpoint into the new `folder`."""
    folder.mkdir(parents=True)
    state: dict[str, Any] = {
        "network": network.state_dict(),
        "optimiser": optimiser.state_dict(),
        "epochs": progress.epochs,
        "seen": progress.seen,
        "curve": progress.curve,
    }
    torch.save(state, folder / FILE)


def load(folder: Path, network: nn.Module, optimiser: optim.Optimizer, device: torch.device) -> Progress:
    """Put a checkpoint into `network` and `optimiser`. Raises `Damaged` where it does not fit them."""
    try:
        state = torch.load(folder / FILE, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        return Progress(state["epochs"], state["seen"], state["curve"])
    except (KeyError, RuntimeError, ValueError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise Damaged(f"The checkpoint cannot be resumed from: {error}") from error
