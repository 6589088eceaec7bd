"""What a recipe makes of a split is made by one rank and mapped by all."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import torch

from modelyard.errors import Invalid
from modelyard.kinds import Cancelled, FolderContext
from modelyard.training.gang import Gang
from modelyard.training.together import once

RANKS = 3


class Threads(Gang):
    """Ranks that are threads of this process."""

    meeting = Barrier(RANKS)

    def sum(self, *values: float) -> list[float]:
        self.meeting.wait(10)
        return list(values)


def ranks(read, work: Path, check=lambda: None):
    """What each rank gets, or what it is told."""

    def one(rank: int):
        mine = once(read, Threads(rank, RANKS, torch.device("cpu")), FolderContext(work, rank=rank, world_size=RANKS))
        try:
            return mine(None, "train", check)
        except (Invalid, Cancelled) as error:
            return error

    with ThreadPoolExecutor(RANKS) as pool:
        return list(pool.map(one, range(RANKS)))


def test_one_rank_reads_and_all_map_the_same_file(tmp_path):
    asked = []

    def read(dataset, split, check):
        asked.append(split)
        return np.arange(24, dtype=np.int32).reshape(4, 2, 3), np.arange(12).reshape(4, 3)

    for _ in range(2):  # again in the same folder: what lies there is not taken for new
        for inputs, targets in ranks(read, tmp_path):
            assert isinstance(inputs, np.memmap)
            assert isinstance(targets, np.memmap)
            assert inputs[np.array([3, 0])].tolist() == [[[18, 19, 20], [21, 22, 23]], [[0, 1, 2], [3, 4, 5]]]
            assert (targets.dtype, targets.shape) == (np.int64, (4, 3))
    assert asked == ["train", "train"]


def test_what_one_rank_is_refused_all_are_refused(tmp_path):
    def read(dataset, split, check):
        raise Invalid("nothing to learn")

    assert [(type(error), str(error)) for error in ranks(read, tmp_path)] == [(Invalid, "nothing to learn")] * RANKS


def test_who_waits_sees_that_the_job_is_cancelled(tmp_path):
    def check():
        raise Cancelled

    def read(dataset, split, check):
        check()

    assert all(isinstance(error, Cancelled) for error in ranks(read, tmp_path, check))


def test_a_rank_alone_keeps_what_it_read(tmp_path):
    def read(dataset, split, check): ...

    assert once(read, Gang(0, 1, torch.device("cpu")), FolderContext(tmp_path)) is read
