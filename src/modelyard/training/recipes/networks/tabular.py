"""A small residual network for tables. This file travels with the model: it needs nothing but torch."""

import torch
from torch import nn

# How it may be split over ranks, as plain data; nothing here reads it.
PARALLEL = {
    "tensor": {"layers.*.up": "columns", "layers.*.down": "rows"},
    "blocks": "layers.*",
    "sequence": ["embed", "layers.*", "norm", "head"],
}


class Block(nn.Module):
    """Two linear layers with a shortcut around them."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.dropout(self.down(torch.relu(self.up(self.norm(x)))))
        return x + added


class TabularNetwork(nn.Module):
    """columns [n, inputs] → logits or numbers [n, outputs]. Of a category's 0/1 columns `embed` keeps a vector each."""

    def __init__(self, inputs: int, outputs: int, width: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.layers = nn.Sequential(*(Block(width, dropout) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, columns: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.norm(self.layers(self.embed(columns))))
        return answer
