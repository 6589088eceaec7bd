"""A training loop as one writes it by hand, with nothing around it: the peer of training.py. With ranks > 1, plain DDP on gloo.

plain.py FOLDER RANKS BATCH LR WARM MEASURED     (FOLDER holds x.npy FP32 [n, 64] and y.npy INT64 [n])
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parent))

from network import Network


def train(rank: int, folder: str, ranks: int, batch: int, lr: float, warm: int, measured: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = (torch.from_numpy(np.load(Path(folder) / f"{name}.npy")) for name in "xy")
    model: nn.Module = Network(warm=warm, measured=measured)
    if ranks > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
        model = nn.parallel.DistributedDataParallel(model)
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
    if ranks > 1:
        # Whoever lets go of the process group last joins gloo's thread. A reducer that is the last does so holding the GIL,
        # which that thread may be waiting for: this script then never ended, about once in ten times.
        del model.logger, model.reducer
        distributed.destroy_process_group()


def main() -> None:
    folder, ranks, batch, lr, warm, measured = sys.argv[1:]
    given = (folder, int(ranks), int(batch), float(lr), int(warm), int(measured))
    if int(ranks) == 1:
        train(0, *given)
    else:
        (Path(folder) / "rendezvous").unlink(missing_ok=True)
        multiprocessing.start_processes(train, args=given, nprocs=int(ranks), start_method="fork")


if __name__ == "__main__":
    main()
