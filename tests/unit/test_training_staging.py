"""A moment's copy, written by each rank for itself: whole together, or told and nothing."""

import json
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn, optim

from modelyard.training import staging
from modelyard.training.checkpoint import RECORD, Progress, load
from modelyard.training.gang import Gang
from modelyard.training.mesh import Mesh
from modelyard.training.parallel import Options, spread
from modelyard.training.split import Split
from modelyard.training.staging import Stage, Turns, await_parts, save, set_aside

CPU = torch.device("cpu")
PROGRESS = Progress(2, 120, step=3)


@dataclass(frozen=True, slots=True)
class Alone(Gang):
    """A rank of two whose peer always agrees."""

    def sum(self, *values):
        return list(values)


def made():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    it = spread(network, Split(), Mesh(), Gang(0, 1, CPU), Options(), measure, example=torch.randn(2, 3), most=4)
    optimiser = optim.AdamW(it.parameters().values())
    it.step(torch.randn(4, 3), torch.randn(4, 2), 4)
    optimiser.step()
    return it, optimiser


class Alternately:
    """Of two ranks along `shard` each writes every other tensor; the next time the other ones."""

    def __init__(self, turn, mesh, place):
        self.number, self.shard = turn, place.shard

    def mine(self, tensor, *, same):
        self.number += 1
        return self.number % 2 == self.shard


def measure(answer, target):
    return (answer - target).square().mean(), torch.zeros(())


def of_two(it, rank):
    mesh = Mesh(shard=2)
    return replace(it, gang=Alone(rank, 2, CPU), mesh=mesh, place=mesh.place(rank))


def change(it):
    with torch.no_grad():
        for parameter in it.parameters().values():
            parameter.add_(1)


def same(one, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in one.state().items())


def test_what_is_staged_is_of_that_moment_and_so_is_what_is_staged_next(tmp_path):
    it, optimiser = made()
    stage = Stage(it, optimiser)
    for at in (1, 2):
        before = {name: tensor.clone() for name, tensor in it.state().items()}
        write = stage.take(tmp_path / "c", Progress(at))
        change(it)
        write(tmp_path / "c")
        other, fresh = made()
        assert load(tmp_path / "c", other, fresh) == Progress(at)
        assert same(other, before)


def test_the_file_of_the_last_time_is_written_over(tmp_path):
    it, optimiser = made()
    stage, files = Stage(it, optimiser), set()
    for at in (1, 2, 3):
        folder = tmp_path / f"c{at}"
        stage.take(folder, Progress(at))(folder)
        (file,) = folder.glob("*.safetensors")
        files.add(file.stat().st_ino)
        other, fresh = made()
        assert load(folder, other, fresh) == Progress(at)
        assert same(other, it.state())
        change(it)
        set_aside(folder)
    assert len(files) == 1


def test_what_has_another_form_is_written_anew(tmp_path):
    it, optimiser = made()
    stage, files = Stage(it, optimiser), set()
    for folder in (tmp_path / "c1", tmp_path / "c2"):
        stage.take(folder, PROGRESS)(folder)
        files.add((folder / "state.safetensors").stat().st_ino)
        names = [name for name in load_file(folder / "state.safetensors") if name.startswith("optimiser")]
        (tmp_path / "kept").hardlink_to(folder / "state.safetensors") if names else None  # its number is not given again
        set_aside(folder)
        optimiser.state.clear()
    assert not names
    assert len(files) == 2


def test_what_could_not_be_written_over_is_written_anew(tmp_path):
    it, optimiser = made()
    stage = Stage(it, optimiser)
    stage.take(tmp_path / "c", PROGRESS)(tmp_path / "c")
    set_aside(tmp_path / "c")
    next(tmp_path.glob("*/*.safetensors")).unlink()
    stage.take(tmp_path / "c", PROGRESS)(tmp_path / "c")
    assert load(tmp_path / "c", *made()) == PROGRESS


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_another_rank_writes_by_now_is_written_once(tmp_path, monkeypatch):
    it, optimiser = made()
    stages = [Stage(of_two(it, rank), optimiser) for rank in (0, 1)]
    for turn in (0, 1):
        monkeypatch.setattr(staging, "Turns", partial(Alternately, turn))
        writes = [stage.take(tmp_path / "c", PROGRESS) for stage in stages]
        kept = {name: tensor.clone() for name, tensor in it.state().items()}
        change(it)
        for write in reversed(writes):
            write(tmp_path / "c")
    names = [set(load_file(path)) for path in (tmp_path / "c").glob("*.safetensors")]
    assert all(names)
    assert not set.intersection(*names)
    other, fresh = made()
    assert load(tmp_path / "c", other, fresh) == PROGRESS
    assert same(other, kept)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_the_parts_of_two_ranks_are_one_checkpoint(tmp_path):
    it, optimiser = made()
    writes = [Stage(of_two(it, rank), optimiser).take(tmp_path / "c", PROGRESS) for rank in (0, 1)]
    writes[1](tmp_path / "c")
    assert not (tmp_path / "c" / RECORD).exists()
    writes[0](tmp_path / "c")
    assert set(json.loads((tmp_path / "c" / RECORD).read_text())["files"]) == {"rank-0.safetensors", "rank-1.safetensors"}
    other, fresh = made()
    change(other)
    assert load(tmp_path / "c", other, fresh) == PROGRESS
    assert same(other, it.state())


