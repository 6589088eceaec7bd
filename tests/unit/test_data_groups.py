import numpy as np
import pyarrow.parquet as pq
import pytest

from modelyard.data.datasets import Dataset, Feature
from modelyard.data.groups import Groups
from modelyard.data.writing import GROUP_ROWS, Sample, Source, write
from modelyard.errors import Damaged

FEATURES = {"n": Feature(type="int"), "text": Feature(type="text"), "x": Feature(type="float")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """About 6 row groups of training rows."""
    folder = tmp_path_factory.mktemp("dataset")
    samples = (
        Sample(str(n).encode(), {"n": n, "text": f"row {n}", "x": None if n % 9 == 0 else n / 2}, "") for n in range(10_000)
    )
    write(Source(FEATURES, None, None, 10_000, samples, {}), folder, lambda done: None)
    return folder


@pytest.fixture
def dataset(folder):
    return Dataset.open(folder)


def same(found, wanted):
    assert all(np.array_equal(found[name], wanted[name], equal_nan=wanted[name].dtype.kind == "f") for name in wanted)
    assert found.keys() == wanted.keys()


@pytest.mark.parametrize("held", [1, 1 << 30])
def test_rows_come_as_asked_for_whatever_is_held(dataset, held):
    groups = Groups(dataset, "train", ["text", "x", "n"], held)
    whole = dataset.columns("train", ["text", "x", "n"])
    assert groups.rows[:2] == [GROUP_ROWS, GROUP_ROWS]
    assert sum(groups.rows) == dataset.rows("train")
    draw = np.random.default_rng(0)
    for positions in (np.arange(3), draw.permutation(dataset.rows("train"))[:500], np.array([5, 5, 4])):
        same(groups.take(positions), {name: column[positions] for name, column in whole.items()})


@pytest.mark.parametrize("held", [1, 1 << 30])
def test_some_rows_are_as_if_the_split_had_no_others(dataset, held):
    some = np.arange(0, dataset.rows("train"), 3)
    some = some[(some < GROUP_ROWS) | (some >= 2 * GROUP_ROWS)]  # none of the second row group
    groups = Groups(dataset, "train", ["x", "n"], held, some)
    assert (groups.rows[1], sum(groups.rows)) == (0, len(some))
    positions = np.random.default_rng(0).permutation(len(some))[:500]
    whole = dataset.columns("train", ["x", "n"])
    same(groups.take(positions), {name: column[some[positions]] for name, column in whole.items()})


def test_what_is_held_is_bounded_and_the_oldest_is_dropped(dataset, monkeypatch):
    reads = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, at, **more: reads.append(at) or read(self, at, **more))
    groups = Groups(dataset, "train", ["n"], held=20 * GROUP_ROWS)
    for row in (0, 1024, 0, 2048, 0, 1024):
        groups.take(np.array([row]))
    assert reads == [0, 1, 2, 1]


def test_bytes_are_those_of_the_columns_asked_for(dataset):
    one, two = (Groups(dataset, "train", names).bytes for names in (["n"], ["n", "text"]))
    assert dataset.rows("train") * 8 <= one < dataset.rows("train") * 9
    assert two > one * 1.5


def test_a_shard_truncated_meanwhile_is_named(folder, dataset):
    groups = Groups(dataset, "select", ["n"])
    shard = dataset.card.splits["select"].shards[0]
    whole = (folder / shard).read_bytes()
    try:
        (folder / shard).write_bytes(whole[:100])
        with pytest.raises(Damaged, match=f"Shard {shard} cannot be read"):
            groups.take(np.arange(3))
        with pytest.raises(Damaged, match=f"Shard {shard} cannot be read"):
            Groups(dataset, "select", ["n"])
        (folder / shard).write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
        with pytest.raises(Damaged, match=f"Shard {shard} cannot be read"):
            Groups(dataset, "select", ["n"]).take(np.arange(3))
    finally:
        (folder / shard).write_bytes(whole)


def test_a_shard_of_other_rows_is_damaged(folder, dataset):
    pq.write_table(pq.read_table(folder / "report/00000.parquet").slice(0, 5), folder / "report/00000.parquet")
    with pytest.raises(Damaged, match=r"Split 'report' has 5 rows where dataset.json states"):
        Groups(dataset, "report", ["n"])
