"""A job kind runs in a notebook: plain folders for its inputs, outputs and context."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from modelyard.kinds import Cancelled, Config, FolderContext, FolderOutputs, FolderView, Input


class Size(Config):
    size: int = 1


def test_configs_are_frozen_and_refuse_unknown_keys():
    with pytest.raises(ValidationError):
        Size(sise=2)
    with pytest.raises(ValidationError):
        Size().size = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "artefact"
    (root / "deep").mkdir(parents=True)
    (root / "a.txt").write_bytes(b"0123456789")
    (root / "deep" / "b.bin").write_bytes(b"xyz")
    return root


def test_a_folder_is_an_artefact(folder: Path):
    view = FolderView(folder)
    assert view.files == {"a.txt": 10, "deep/b.bin": 3}
    assert view.read_range("a.txt", 2, 3) == b"234"
    assert view.read_range("a.txt", 8, 100) == b"89"
    with view.open("deep/b.bin") as file:
        assert file.read() == b"xyz"
    assert view.local() == folder


def test_outputs_are_sub_folders(folder: Path, tmp_path: Path):
    outputs = FolderOutputs(tmp_path / "out")
    outputs.publish("model", folder, task="image-classification", metadata={"accuracy": 0.9}, alias="best")
    published = outputs.published["model"]
    assert (published["folder"] / "deep" / "b.bin").read_bytes() == b"xyz"
    assert (published["task"], published["metadata"], published["alias"]) == ("image-classification", {"accuracy": 0.9}, "best")
    made_in_place = tmp_path / "out" / "other"
    made_in_place.mkdir()
    outputs.publish("other", made_in_place)
    assert sorted(outputs.published) == ["model", "other"]


def test_a_context_keeps_what_the_job_says(tmp_path: Path, folder: Path):
    context = FolderContext(tmp_path)
    context.progress(1, 2)
    context.check()
    context.metric(3, loss=0.5)
    context.report(samples=10, seconds=1)
    context.report(seconds=2)
    context.log("hello")
    assert context.metrics == [{"step": 3, "loss": 0.5}]
    assert context.facts == {"samples": 10, "seconds": 2}
    assert context.lines == ["hello"]
    assert (context.rank, context.world_size, context.rendezvous) == (0, 1, f"file://{tmp_path}/rendezvous")


def test_the_newest_checkpoint_is_kept_whole(tmp_path: Path, folder: Path):
    context = FolderContext(tmp_path / "work")
    context.work.mkdir()
    assert context.latest() is None
    context.checkpoint(1, folder)
    (folder / "a.txt").unlink()
    context.checkpoint(2, folder)
    kept = context.latest()
    assert kept is not None
    assert FolderView(kept).files == {"deep/b.bin": 3}


def test_child_jobs_need_a_platform(tmp_path: Path):
    context = FolderContext(tmp_path)
    with pytest.raises(RuntimeError, match="modelyard up"):
        context.submit("train", {}, {})
    with pytest.raises(RuntimeError, match="modelyard up"):
        context.wait("j")


def test_being_cancelled_passes_through_users_handlers():
    def users_code() -> str:
        try:
            raise Cancelled
        except Exception:
            return "swallowed"

    with pytest.raises(Cancelled):
        users_code()


def test_an_input_says_what_it_is(folder: Path):
    view = FolderView(folder, "abc")
    assert Input("digits@1", {"rows": 3}, view).view.hash == "abc"
