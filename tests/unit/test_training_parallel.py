import math

import pytest
import torch
from torch import nn

from modelyard.errors import Invalid
from modelyard.kinds import FolderContext
from modelyard.training.gang import Gang, join, repeatable
from modelyard.training.mesh import Mesh
from modelyard.training.parallel import Options, Whole, spread, verify
from modelyard.training.parallel.cut import borders, cut, release
from modelyard.training.parallel.data import reads_buffers, replicated, uses_all
from modelyard.training.parallel.shard import check_parts
from modelyard.training.parallel.steps import pieces, weight
from modelyard.training.parallel.verify import stir
from modelyard.training.split import Split

CPU = torch.device("cpu")


def measure(answer, target):
    return (answer - target).square().mean(), torch.zeros(())


def test_weights_make_the_mean_of_replicas_the_mean_of_rows():
    rows = [7, 6, 6]
    losses = [torch.rand(n, dtype=torch.float64) for n in rows]
    mean_of_replicas = sum(loss.mean() * weight(len(loss), 19, 3) for loss in losses) / 3
    assert float(mean_of_replicas) == pytest.approx(float(torch.cat(losses).mean()), abs=1e-15)


def test_pieces_cover_all_rows_and_differ_by_one_at_most():
    for rows in range(1, 20):
        for count in range(1, rows + 1):
            parts = [list(range(rows))[piece] for piece in pieces(rows, count)]
            assert [row for part in parts for row in part] == list(range(rows))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


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
        assert not torch.distributed.is_initialized()
        with replicated(network, gang) as model:
            assert model is network


def test_a_rank_with_a_gpu_of_its_own_makes_it_the_current_one(tmp_path, monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with join(FolderContext(tmp_path)) as gang:
        assert current == [gang.device] == [torch.device("cuda", 1)]
        assert gang.here == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with join(FolderContext(tmp_path)) as gang:
        assert gang.device == CPU, "there are fewer GPUs than ranks"
    assert len(current) == 1


def test_one_process_in_pieces_steps_as_in_one_go():
    torch.manual_seed(0)
    network, inputs, target = nn.Linear(3, 2).double(), torch.randn(7, 3).double(), torch.randn(7, 2).double()
    found = []
    for count in (1, 3):
        it = spread(network, Split(), Mesh(), Gang(0, 1, CPU), Options(pieces=count), measure, example=inputs[:2], most=7)
        network.zero_grad()
        sums = it.step(inputs, target, 7)
        found.append((sums.loss, network.weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0])
    assert torch.allclose(found[0][1], found[1][1], atol=1e-14)
    assert list(it.full_state()) == ["weight", "bias"]


def test_clipping_is_what_torch_does():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    it = spread(network, Split(), Mesh(), Gang(0, 1, CPU), Options(), measure, example=torch.randn(2, 3), most=4)
    inputs, target = torch.randn(4, 3), torch.randn(4, 2)
    it.step(inputs, target, 4)
    kept = [p.grad.clone() for p in network.parameters()]
    length = it.clip(0.1)
    ours = [p.grad.clone() for p in network.parameters()]
    for parameter, grad in zip(network.parameters(), kept, strict=True):
        parameter.grad = grad
    assert float(torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)) == pytest.approx(length)
    assert all(torch.allclose(a, p.grad) for a, p in zip(ours, network.parameters(), strict=True))
    for parameter in network.parameters():
        parameter.grad.fill_(math.nan)
    assert math.isnan(it.clip(0.1))


def test_what_is_computed_again_is_counted_once():
    found = []
    for again in (False, True):
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        options = Options(recompute=again)
        it = spread(network, Split(blocks="*"), Mesh(), Gang(0, 1, CPU), options, measure, example=torch.randn(2, 3), most=4)
        it.step(torch.ones(4, 3).cumsum(0), torch.zeros(4, 2), 4)
        found.append([*it.full_state().values(), *(p.grad for p in network.parameters())])
    assert len(found[0]) == 9 + 6
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert int(network[1].num_batches_tracked) == 1


