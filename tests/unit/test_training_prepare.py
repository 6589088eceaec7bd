"""What is decided before a gang trains, by ranks that a fake process group stands for: which mesh, and why."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from modelyard.errors import Invalid
from modelyard.training import estimate
from modelyard.training.config import TrainConfig
from modelyard.training.gang import Gang
from modelyard.training.mesh import Mesh
from modelyard.training.prepare import choose_mesh, measure_whole, spread_network
from modelyard.training.split import Split

CPU = torch.device("cpu")
PAGE = 4096
SPLIT = Split({"*.up": "columns", "*.down": "rows"}, blocks="*")


@pytest.fixture
def four() -> Iterator[None]:
    """A process group of four ranks, three of which are nowhere: what they would add is nothing."""
    distributed.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield
    distributed.destroy_process_group()


def machine(monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": PAGE, "SC_PHYS_PAGES": memory // PAGE}.__getitem__)
    monkeypatch.setattr(estimate, "bound", lambda: None)


def block(width: int) -> nn.Module:
    made = nn.Module()
    made.up, made.down = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
    return made


def chosen(blocks: int, width: int, split: Split = SPLIT, *, here: int = 4) -> tuple[Mesh, str]:
    plan: Any = SimpleNamespace(network=nn.Sequential(*(block(width) for _ in range(blocks))), split=split)
    return choose_mesh(TrainConfig(mesh="auto"), plan, Gang(0, 4, CPU, here))


@pytest.mark.usefixtures("four")
def test_it_takes_the_axes_that_a_small_memory_makes_it_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four blocks of 64 × 64 twice: 512 KiB while they train (parameter, gradient, two of AdamW), of a block 128."""
    machine(monkeypatch, 4 << 20)
    mesh, why = chosen(4, 64)
    assert mesh == Mesh(data=4)
    assert why.endswith("and a rank has 614 KiB for them (60% of 1 MiB): it holds all")
    machine(monkeypatch, 4 * 550 << 10)
    mesh, why = chosen(4, 64)
    assert mesh == Mesh(data=2, shard=2)
    assert "32,768 parameters take 512 KiB while they train, and a rank has 330 KiB for them" in why
    assert why.startswith("data=2,shard=2: ")
    assert why.endswith("in 2 parts it holds its own and the block at work, 320 KiB")
    machine(monkeypatch, 4 * 400 << 10)
    assert chosen(4, 64)[0] == Mesh(shard=4)
    machine(monkeypatch, 4 * 300 << 10)
    mesh, why = chosen(4, 64)
    assert mesh == Mesh(shard=2, tensor=2)
    assert why.startswith("shard=2,tensor=2: ")
    assert why.endswith("in 4 parts it holds its own and the block at work, 160 KiB")


@pytest.mark.usefixtures("four")
def test_a_machine_is_parted_among_the_ranks_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four ranks on four machines each has one to itself."""
    machine(monkeypatch, 1 << 20)
    assert chosen(4, 64, here=1)[0] == Mesh(data=4)
    mesh, why = chosen(4, 64, here=2)
    assert mesh == Mesh(shard=4)
    assert "(60% of 512 KiB)" in why


def test_fewer_packed_blocks_than_replicas_are_refused_with_a_pipe_too() -> None:
    """What a split makes is known once it is packed: its stored rows were enough."""
    plan: Any = SimpleNamespace(network=nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), split=Split(sequence=["*"]))
    feed: Any = SimpleNamespace(rows=1)
    with pytest.raises(Invalid, match="the train split makes 1 rows, of which each of 1 steps needs 2"):
        spread_network(TrainConfig(batch_size=8), plan, Mesh(data=2, pipe=2), Gang(0, 4, CPU), feed, print)


@pytest.mark.parametrize(("left", "said"), [(1 << 30, 0), (300, 1)])
def test_rank_0_computes_what_is_compared_with_where_it_has_room_for_the_gradients(
    monkeypatch: pytest.MonkeyPatch, left: int, said: int
) -> None:
    """A matrix of 16 × 4 takes 256 bytes, its bias 64; of a row its input alone is kept: 16, and 64 of the answer's loss."""
    monkeypatch.setattr(estimate, "spare", lambda: left)
    network, lines = nn.Linear(4, 16), list[str]()
    plan: Any = SimpleNamespace(
        network=network, measure=lambda answer, target: ((answer - target).square().mean(), torch.zeros(()))
    )
    before, flops = measure_whole(plan, Gang(0, 1, CPU), torch.ones(3, 4), torch.zeros(3, 16), lines.append)
    assert (before is None, flops == 0, len(lines)) == (bool(said), bool(said), said)
    if before is None:
        assert "is not compared with the whole one: rank 0 would need" in lines[0]
        assert lines[0].endswith("where 300 B are left; a wrong plan is not seen")
    else:
        assert list(before.gradients) == ["weight", "bias"]
