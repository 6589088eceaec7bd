import pytest
import torch
from torch import nn, optim

from modelyard.errors import Damaged, Invalid
from modelyard.training.checkpoint import FILE, RECORD, Progress, load
from modelyard.training.gang import Gang
from modelyard.training.mesh import Mesh
from modelyard.training.parallel import Options, spread
from modelyard.training.split import Split
from modelyard.training.staging import save

GANG = Gang(0, 1, torch.device("cpu"))
PROGRESS = Progress(2, 120, step=3, sums=[0.5, 1.0, 2.0], curve=[{"epoch": 1, "loss": 0.5}])


def measure(answer, target):
    return (answer - target).square().mean(), torch.zeros(())


def made(width=3, *, frozen=False):
    torch.manual_seed(width)
    network = nn.Sequential(nn.Linear(width, 2), nn.BatchNorm1d(2))
    network[0].weight.requires_grad_(not frozen)
    it = spread(network, Split(), Mesh(), GANG, Options(), measure, example=torch.randn(2, width), most=4)
    optimiser = optim.AdamW([p for p in it.parameters().values() if p.requires_grad])
    it.step(torch.randn(4, width), torch.randn(4, 2), 4)
    optimiser.step()
    return it, optimiser


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state().values(), other.state().values(), strict=True))


def test_what_is_kept_comes_back(tmp_path):
    it, optimiser = made()
    save(tmp_path / "c", it, optimiser, PROGRESS)
    other, fresh = made()
    with torch.no_grad():
        for parameter in other.parameters().values():
            parameter.mul_(2)
    assert load(tmp_path / "c", other, fresh) == PROGRESS
    assert same(it, other)
    for kept, came in zip(optimiser.state.values(), fresh.state.values(), strict=True):
        assert all(torch.equal(kept[name], came[name]) for name in kept)


def test_what_does_not_learn_may_stay_out(tmp_path):
    it, optimiser = made(frozen=True)
    save(tmp_path / "all", it, optimiser, PROGRESS)
    save(tmp_path / "learned", it, optimiser, PROGRESS, learned=True)
    assert (tmp_path / "learned" / FILE).stat().st_size < (tmp_path / "all" / FILE).stat().st_size
    other, fresh = made(frozen=True)
    assert load(tmp_path / "learned", other, fresh, learned=True) == PROGRESS
    assert same(it, other)


def test_another_network_is_refused(tmp_path):
    save(tmp_path / "c", *made(), PROGRESS)
    with pytest.raises(Invalid, match=r"another model: 0\.weight \(\[2, 3\], here \[2, 4\]\)"):
        load(tmp_path / "c", *made(width=4))


@pytest.mark.parametrize("data", [b"", b"not a checkpoint", None])
def test_a_file_that_is_not_whole_is_refused(tmp_path, data):
    save(tmp_path / "c", *made(), PROGRESS)
    file = tmp_path / "c" / FILE
    file.write_bytes(file.read_bytes()[:-200] if data is None else data)
    with pytest.raises(Damaged, match=f"'{FILE}' has"):
        load(tmp_path / "c", *made())


def test_a_file_of_the_right_size_that_is_none_is_refused(tmp_path):
    save(tmp_path / "c", *made(), PROGRESS)
    file = tmp_path / "c" / FILE
    file.write_bytes(b"\xff" * file.stat().st_size)
    with pytest.raises(Damaged, match="cannot be resumed from"):
        load(tmp_path / "c", *made())


@pytest.mark.parametrize("record", [None, "", "[]", '{"files": {}}', '{"files": {}, "progress": {"strange": 1}}'])
def test_a_record_that_is_not_whole_is_refused(tmp_path, record):
    save(tmp_path / "c", *made(), PROGRESS)
    (tmp_path / "c" / RECORD).unlink() if record is None else (tmp_path / "c" / RECORD).write_text(record)
    with pytest.raises(Damaged, match=RECORD.replace(".", r"\.")):
        load(tmp_path / "c", *made())
