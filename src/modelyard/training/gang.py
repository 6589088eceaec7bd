"""The ranks of one job as torch sees them: joining, adding up, and the settings that make a run repeatable.

Called by `loop.run` in each rank. NCCL where every rank has its own GPU, gloo otherwise; a gang of one needs neither.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch

# Every optimiser loads it (0.7 s and more). Here it is loaded before the ranks are forked: once for all of them.
import torch._inductor.config
from torch import distributed, nn
from torch.utils import deterministic as memory

from modelyard.errors import Unavailable
from modelyard.kinds import JobContext

_TIMEOUT = timedelta(minutes=10)  # the launcher ends a gang whose rank died long before


@dataclass(frozen=True, slots=True)
class Gang:
    """This process's place; `here`: ranks on this node. Every method is collective: all ranks call it, in the same order."""

    rank: int
    world: int
    device: torch.device
    here: int = 1

    def sum(self, *values: float) -> list[float]:
        """Each value added up over the ranks, in float64."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def share_buffers(self, network: nn.Module) -> None:
        """Give every rank rank 0's buffers (batch statistics), which are the ones that are kept."""
        if self.world > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, src=0)


@contextmanager
def join(context: JobContext) -> Iterator[Gang]:
    """Meet the other ranks at `context.rendezvous`, and take leave of them at the end.

    A rank that fails takes no leave: its connections close with its process, after it has said why. So none of the others,
    which fail for want of it, can be taken for the cause."""
    # Of those on this node; a gang may span several.
    ranks, rank = int(os.environ.get("LOCAL_WORLD_SIZE", context.world_size)), int(os.environ.get("LOCAL_RANK", context.rank))
    check_gpus(int(os.environ.get("RANK_GPUS", 0)), ranks, torch.cuda.device_count())
    own_gpu = torch.cuda.device_count() >= ranks
    device = torch.device("cuda", rank) if own_gpu else torch.device("cpu")
    if own_gpu:
        torch.cuda.set_device(device)  # FSDP2, meshes and NCCL take the current one, whatever the network lies on
    gang = Gang(context.rank, context.world_size, device, ranks)
    if context.world_size == 1:
        yield gang
        return
    if context.rendezvous.startswith("file:"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: a sandbox has loopback and no name of its own
    distributed.init_process_group(
        "nccl" if own_gpu else "gloo",
        init_method=context.rendezvous,
        rank=context.rank,
        world_size=context.world_size,
        timeout=_TIMEOUT,
    )
    yield gang
    distributed.destroy_process_group()


def check_gpus(asked: int, ranks: int, found: int) -> None:
    """Raises `Unavailable` where a rank that `asked` for a GPU has none to itself: it would train on a processor, unasked."""
    if asked and found < ranks:
        raise Unavailable(
            f"The job asked for {asked} GPUs a rank, and torch finds {found} for {ranks} ranks here. See what nvidia-smi "
            f"shows, and whether torch {torch.__version__} is built for the driver; without --gpus it trains on processors."
        )


def processors() -> int:
    """What a rank of this job was given; one outside of a job."""
    return int(os.environ.get("RANK_CPUS", 1))


@contextmanager
def repeatable(threads: int = 1) -> Iterator[None]:
    """The same operations in the same order at every run: one thread a rank or `threads`, deterministic algorithms only."""
    before, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Deterministic mode would also overwrite every fresh buffer, to show who reads one unset: a cost at every step.
    filled, memory.fill_uninitialized_memory = memory.fill_uninitialized_memory, False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        memory.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(deterministic)
