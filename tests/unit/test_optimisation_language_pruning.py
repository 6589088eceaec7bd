"""Pruning: each row loses the share that was asked for, by each method what its paper says, and noughts survive rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_optimisation_language_rounding import matrix, seen

from modelyard.errors import Invalid
from modelyard.optimisation.language.pruning import pruned
from modelyard.optimisation.language.rounding import compensated, nearest

METHODS = ["magnitude", "wanda", "sparsegpt"]


def lost(values: torch.Tensor, weight: torch.Tensor, hessian: torch.Tensor) -> float:
    """The sum of the squared errors of what the layer answers."""
    error = values - weight
    return float((error @ hessian * error).sum())


@pytest.mark.parametrize("by", METHODS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 9), columns=st.integers(2, 300), data=st.data())
def test_each_row_loses_the_share_that_was_asked_for(by, seed, rows, columns, data):
    count = data.draw(st.integers(1, columns - 1))
    weight, hessian = matrix(rows, columns, seed), seen(columns, 2 * columns, seed)
    values, gone = pruned(weight, hessian, count / columns, by=by)
    assert (gone.sum(1) == count).all()
    assert ((values == 0) == gone).all()
    if by != "sparsegpt":
        assert (values[~gone] == weight[~gone]).all()


@pytest.mark.parametrize("by", METHODS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 9), fours=st.integers(1, 70))
def test_two_of_every_four(by, seed, rows, fours):
    values, gone = pruned(matrix(rows, 4 * fours, seed), seen(4 * fours, 300, seed), 0.5, by=by, pattern="2:4")
    assert (gone.view(rows, fours, 4).sum(-1) == 2).all()
    assert ((values == 0) == gone).all()


def test_wanda_looks_at_what_a_column_sees_and_magnitude_does_not():
    x = torch.tensor([[100.0, 1.0, 0.1], [0.0, 1.0, 0.1]])
    weight = torch.tensor([[1.0, 2.0, 3.0]])
    assert pruned(weight, x.T @ x, 0.67, by="wanda")[0].tolist() == [[1.0, 0.0, 0.0]]
    assert pruned(weight, x.T @ x, 0.67, by="magnitude")[0].tolist() == [[0.0, 0.0, 3.0]]


def test_where_nothing_goes_together_there_is_nothing_to_make_up_for():
    weight = matrix(8, 64, 0)
    for one, other in zip(pruned(weight, torch.eye(64), 0.5, by="sparsegpt"), pruned(weight, torch.eye(64), 0.5), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("pattern", ["any", "2:4"])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(8, 32), fours=st.integers(32, 64), share=st.sampled_from([0.3, 0.5, 0.7]))
def test_what_is_made_up_for_loses_least(pattern, seed, rows, fours, share):
    weight, hessian = matrix(rows, 4 * fours, seed), seen(4 * fours, 1000, seed + 1)
    share = 0.5 if pattern == "2:4" else share
    found = {by: lost(pruned(weight, hessian, share, by=by, pattern=pattern)[0], weight, hessian) for by in METHODS}
    assert found["sparsegpt"] <= min(found["wanda"], found["magnitude"])


@pytest.mark.parametrize("by", METHODS)
def test_noughts_stay_when_rounded_and_rounding_makes_up_for_them(by):
    weight, hessian = matrix(96, 128, 5, 0.02), seen(128, 400, 7)
    values, gone = pruned(weight, hessian, 0.5, by=by)
    for kind in ("q8_0", "q4_0"):
        errors = []
        for found in (nearest(values, kind), compensated(weight, hessian, kind, gone)):
            assert (found.codes[gone] == 0).all()
            assert (found.values()[gone] == 0).all()
            errors.append(lost(found.values(), weight, hessian))
        if by != "sparsegpt":  # which did so already
            assert errors[1] < 0.9 * errors[0]


def test_a_row_of_noughts_and_columns_that_see_nothing_do_no_harm():
    weight, hessian = matrix(8, 64, 1), seen(64, 200, 2)
    weight[3], hessian[5], hessian[:, 5] = 0, 0, 0
    for by in METHODS:
        values, gone = pruned(weight, hessian, 0.25, by=by)
        assert torch.isfinite(values).all()
        assert (gone.sum(1) == 16).all()
        assert gone[torch.arange(8) != 3, 5].all() or by == "magnitude"
        assert torch.isfinite(compensated(weight, hessian, "q4_0", gone).values()).all()


@pytest.mark.parametrize(
    ("columns", "share", "pattern", "said"),
    [
        (64, 0.01, "any", r"0\.01 of a matrix \[4, 64\] is 0 weights of each row.*from 0\.01562 to 0\.9844"),
        (1, 0.99, "any", "is 0 weights"),
        (6, 0.5, "2:4", "multiples of 4"),
    ],
)
def test_what_leaves_nothing_out_or_does_not_fit_is_refused(columns, share, pattern, said):
    with pytest.raises(Invalid, match=said):
        pruned(matrix(4, columns, 0), torch.eye(columns), share, pattern=pattern)


def test_the_largest_share_leaves_a_weight_in_every_row():
    assert (pruned(matrix(4, 64, 0), torch.eye(64), 0.99)[0] != 0).sum(1).tolist() == [1] * 4


def test_a_grid_without_nought_is_refused():
    with pytest.raises(Invalid, match="no code for nought"):
        compensated(matrix(4, 32, 0), torch.eye(32), "q4_1", torch.zeros(4, 32, dtype=torch.bool))
