"""Job kinds that import torch when they are loaded, before the ranks are forked: none of it counts as a rank's silence."""

import time
from typing import Any

import torch
import torch.distributed as dist


def strands(config: Any, inputs: Any, outputs: Any, context: Any) -> None:
    """Meet with gloo; then one rank raises or spins (`text`), while the others are in a collective that needs it."""
    dist.init_process_group("gloo", init_method=context.rendezvous, rank=context.rank, world_size=context.world_size)
    for _ in range(3):
        dist.all_reduce(torch.zeros(1))
    if context.rank == config.rank:
        context.report(at=time.monotonic())
        forward(config.text)
    dist.all_reduce(torch.zeros(1))


def forward(what: str) -> None:
    while what == "spin":
        pass
    raise ValueError("boom in forward")
