import json

import numpy as np
import pytest

from modelyard.data import writing
from modelyard.data.datasets import CARD, Dataset, Feature
from modelyard.data.splits import SPLITS
from modelyard.data.writing import Sample, Source, write
from modelyard.errors import Damaged, Invalid, NotFound

FEATURES = {
    "z": Feature(type="float"),
    "n": Feature(type="int"),
    "t": Feature(type="text"),
    "kind": Feature(type="label", names=("a", "b")),
}


def written(folder, rows=100):
    folder.mkdir()
    values = [
        {"z": None if n % 9 == 0 else n / 4, "n": n, "t": f"row {n}" if n % 5 else None, "kind": n % 2} for n in range(rows)
    ]
    samples = [Sample(str(row["n"]).encode(), row, f"row {row['n']}") for row in values]
    write(Source(FEATURES, "kind", "tabular-classification", rows, samples, {"from": "test"}), folder, lambda done: None)
    return Dataset.open(folder)


def test_every_row_comes_back_from_some_split(tmp_path):
    dataset = written(tmp_path / "d")
    whole = {name: np.concatenate([dataset.column(split, name) for split in SPLITS]) for name in FEATURES}
    order = np.argsort(whole["n"])
    assert whole["n"][order].tolist() == list(range(100))
    assert [None if np.isnan(z) else z for z in whole["z"][order]] == [None if n % 9 == 0 else n / 4 for n in range(100)]
    assert whole["t"][order].tolist() == [f"row {n}" if n % 5 else "" for n in range(100)]
    assert whole["kind"][order].tolist() == [n % 2 for n in range(100)]


def test_shards_change_nothing_for_the_reader(tmp_path, monkeypatch):
    whole = written(tmp_path / "whole")
    monkeypatch.setattr(writing, "SHARD_ROWS", 7)
    parts = written(tmp_path / "parts")
    assert len(parts.card.splits["train"].shards) > 5
    for split in SPLITS:
        assert whole.rows(split) == parts.rows(split)
        assert np.array_equal(whole.column(split, "n"), parts.column(split, "n"))
    monkeypatch.setattr(writing, "SHARD_BYTES", 1)
    assert len(written(tmp_path / "bytes").card.splits["train"].shards) == whole.rows("train")


def test_an_empty_split_has_columns_of_no_rows(tmp_path):
    dataset = written(tmp_path / "d", rows=2)
    empty = next(split for split in SPLITS if not dataset.rows(split))
    columns = dataset.columns(empty, list(FEATURES))
    assert [len(column) for column in columns.values()] == [0, 0, 0, 0]
    assert columns["z"].dtype == np.float64


def test_names_that_are_not_there(tmp_path):
    dataset = written(tmp_path / "d")
    with pytest.raises(NotFound, match=r"No feature 'knd'\. Did you mean 'kind'"):
        dataset.column("train", "knd")
    with pytest.raises(NotFound, match=r"No split 'test'\..*'calibrate', 'report', 'select', 'train'"):
        dataset.rows("test")
    assert dataset.of_type("float", "int") == ["z", "n"]
    assert (dataset.target, dataset.labels) == ("kind", ("a", "b"))


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(Invalid, match=r"no dataset\.json"):
        Dataset.open(tmp_path)
    (tmp_path / CARD).write_text(json.dumps({"format": 2, "features": {}, "splits": {}, "source": {}}))
    with pytest.raises(Invalid, match=r"dataset\.json is not valid: format"):
        Dataset.open(tmp_path)


def test_shards_that_are_not_as_stated(tmp_path):
    dataset = written(tmp_path / "d")
    shard = tmp_path / "d" / dataset.card.splits["select"].shards[0]
    shard.write_bytes((tmp_path / "d" / dataset.card.splits["train"].shards[0]).read_bytes())
    with pytest.raises(Damaged, match="Split 'select' has"):
        dataset.column("select", "n")
    shard.write_bytes(b"PAR1 nothing")
    with pytest.raises(Damaged, match="cannot be read"):
        dataset.column("select", "n")


def test_nothing_is_written_from_nothing(tmp_path):
    with pytest.raises(Invalid, match="no rows"):
        written(tmp_path / "d", rows=0)
