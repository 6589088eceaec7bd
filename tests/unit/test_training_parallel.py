import pytest
import torch
from torch import nn

from modelyard.kinds import FolderContext
from modelyard.training.gang import Gang, join, repeatable
from modelyard.training.parallel import applied, reads_buffers, weight

CPU = torch.device("cpu")


def test_weights_make_the_mean_of_ranks_the_mean_of_rows():
    rows = [7, 6, 6]
    losses = [torch.rand(n, dtype=torch.float64) for n in rows]
    gang = Gang(0, 3, CPU)
    mean_of_ranks = sum(loss.mean() * weight(len(loss), 19, gang) for loss in losses) / 3
    assert float(mean_of_ranks) == pytest.approx(float(torch.cat(losses).mean()), abs=1e-15)


def test_buffers_that_only_batch_norm_writes_need_not_be_shared():
    assert not reads_buffers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()))
    assert not reads_buffers(nn.Linear(2, 1))
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    network[1].register_buffer("scale", torch.ones(1))
    assert reads_buffers(network)

    class OwnNorm(nn.BatchNorm1d):
        """A subclass may do with its buffers what it likes."""

    assert reads_buffers(OwnNorm(2))


def test_a_gang_of_one_needs_no_process_group(tmp_path):
    network = nn.Linear(2, 1)
    with join(FolderContext(tmp_path)) as gang:
        assert (gang.rank, gang.world) == (0, 1)
        assert gang.sum(1.5, 2.0) == [1.5, 2.0]
        gang.share_buffers(network)
        assert not torch.distributed.is_initialized()
        with applied(network, gang) as model:
            assert model is network


def test_repeatable_is_one_thread_and_deterministic_while_it_lasts():
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with repeatable():
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (1, True)
    assert before == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