def test_a_rank_that_cannot_write_its_part_says_so_and_rank_0_tells(tmp_path):
    it, optimiser = made()
    writes = [Stage(of_two(it, rank), optimiser).take(tmp_path / "c", PROGRESS) for rank in (0, 1)]
    (tmp_path / "c" / "rank-1.part").mkdir()  # where it would write
    writes[1](tmp_path / "c")
    with pytest.raises(RuntimeError, match=r"rank 1: .*directory"):
        writes[0](tmp_path / "c")
    assert not (tmp_path / "c" / RECORD).exists()


def test_where_rank_0_cannot_write_its_own_it_waits_for_the_others_all_the_same(tmp_path):
    it, optimiser = made()
    writes = [Stage(of_two(it, rank), optimiser).take(tmp_path / "c", PROGRESS) for rank in (0, 1)]
    (tmp_path / "c" / "rank-0.part").mkdir()
    writes[1](tmp_path / "c")
    with pytest.raises(RuntimeError, match=r"^rank 0: [^;]*directory[^;]*$"):
        writes[0](tmp_path / "c")


def test_a_copy_that_finds_no_memory_costs_that_checkpoint_alone(tmp_path, monkeypatch):
    it, optimiser = made()
    stage = Stage(it, optimiser)

    def full(*shape, **more):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", full)
        write = stage.take(tmp_path / "c", PROGRESS)
    with pytest.raises(RuntimeError, match=r"rank 0: .*can't allocate"):
        write(tmp_path / "c")
    stage.take(tmp_path / "c", PROGRESS)(tmp_path / "c")
    assert load(tmp_path / "c", *made()) == PROGRESS


def test_a_folder_that_cannot_be_made_is_rank_0s_to_tell(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="Not a directory"):
        save(tmp_path / "file" / "c", *made(), PROGRESS)


def test_a_rank_that_comes_too_late_leaves_nothing(tmp_path):
    it, optimiser = made()
    write = Stage(of_two(it, 1), optimiser).take(tmp_path / "gone", PROGRESS)
    write(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize(("left", "told"), [("no room", "rank 2: no room"), ("", "rank 2: it could not write its part")])
def test_every_part_is_waited_for_and_every_failure_told(tmp_path, left, told):
    (tmp_path / "rank-1.safetensors").touch()
    (tmp_path / "rank-2.failed").write_text(left)
    assert await_parts(tmp_path, range(1, 3), 5.0) == [told]
    assert await_parts(tmp_path, range(1, 4), 0.0) == [told, "rank 3: its part did not come within 0 s"]


MESHES = [Mesh(data=3), Mesh(shard=2), Mesh(data=2, tensor=2), Mesh(shard=2, tensor=2, pipe=2)]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_what_may_differ_the_first_rank_of_a_stage_writes(mesh):
    writers = [rank for rank in range(mesh.ranks) if Turns(mesh, mesh.place(rank)).mine(torch.zeros(3), same=False)]
    assert writers == [stage * mesh.ranks // mesh.pipe for stage in range(mesh.pipe)]


@given(st.sampled_from(MESHES), st.lists(st.integers(1, 50), min_size=1))
def test_what_is_the_same_everywhere_is_written_once_a_stage_by_turns_in_bytes(mesh, sizes):
    turns = [Turns(mesh, mesh.place(rank)) for rank in range(mesh.ranks)]
    written = [[size for size in sizes if one.mine(torch.zeros(size), same=True)] for one in turns]
    whole = sorted(size for size in sizes for _ in range(mesh.pipe))
    assert sorted(size for mine in written for size in mine) == whole
    by_stage = [[sum(written[r]) for r in range(mesh.ranks) if _writes(mesh, r, stage)] for stage in range(mesh.pipe)]
    assert all(max(one) - min(one) <= max(sizes) for one in by_stage)


def _writes(mesh, rank, stage):
    place = mesh.place(rank)
    return (place.pipe, place.shard, place.tensor) == (stage, 0, 0)
