"""Quantisation-aware training: weights and what layers take are rounded on the way forward as eight bits will round them, and
gradients pass the rounding as if it were not there (B. Jacob et al., 2018, arXiv 1712.05877). What comes out is a float network
whose weights stand the rounding well.

Weights as in `quantise`: symmetric, a scale for each channel, 7 of 8 bits. A batch norm that is folded into the layer later
multiplies a channel by a number, which changes its scale and no rounding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from modelyard.optimisation.steps.learn import Learning

Tensor = torch.Tensor
_WEIGHTS = 64  # the largest of 7 bits
_LEVELS = 255
_NEW = 0.05  # what a batch counts in the running range
_LEAST = 1e-8
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def train(network: nn.Module, learning: Learning, epochs: int, lr: float) -> None:
    """Train `network` in place under the rounding; its own layers and parameters are as before, and so are their names."""
    layers = [layer for layer in network.modules() if isinstance(layer, LAYERS)]
    hooks = [layer.register_forward_pre_hook(_Rounded()) for layer in layers]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", _Weight())
    try:
        learning.fit(network, "qat", epochs, lr)
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


class _Weight(nn.Module):
    """A weight [out, …] as eight bits have it."""

    def forward(self, weight: Tensor) -> Tensor:
        scale = weight.detach().abs().flatten(1).amax(dim=1).clamp(min=_LEAST) / _WEIGHTS
        zero = torch.zeros_like(scale, dtype=torch.int32)
        rounded: Tensor = torch.fake_quantize_per_channel_affine(weight, scale.float(), zero, 0, -_WEIGHTS, _WEIGHTS)
        return rounded


class _Rounded:
    """A layer's input as unsigned eight bits have it, by the range seen in training so far."""

    def __init__(self) -> None:
        self.low, self.high = 0.0, 0.0

    def __call__(self, layer: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (value,) = given
        if layer.training:
            self._see(value.detach())
        scale = max(_LEAST, (self.high - self.low) / _LEVELS)
        zero = min(_LEVELS, max(0, round(-self.low / scale)))
        return (torch.fake_quantize_per_tensor_affine(value, scale, zero, 0, _LEVELS),)

    def _see(self, value: Tensor) -> None:
        """Zero is always in the range."""
        low, high = min(0.0, float(value.min())), max(0.0, float(value.max()))
        share = _NEW if self.high > self.low else 1.0
        self.low, self.high = self.low + share * (low - self.low), self.high + share * (high - self.high)