class Centred(nn.Module):
    """Reads the buffer that it writes."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, x):
        answer = torch.tanh(self.linear(x - self.mean))
        if self.training:
            self.mean.mul_(0.5).add_(x.detach().mean(0))
        return answer


@pytest.mark.parametrize("pieces", [1, 3])
def test_what_is_computed_again_starts_from_what_was_there_at_first(pieces):
    found = []
    for again in (False, True):
        torch.manual_seed(1)
        network, options = nn.Sequential(Centred(3), Centred(3), nn.Linear(3, 2)), Options(recompute=again, pieces=pieces)
        it = spread(network, Split(blocks="*"), Mesh(), Gang(0, 1, CPU), options, measure, example=torch.randn(2, 3), most=4)
        it.step(torch.ones(6, 3).cumsum(0), torch.zeros(6, 2), 6)
        found.append([*it.full_state().values(), *(p.grad for p in network.parameters())])
    assert found[0][2].any(), "the mean moved"
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_parameter_that_forward_leaves_out_is_seen():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    assert uses_all(network, torch.randn(2, 3))
    network[0].spare = nn.Linear(4, 4)
    assert not uses_all(network, torch.randn(2, 3))
    network[0].spare.requires_grad_(False)
    assert uses_all(network, torch.randn(2, 3))


def test_what_cannot_be_held_in_parts_is_named():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    check_parts(network, list(network))
    network[1].weight = network[0].weight
    check_parts(network, [])
    with pytest.raises(Invalid, match=r"'0\.weight' is one parameter with another of a different block"):
        check_parts(network, list(network))
    network.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(Invalid, match="'scale' is a number without a dim"):
        check_parts(network, [])


def test_compile_does_not_take_an_embedding_in_parts():
    network, split = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 2)), Split({"0": "rows"})
    example = torch.zeros(2, 1, dtype=torch.int64)
    with pytest.raises(Invalid, match="compile does not take the embedding '0'"):
        spread(network, split, Mesh(tensor=2), Gang(0, 2, CPU), Options(compile=True), measure, example=example, most=4)


def test_a_schedule_says_how_many_micro_batches_it_takes():
    for schedule, told in (("1f1b", "at least pipe=4"), ("interleaved", "a multiple of pipe=4")):
        options = Options(schedule=schedule, pieces=3)
        with pytest.raises(Invalid, match=f"'{schedule}' takes {told} micro-batches; there are 3"):
            spread(nn.Linear(3, 2), Split(), Mesh(pipe=4), Gang(0, 4, CPU), options, measure, example=torch.ones(2, 3), most=4)


def test_a_stage_holds_its_part_and_keeps_its_names():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    first, last = (cut(network, [["0", "1"], ["2"]], at) for at in (0, 1))
    assert [name for name, _ in first.named_parameters()] == ["0.weight", "0.bias"]
    assert [name for name, _ in last.named_parameters()] == ["2.weight", "2.bias"]
    x = torch.randn(5, 3)
    assert torch.equal(last(first(x)), network(x))


def test_a_sequence_that_is_not_forward_is_refused():
    network = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    with pytest.raises(Invalid, match="do not give what forward of Sequential gives"):
        borders(network, [["0"], ["2"]], torch.randn(2, 3))
    with pytest.raises(Invalid, match="stage 1: "):
        borders(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), [["0"], ["0"]], torch.randn(2, 3))


class Masked(nn.Module):
    """Between its parts forward does more, and reads what they are like."""

    def __init__(self):
        super().__init__()
        self.embed, self.drop, self.layers = nn.Linear(3, 4), nn.Dropout(0.5), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, rows):
        mask = (rows.sum(-1, keepdim=True) > 0).to(self.embed.weight.dtype)
        hidden = self.drop(self.embed(rows))
        for layer in self.layers:
            hidden = hidden + layer(hidden) * mask
        return self.head(hidden)


class Dropping(nn.Module):
    """Does something between its parts, but only while it trains."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(nn.functional.dropout(self.first(x), 0.5, self.training))


def test_a_sequence_is_compared_with_forward_while_it_trains_too():
    stages = [["first"], ["last"]]
    network, seen = Dropping(), torch.randn(2, 3)
    with pytest.raises(Invalid, match="while it trains, forward of Dropping does more"):
        borders(network, stages, seen)
    norm = nn.BatchNorm1d(3)
    network = nn.Sequential()
    network.first, network.last = nn.Sequential(nn.Dropout(0.5), norm), nn.Linear(3, 2)
    assert len(borders(network, stages, seen)) == 3
    assert int(norm.num_batches_tracked) == 0, "what was tried does not count"


def test_stages_run_the_networks_own_forward_where_it_passes():
    """As far as each goes. Here a block's answer is not what enters the next one: that is found out."""
    network, rows = Masked().eval(), torch.randn(5, 3)
    with pytest.raises(Invalid, match="do not give what forward of Masked gives"):
        borders(network, [["embed", "layers.0"], ["layers.1", "layers.2", "head"]], rows, passes=True)
    stages = [["embed"], ["layers.0", "layers.1", "layers.2", "head"]]
    between = borders(network, stages, rows, passes=True)
    assert torch.equal(between[-1], network(rows))
    last = cut(network, stages, 1, passes=True)
    assert [name.partition(".")[0] for name, _ in last.named_parameters()] == ["layers"] * 6 + ["head"] * 2
    last.train()
    torch.manual_seed(0)
    dropped = last(between[1], rows=rows)
    torch.manual_seed(0)
    network.train()
    assert torch.equal(dropped, network(rows)), "what lies between stages is done once"
    release(network, [last])
    assert [p.numel() for p in network.embed.parameters()] == [0, 0], "another stage holds it"
    torch.manual_seed(0)
    assert torch.equal(dropped, last(between[1], rows=rows))


def test_what_is_0_is_given_numbers_to_be_compared_by():
    parameters = dict(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).named_parameters())
    nn.init.zeros_(parameters["1.weight"])
    assert stir(parameters) == ("1.weight",)
    assert parameters["1.weight"].any()


def test_repeatable_is_one_thread_and_deterministic_while_it_lasts(two_threads):
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    assert before == (2, False)
    with repeatable():
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (1, True)
    assert before == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())


def test_memory_that_runs_out_while_it_is_compared_is_told_as_that():
    def out(*given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    before = Whole(0.0, {}, {}, torch.float32, ())
    network, rows = nn.Linear(3, 2), torch.ones(4, 3)
    it = spread(network, Split(), Mesh(), Gang(0, 1, CPU), Options(), measure, example=rows[:2], most=4)
    it.runner.step = out
    with pytest.raises(torch.OutOfMemoryError):
        verify(it, before, rows, rows)
