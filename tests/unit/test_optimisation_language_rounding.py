"""Grids: the bytes are what gguf reads back as the values that were meant, nearest is llama.cpp's own, compensated loses less
of what a layer answers."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.errors import Invalid
from modelyard.optimisation.language.rounding import BLOCK, GRIDS, compensated, nearest


def kind_of(name: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[name.upper()]


def matrix(rows: int, columns: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def seen(columns: int, rows: int, seed: int) -> torch.Tensor:
    """The sum of x xᵀ over inputs that go together, as those of a layer do."""
    x = matrix(rows, columns, seed) @ matrix(columns, columns, seed + 1) / columns**0.5
    return x.T @ x


@pytest.mark.parametrize("kind", GRIDS)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000), rows=st.integers(1, 9), blocks=st.integers(1, 4), scale=st.sampled_from([1e-6, 0.02, 1.0, 300.0])
)
def test_the_bytes_are_what_gguf_reads_back(kind, seed, rows, blocks, scale):
    weight = matrix(rows, blocks * BLOCK, seed, scale)
    for made in (nearest(weight, kind), compensated(weight, seen(weight.shape[1], 50, seed), kind)):
        packed = made.packed()
        assert packed.shape[1] * 8 == weight.shape[1] * GRIDS[kind].bits
        np.testing.assert_array_equal(gguf.quants.dequantize(packed, kind_of(kind)), made.values().numpy())


@pytest.mark.parametrize("kind", GRIDS)
def test_nearest_is_as_near_as_gguf_s_own_quantiser(kind):
    weight = matrix(64, 128, 3, 0.02)
    theirs = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind_of(kind)), kind_of(kind))
    ours, other = (
        float(((given - weight) ** 2).mean().sqrt()) for given in (nearest(weight, kind).values(), torch.from_numpy(theirs))
    )
    assert ours == pytest.approx(other, rel=0.01)


@pytest.mark.parametrize("kind", ["q4_0", "q4_1"])
def test_what_a_layer_answers_loses_less_than_half(kind):
    weight, hessian = matrix(96, 128, 5, 0.02), seen(128, 400, 7)

    def lost(values: torch.Tensor) -> float:
        error = values - weight
        return float((error @ hessian * error).sum())

    assert lost(compensated(weight, hessian, kind).values()) < 0.5 * lost(nearest(weight, kind).values())


def test_what_was_learned_since_eight_bits_goes_back_unless_the_scale_is_another():
    base = nearest(matrix(256, 256, 3), "q8_0")
    learned = 0.3 * base.scale.float().repeat_interleave(BLOCK, 1)
    learned[base.codes.abs() == 127] = 0  # the scale stays

    def kept(share: float) -> float:
        there = nearest(base.values() + learned, "q8_0", share).values()
        return float((there - base.values()).mean() / learned.mean())

    assert kept(1.0) == 0
    assert kept(1.03) == pytest.approx(1, abs=0.05)


def test_columns_that_see_nothing_do_no_harm():
    weight, hessian = matrix(8, 64, 1), seen(64, 200, 2)
    hessian[5], hessian[:, 5] = 0, 0
    found = compensated(weight, hessian, "q4_0").values()
    assert torch.isfinite(found).all()
    assert (found[:, 5] == 0).all()


@pytest.mark.parametrize("kind", GRIDS)
def test_zeros_stay_zeros(kind):
    for made in (nearest(torch.zeros(3, 64), kind), compensated(torch.zeros(3, 64), torch.eye(64), kind)):
        assert (made.values() == 0).all()


@pytest.mark.parametrize(
    ("shape", "kind", "said"), [((4, 40), "q4_0", "multiples of 32"), ((4,), "q4_0", "multiples"), ((4, 32), "q3", "q3")]
)
def test_what_does_not_fit_is_refused(shape, kind, said):
    with pytest.raises(Invalid, match=said):
        nearest(torch.zeros(shape), kind)
