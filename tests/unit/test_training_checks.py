import pytest
import torch
from torch import nn

from modelyard.errors import Invalid
from modelyard.training.checks import check_learns, check_norms, check_rows
from modelyard.training.mesh import Mesh


def test_something_must_learn():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).requires_grad_(False)
    with pytest.raises(Invalid, match="No parameter of Sequential learns"):
        check_learns(network)
    network[1].requires_grad_(True)
    check_learns(network)


def test_batch_norm_needs_rows_to_take_statistics_of():
    row, network = torch.randn(1, 3), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    check_norms(network, row, 2)
    for least, told in ((1, "micro-batches of one row: Expected more than 1 value"), (0, "one row|no row")):
        with pytest.raises(Invalid, match=told):
            check_norms(network, row, least)
    assert int(network[1].num_batches_tracked) == 0
    assert not network.training
    check_norms(nn.LayerNorm(3), row, 0)


def test_one_image_is_enough_where_batch_norm_sees_many_places_of_it():
    image, network = torch.randn(1, 2, 4, 4), nn.Sequential(nn.BatchNorm2d(2))
    check_norms(network, image, 1)
    assert int(network[0].num_batches_tracked) == 0, "what was tried does not count"
    with pytest.raises(Invalid, match="micro-batches of no row"):
        check_norms(network, image, 0)


def test_every_step_needs_a_row_for_each_that_computes():
    check_rows(9, 4, Mesh(data=3), 1)
    told = "Batches of 3 rows leave some of 2 × 2 micro-batches without a row: the train split makes 9 rows, of which each of "
    with pytest.raises(Invalid, match=told + "3 steps needs 4"):
        check_rows(9, 4, Mesh(shard=2), 2)


def test_a_pipe_fills_its_pieces_but_not_its_replicas():
    check_rows(2, 8, Mesh(data=2, pipe=2), 4)
    with pytest.raises(
        Invalid, match="of 2 replicas without a row: the train split makes 1 rows, of which each of 1 steps needs 2"
    ):
        check_rows(1, 8, Mesh(data=2, pipe=2), 4)
