"""Job kinds that import torch when they are loaded, before the ranks are forked: none of it counts as a rank's silence."""

import os
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from modelyard.training import together
from modelyard.training.feed import Feed
from modelyard.training.gang import join


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


class Rows:
    """Row groups of numbers, for a feed."""

    rows, bytes = np.array([1000]), 8000

    def take(self, positions: Any) -> dict[str, Any]:
        return {"x": positions, "y": positions}


class Doubles:
    """A plan whose rows are hard to make: from step `stuck` on nothing comes of them."""

    features, target = ("x",), "y"

    def __init__(self, stuck: int) -> None:
        self.left = stuck

    def before(self, columns: Any) -> Any:
        self.left -= 1
        return decode(columns["x"], hangs=self.left == 0)


def decode(values: Any, *, hangs: bool) -> Any:
    while hangs:
        time.sleep(0.1)
    return 2 * values


def feeds(config: Any, inputs: Any, outputs: Any, context: Any) -> None:
    """Take the batches of a feed, which hangs in its thread at step `number`."""
    feed = Feed(Doubles(config.number), 1000, context.check, Rows())  # type: ignore[arg-type]
    for batch in feed.batches(0, 0, context.world_size, context.rank, 20 * context.world_size):
        context.report(step=batch.step)
        context.check()


def shares(config: Any, inputs: Any, outputs: Any, context: Any) -> None:
    """Have rank 0 make the rows of all, which never ends."""
    with join(context) as gang:
        together.once(lambda *_: decode(0, hangs=True), gang, context)(None, "train", context.check)  # type: ignore[arg-type]


def forward(what: str) -> None:
    while what == "spin":
        pass
    raise ValueError("boom in forward")
