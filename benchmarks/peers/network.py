"""The network that both sides of training.py train: 64 columns as an 8×8 picture, about a million parameters.

It keeps time itself, so that both sides are measured by the same lines: between the starts of two training steps.
"""

import time
from itertools import pairwise

import torch
from torch import nn

PARALLEL = {"blocks": "features.*"}


class Network(nn.Module):
    def __init__(self, width: int = 96, layers: int = 12, warm: int = 50, measured: int = 100) -> None:
        super().__init__()
        sizes = [1, *[width] * layers]
        self.features = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(a, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(sizes))
        )
        self.head = nn.Linear(width, 10)
        self.stamps: list[tuple[float, float]] = []
        self.warm, self.measured = warm, measured

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.stamps.append((time.perf_counter(), time.process_time()))
            if len(self.stamps) == self.warm + self.measured + 1:
                wall, cpu = ((b - a) / self.measured for a, b in zip(self.stamps[self.warm], self.stamps[-1], strict=True))
                print(f"seconds a step: {wall:.6f} wall {cpu:.6f} cpu", flush=True)
        return self.head(self.features(x.reshape(-1, 1, 8, 8)).mean(dim=(2, 3)))
