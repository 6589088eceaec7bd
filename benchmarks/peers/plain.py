"""A training loop as one writes it by hand, with nothing around it: the peer of training.py. With ranks > 1, plain DDP or plain
FSDP2 on gloo.

plain.py FOLDER RANKS ddp|fsdp BATCH LR WARM MEASURED     (FOLDER holds x.npy FP32 [n, 64] and y.npy INT64 [n])
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parent))

from network import Network


def train(rank: int, folder: str, ranks: int, how: str, batch: int, lr: float, warm: int, measured: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = (torch.from_numpy(np.load(Path(folder) / f"{name}.npy")) for name in "xy")
    model: nn.Module = Network(warm=warm, measured=measured)
    if ranks > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
        model = nn.parallel.DistributedDataParallel(model) if how == "ddp" else sharded(model, ranks)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    model.train()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    steps = -(-len(x) // batch)  # batches are even, so that both sides have the same
    for step in range(warm + measured + 1):
        rows = order[len(x) * step // steps : len(x) * (step + 1) // steps].chunk(ranks)[rank]
        optimiser.zero_grad()
        loss = cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimiser.step()
    if ranks > 1 and how == "ddp":
        # Whoever lets go of the process group last joins gloo's thread. A reducer that is the last does so holding the GIL,
        # which that thread may be waiting for: this script then never ended, about once in ten times.
        del model.logger, model.reducer
    if ranks > 1:
        distributed.destroy_process_group()


def sharded(model: nn.Module, ranks: int) -> nn.Module:
    """Each block a unit, the rest another."""
    mesh = init_device_mesh("cpu", (ranks,))
    for block in model.features:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def main() -> None:
    folder, ranks, how, batch, lr, warm, measured = sys.argv[1:]
    given = (folder, int(ranks), how, int(batch), float(lr), int(warm), int(measured))
    if int(ranks) == 1:
        train(0, *given)
    else:
        (Path(folder) / "rendezvous").unlink(missing_ok=True)
        multiprocessing.start_processes(train, args=given, nprocs=int(ranks), start_method="fork")


if __name__ == "__main__":
    main()
