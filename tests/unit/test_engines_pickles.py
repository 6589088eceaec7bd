from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from modelyard.engines.pickles import check_pickle
from modelyard.errors import Unsafe


class Canary:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (exec, (f"open({str(self.target)!r}, 'w').close()",))


class Shell:
    def __reduce__(self):
        import os

        return (os.system, ("true",))


def test_a_state_dict_passes(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "m.pth")
    check_pickle(tmp_path / "m.pth")


def test_an_old_style_state_dict_passes(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    check_pickle(tmp_path / "m.pth")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".anything"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_never_runs(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path, canary = tmp_path / f"m{suffix}", tmp_path / "canary"
    torch.save({"w": torch.ones(3), "x": Canary(canary)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(Unsafe, match=r"__builtin__\.exec"):
        check_pickle(path)
    assert not canary.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_bare_pickles_of_every_protocol_are_refused(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "m.pth").write_bytes(pickle.dumps(Shell(), protocol=protocol))
    with pytest.raises(Unsafe, match=r"posix\.system|no file written by torch\.save"):
        check_pickle(tmp_path / "m.pth")


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}))
        archive.writestr("m/code/__torch__.py", "")
        archive.writestr("m/constants.pkl", pickle.dumps(()))
    with pytest.raises(Unsafe, match="TorchScript"):
        check_pickle(tmp_path / "m.pt")


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}))
        archive.writestr("m/data/0", bytes(50_000_000))
    assert (tmp_path / "m.pth").stat().st_size < 100_000
    with pytest.raises(Unsafe, match="packed or repeated"):
        check_pickle(tmp_path / "m.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_repeated_entries_are_refused(tmp_path: Path) -> None:
    """A scanner and a loader may each take another one of them."""
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(1)}, buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        first = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        archive.writestr(first, pickle.dumps(Shell()))
    (tmp_path / "m.pth").write_bytes(buffer.getvalue())
    with pytest.raises(Unsafe, match="packed or repeated"):
        check_pickle(tmp_path / "m.pth")


def test_a_broken_zip_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(1)}, buffer)
    (tmp_path / "m.pth").write_bytes(buffer.getvalue().replace(b"PK\x01\x02", b"PK\x01\x03"))
    with pytest.raises(Unsafe):
        check_pickle(tmp_path / "m.pth")
