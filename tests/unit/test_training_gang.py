"""A rank that asked for a GPU trains on one or not at all."""

import pytest

from modelyard.errors import Unavailable
from modelyard.kinds import FolderContext
from modelyard.training.gang import check_gpus, join


@pytest.mark.parametrize(("asked", "ranks", "found"), [(1, 1, 0), (1, 2, 1), (2, 4, 3)])
def test_a_rank_that_asked_for_a_gpu_and_has_none_says_so(asked: int, ranks: int, found: int) -> None:
    with pytest.raises(Unavailable, match=f"asked for {asked} GPUs a rank, and torch finds {found} for {ranks} ranks"):
        check_gpus(asked, ranks, found)


@pytest.mark.parametrize(("asked", "ranks", "found"), [(0, 2, 0), (0, 2, 1), (1, 2, 2), (1, 1, 8)])
def test_others_go_on(asked: int, ranks: int, found: int) -> None:
    check_gpus(asked, ranks, found)


def test_it_is_seen_when_a_rank_joins(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK_GPUS", "1")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(Unavailable), join(FolderContext(tmp_path)):
        raise AssertionError("it joined")
