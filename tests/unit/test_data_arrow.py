import datetime
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modelyard.data.arrow import arrow, saved
from modelyard.data.config import ImportDatasetConfig
from modelyard.errors import Invalid, NotFound
from modelyard.kinds import FolderView

LABELS = {"info": {"features": {"y": {"names": ["no", "yes"], "_type": "ClassLabel"}, "x": {"_type": "Value"}}}}


def labelled(**columns):
    return pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(LABELS)})


def read(folder, tables, **config):
    for path, table in tables.items():
        (folder / path).parent.mkdir(exist_ok=True)
        pq.write_table(table, folder / path)
    return arrow(FolderView(folder), dict.fromkeys(tables), ImportDatasetConfig(**config), {})


def values(records):
    return [record.values for record in records.read()]


def test_types_are_mapped(tmp_path):
    table = pa.table({
        "i": pa.array([1, None], pa.uint8()), "f": pa.array([1.5, float("nan")], pa.float32()), "b": [True, False],
        "d": pa.array(["x", "y"]).dictionary_encode(), "s": pa.array(["é", None], pa.large_string()),
        "image": [{"bytes": b"1", "path": None}, {"bytes": b"2", "path": "a.png"}], "raw": [b"3", b"4"],
        "chat": [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "ho"}]],
    })  # fmt: skip
    records = read(tmp_path, {"a.parquet": table})
    assert [record.where for record in records.read()] == ["'a.parquet', row 1", "'a.parquet', row 2"]
    first, second = values(records)
    assert first == {
        "i": 1, "f": 1.5, "b": 1, "d": "x", "s": "é", "image": b"1", "raw": b"3", "chat": '[{"role":"user","content":"hi"}]',
    }  # fmt: skip
    assert (second["i"], second["f"], second["s"], second["image"]) == (None, None, None, b"2")


def test_classes_are_named_by_the_schema(tmp_path):
    records = read(tmp_path, {"a.parquet": labelled(x=["a", "b"], y=[1, 0])})
    assert (records.names, [row["y"] for row in values(records)]) == ({"y": ("no", "yes")}, ["yes", "no"])
    with pytest.raises(Invalid, match=r"'b.parquet', row 2, 'y': class -1 where 0 to 1 was expected: a row without a label"):
        values(read(tmp_path, {"b.parquet": labelled(x=["a", "b"], y=[1, -1])}))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([datetime.date(2020, 1, 1)], "date32"),
        ([[1, 2]], "list<element: int64>"),
        ([{"a": 1}], "struct<a: int64>"),
        (pa.array(["1.5"]).cast(pa.decimal128(5, 2)), r"decimal128\(5, 2\)"),
        (pa.nulls(1), "null"),
    ],
)
def test_an_unsupported_type_is_refused_by_name_or_left_out(tmp_path, column, kind):
    tables = {"a.parquet": pa.table({"ok": [1], "odd": column})}
    with pytest.raises(Invalid, match=rf"'a.parquet', column 'odd' is of type {kind}.*; supported: text, numbers"):
        read(tmp_path, tables)
    assert values(read(tmp_path, tables, columns=["ok"])) == [{"ok": 1}]


def test_what_differs_between_files_is_named(tmp_path):
    with pytest.raises(Invalid, match=r"'b.parquet', column 'x' is of type string; in 'a.parquet' it is int64"):
        read(tmp_path, {"a.parquet": pa.table({"x": [1]}), "b.parquet": pa.table({"x": ["1"]})})
    with pytest.raises(Invalid, match=r"'b.parquet', column 'x' is missing"):
        read(tmp_path, {"a.parquet": pa.table({"x": [1]}), "b.parquet": pa.table({"z": ["1"]})})
    with pytest.raises(NotFound, match="Did you mean 'label'"):
        read(tmp_path, {"a.parquet": pa.table({"label": [1]})}, columns=["lable"])


def test_a_broken_file_is_named(tmp_path):
    table = pa.table({"x": list(range(100_000))})
    pq.write_table(table, tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[:5000])
    with pytest.raises(Invalid, match=r"'a.parquet' cannot be read: "):
        arrow(FolderView(tmp_path), {"a.parquet": None}, ImportDatasetConfig(), {})
    (tmp_path / "a.parquet").write_bytes(whole[:5000] + b"\xff" * 1000 + whole[6000:])
    with pytest.raises(Invalid, match=r"'a.parquet'"):
        list(arrow(FolderView(tmp_path), {"a.parquet": None}, ImportDatasetConfig(), {}).read())


def test_an_image_that_is_only_a_path(tmp_path):
    with pytest.raises(Invalid, match=r"row 1, 'image': the image is not in the file, only its path 'a.png'"):
        values(read(tmp_path, {"a.parquet": pa.table({"image": [{"bytes": None, "path": "a.png"}]}).cast(
            pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]))}))  # fmt: skip


def test_what_the_datasets_library_saves(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})

    def part(*rows):
        return datasets.Dataset.from_dict({"text": [r[0] for r in rows], "label": [r[1] for r in rows]}, features=features)

    shuffled = part(("c", 0), ("a", 1), ("x", 0), ("b", 1)).select([0, 3, 1])
    datasets.DatasetDict({"train": shuffled, "test": part(("d", 0))}).save_to_disk(tmp_path / "dict")
    view = FolderView(tmp_path / "dict")
    records = arrow(view, saved(view), ImportDatasetConfig(), {})
    assert records.own == {"report"}
    assert sorted((r.split, r.values["text"], r.values["label"]) for r in records.read()) == [
        ("report", "d", "neg"), ("train", "a", "pos"), ("train", "b", "pos"), ("train", "c", "neg"),
    ]  # fmt: skip
    part(("e", 1)).save_to_disk(tmp_path / "one")
    view = FolderView(tmp_path / "one")
    assert values(arrow(view, saved(view), ImportDatasetConfig(), {})) == [{"text": "e", "label": "pos"}]
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(Invalid, match=r"'data-00000-of-00001.arrow' is missing, which state.json names"):
        saved(view)


def test_a_saved_dataset_is_read_without_its_library(tmp_path):
    table = labelled(x=["a", "b"], y=[1, 0])
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
        with pa.ipc.new_stream(tmp_path / split / "data.arrow", table.schema) as stream:
            stream.write_table(table)
    view = FolderView(tmp_path)
    records = arrow(view, saved(view), ImportDatasetConfig(), {})
    assert records.own == {"select"}
    assert [(r.split, r.values["x"], r.values["y"]) for r in records.read()] == [
        ("train", "a", "yes"), ("train", "b", "no"), ("select", "a", "yes"), ("select", "b", "no"),
    ]  # fmt: skip
    (tmp_path / "validation").rename(tmp_path / "holdout")
    with pytest.raises(Invalid, match="'holdout' is no split that is known; expected one of train"):
        saved(view)


def test_another_state_json_is_no_dataset(tmp_path):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(Invalid, match="is not what `save_to_disk` writes"):
        saved(FolderView(tmp_path))
