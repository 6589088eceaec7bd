"""Job kinds that import torch when they are loaded, before the ranks are forked: none of it counts as a rank's silence."""

import os
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


def crosses(config: Any, inputs: Any, outputs: Any, context: Any) -> None:
    """Add up to `number` over all ranks, a checkpoint a step; in the first life wait at step `rank` for what comes."""
    dist.init_process_group("gloo", init_method=context.rendezvous, rank=context.rank, world_size=context.world_size)
    before = context.latest()
    done = int((before / "step.txt").read_text()) if before else 0
    context.log(f"begins at {done} with {os.environ['LOCAL_WORLD_SIZE']} of {os.environ['WORLD_SIZE']} ranks here")
    for step in range(done + 1, config.number + 1):
        ones = torch.ones(1)
        dist.all_reduce(ones)
        if context.rank == 0:
            folder = context.work / "checkpoint"
            folder.mkdir(exist_ok=True)
            (folder / "step.txt").write_text(str(step))
            context.checkpoint(step, folder)
            context.metric(step, ranks=ones.item())
        while before is None and step == config.rank:
            context.check()
            time.sleep(0.02)
    context.report(rows=config.number)
    if context.rank == 0:
        (context.work / "out").mkdir()
        (context.work / "out" / "steps.txt").write_text(str(config.number))
        outputs.publish("out", context.work / "out")


def forward(what: str) -> None:
    while what == "spin":
        pass
    raise ValueError("boom in forward")
