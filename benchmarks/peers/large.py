"""The network of checkpointing.py: a transformer of 50 million parameters over 64 columns, each of which is a token.

It keeps time itself: when every WINDOW-th step began, and what processor time its process had taken by then. Nothing of the
platform is imported; `PARALLEL` is what it says of its own splitting.
"""

import time
from functools import partial

import torch
from torch import nn

PARALLEL = {"blocks": "layers.*"}
EVERY = 50  # steps from one checkpoint to the next
WINDOW = EVERY // 2


class Network(nn.Module):
    def __init__(self, width: int = 512, depth: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(1, width)
        self.places = nn.Parameter(torch.randn(64, width) * 0.02)
        layer = partial(nn.TransformerEncoderLayer, width, 8, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.ModuleList(layer() for _ in range(depth))
        self.head = nn.Linear(width, 10)
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            if self.steps % WINDOW == WINDOW - 1:
                print(f"step {self.steps} began at {time.perf_counter():.4f} {time.process_time():.4f}", flush=True)
            self.steps += 1
        x = self.embed(x.unsqueeze(-1)) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))
