"""A small residual network for images. This file travels with the model: it needs nothing but torch."""

import torch
from torch import nn


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3×3 convolution and batch norm, which fold into one operation at inference."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """Two convolutions with a shortcut around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = convolution(width, width)
        self.second = convolution(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class ResidualClassifier(nn.Module):
    """pixels [n, channels, height, width] → logits [n, classes]. Blocks after the first halve the sides, double the width."""

    def __init__(self, channels: int, classes: int, width: int, blocks: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [convolution(channels, width), nn.ReLU(), Block(width)]
        for _ in range(blocks - 1):
            layers += [convolution(width, 2 * width, stride=2), nn.ReLU(), Block(2 * width)]
            width *= 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(pixels).mean(dim=(2, 3)))
        return logits
