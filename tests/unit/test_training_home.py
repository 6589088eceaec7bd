"""Where a network lies until it is split and after: no device has the whole of it at any time.

Each rank's device is torch's `meta`, which holds no numbers but all shapes: what lies on it is counted, tensor by tensor, while
the strategies split a network over a fake process group. What must be computed is computed in main memory, or fails there.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_datasets
import torch
from torch import distributed, nn
from torch.distributed.fsdp._fully_shard import _fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modelyard.data.datasets import Feature
from modelyard.kinds import FolderContext, FolderOutputs, FolderView, Input
from modelyard.training import loop, prepare
from modelyard.training.config import TrainConfig
from modelyard.training.gang import Gang
from modelyard.training.mesh import Mesh, parse
from modelyard.training.parallel import Options, home, spread
from modelyard.training.parallel.home import bring
from modelyard.training.split import Split

CPU, DEVICE = torch.device("cpu"), torch.device("meta")
SPLIT = Split({"*.up": "columns", "*.down": "rows"}, blocks="*", sequence=["*"])
WIDTH, DEPTH = 32, 6


class Ledger(TorchDispatchMode):
    """Bytes that lie on the device, now and at the most."""

    now = most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default and args[0].device != DEVICE == args[1].device:
            return args[0]  # nothing can be read off this device; what rank 0 would send it has itself
        answer = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(answer):
            if isinstance(tensor, torch.Tensor) and tensor.device == DEVICE and not isinstance(tensor, DTensor):
                self._hold(tensor.untyped_storage())
        return answer

    def _hold(self, storage: Any) -> None:
        if not getattr(storage, "counted", False):
            storage.counted = True
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._let_go, storage.nbytes())

    def _let_go(self, count: int) -> None:
        self.now -= count


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("scale", torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x) * self.scale)))


@contextmanager
def gang_of(rank: int, world: int) -> Iterator[Gang]:
    """One rank of a gang, whose others are nowhere."""
    distributed.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        yield Gang(rank, world, DEVICE, world)
    finally:
        distributed.destroy_process_group()


def size(tensors: Any) -> int:
    return sum((t.to_local() if isinstance(t, DTensor) else t).nbytes for t in tensors)


def test_the_whole_lies_in_main_memory_where_it_is_split() -> None:
    assert home(Mesh(data=4), DEVICE) == DEVICE
    assert home(Mesh(), DEVICE) == DEVICE
    for mesh in (Mesh(shard=2), Mesh(tensor=2), Mesh(pipe=2), Mesh(data=2, shard=2)):
        assert home(mesh, DEVICE) == CPU


def test_what_is_kept_is_brought_once() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = list(network.parameters())
    bring(network, CPU)
    assert all(a is b for a, b in zip(before, network.parameters(), strict=True))
    bring(network, DEVICE)
    assert {tensor.device for tensor in network.state_dict().values()} == {DEVICE}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("mesh", ["shard=4", "tensor=4", "pipe=3", "data=2,shard=2", "shard=2,tensor=2", "shard=2,pipe=2"])
def test_a_device_never_has_more_than_its_part_and_what_is_being_split(
    monkeypatch: pytest.MonkeyPatch, mesh: str, precision: str
) -> None:
    monkeypatch.setattr(_fully_shard, "_get_device_from_mesh", lambda mesh: DEVICE)  # FSDP2 knows of CPUs and GPUs
    over = Mesh(**parse(mesh))
    for rank in range(over.ranks):
        network, ledger = nn.Sequential(*(Block() for _ in range(DEPTH))), Ledger()
        block = size(network[0].state_dict().values())
        with gang_of(rank, over.ranks) as gang, ledger:
            it = spread(network, SPLIT, over, gang, Options(precision=precision), None, example=torch.randn(2, WIDTH), most=8)  # type: ignore[arg-type]
        held = [*it.parameters().values(), *(buffer for part in it.parts for buffer in part.buffers())]
        assert {tensor.device for tensor in held} == {DEVICE}, rank
        own = size(held)
        assert own < 0.7 * DEPTH * block, "the mesh splits it"
        assert own <= ledger.most <= own + 1.6 * block, (rank, own, block, ledger.most)


class Reached(Exception):
    """The network is about to be split."""


@pytest.mark.parametrize("mesh", ["shard=2", "tensor=2", "pipe=2"])
def test_a_job_tries_the_whole_out_in_main_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mesh: str) -> None:
    """All that comes before the split: shapes, what memory it takes, what rank 0 computes to compare with."""
    dataset = tiny_datasets.table(tmp_path / "data", Feature(type="float"), lambda matrix: matrix[:, 0].tolist())
    (tmp_path / "model.py").write_text(MODULE)
    seen = []

    def split(network: nn.Module, *given: Any, example: torch.Tensor, **named: Any) -> None:
        seen.extend([example.device, *(parameter.device for parameter in network.parameters())])
        raise Reached

    monkeypatch.setattr(prepare, "spread", split)
    monkeypatch.setattr(loop, "join", lambda context: gang_of(0, 2))
    monkeypatch.setattr(Gang, "sum", lambda self, *values: list(values))  # nothing can be read off this device
    inputs = {
        role: Input(role, {}, FolderView(folder, role)) for role, folder in (("dataset", dataset.folder), ("code", tmp_path))
    }
    module = {"name": "Net", "inputs": tiny_datasets.COLUMNS, "target": "target"}
    config = TrainConfig.model_validate({"recipe": "module", "mesh": mesh, "batch_size": 8, "module": module})
    context, ledger = FolderContext(tmp_path / "work", world_size=2), Ledger()
    context.work.mkdir()
    with ledger, pytest.raises(Reached):
        loop.run(config, inputs, FolderOutputs(tmp_path), context)
    assert set(seen) == {CPU}
    assert ledger.most == 0
    assert context.facts["memory_estimate"]["activations"] > 0


MODULE = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))
"""
