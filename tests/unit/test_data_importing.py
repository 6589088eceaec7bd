import csv
import io
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from modelyard.data.bundled import TABLES, png
from modelyard.data.chats import messages
from modelyard.data.config import ImportDatasetConfig
from modelyard.data.datasets import Dataset
from modelyard.data.importing import run
from modelyard.data.splits import SPLITS
from modelyard.errors import Invalid, NotFound
from modelyard.kinds import FolderContext, FolderOutputs, FolderView, Input


class Context(FolderContext):
    said: tuple = ()

    def progress(self, done, total, unit="steps"):
        self.said = (*self.said, (done, total, unit))


def imported(folder, files=None, **config):
    """The published folder, its record and the context."""
    context = Context(folder / "work")
    context.work.mkdir(parents=True)
    outputs = FolderOutputs(folder)
    inputs = {"files": Input("artefact:f", {}, FolderView(files, "f"))} if files else {}
    run(ImportDatasetConfig(**config), inputs, outputs, context)
    published = outputs.published["dataset"]
    return published["folder"], published, context


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return imported(tmp_path_factory.mktemp("digits"), source="sklearn:digits")


def test_digits(digits):
    folder, published, context = digits
    dataset = Dataset.open(folder)
    rows = {split: dataset.rows(split) for split in SPLITS}
    assert sum(rows.values()) == 1797
    assert 0.38 < 1 - rows["train"] / 1797 < 0.42
    assert (published["task"], dataset.task, dataset.target) == ("image-classification", "image-classification", "label")
    assert dataset.labels == tuple("0123456789")
    assert published["metadata"]["splits"] == rows
    assert published["metadata"]["labels"] == list("0123456789")
    assert context.said[-1] == (1797, 1797, "rows")
    train = dataset.columns("train", ["label", "image"])
    assert Counter(train["label"].tolist()) == Counter(dict(enumerate(dataset.features["label"].statistics["train"]["counts"])))
    assert Image.open(io.BytesIO(train["image"][0])).size == (8, 8)


def test_no_image_is_in_two_splits(digits):
    dataset = Dataset.open(digits[0])
    seen = [set(dataset.column(split, "image")) for split in SPLITS]
    assert len(set.union(*seen)) == sum(map(len, seen))


def test_the_same_import_twice_gives_the_same_bytes(digits, tmp_path):
    again, _, _ = imported(tmp_path, source="sklearn:digits")
    assert contents(again) == contents(digits[0])


@pytest.mark.parametrize("name", TABLES)
def test_the_bundled_tables(tmp_path, name):
    folder, published, _ = imported(tmp_path, source=f"sklearn:{name}")
    dataset = Dataset.open(folder)
    assert published["task"] == ("tabular-regression" if name == "diabetes" else "tabular-classification")
    assert all(dataset.rows(split) > 5 for split in SPLITS)
    known = dataset.features[dataset.of_type("float")[0]].statistics["train"]
    column = dataset.column("train", dataset.of_type("float")[0])
    assert (known["min"], known["max"]) == (column.min(), column.max())
    assert (known["mean"], known["std"]) == pytest.approx((column.mean(), column.std()))


def test_an_unknown_bundled_set(tmp_path):
    with pytest.raises(NotFound, match="Did you mean 'sklearn:digits'"):
        imported(tmp_path, source="sklearn:digit")


def pictures(folder, count=30, size=(6, 5)):
    draw = np.random.default_rng(1)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for n in range(count):
            (folder / name / f"{n}.png").write_bytes(png(draw.integers(0, 256, size, dtype=np.uint8)))
    return folder


def test_images_by_class(tmp_path):
    files = pictures(tmp_path / "files")
    Image.new("RGB", (9, 9), (255, 0, 0)).save(files / "cat" / "colour.JPG", "JPEG")
    (files / "cat" / ".DS_Store").write_bytes(b"litter")
    dataset = Dataset.open(imported(tmp_path, files)[0])
    assert dataset.labels == ("cat", "dog")
    assert sum(dataset.rows(split) for split in SPLITS) == 61
    known = dataset.features["image"].statistics
    assert sum(known[split]["modes"].get("RGB", 0) for split in SPLITS) == 1
    assert known["train"]["height"]["min"] == 6
    assert 0.4 < known["train"]["mean"] < 0.6


def test_a_folder_is_walked_a_few_times_whatever_its_size(tmp_path):
    walks = []

    class Counted(FolderView):
        @property
        def files(self):
            walks.append(self.folder)
            return super().files

    (tmp_path / "work").mkdir()
    view = Counted(pictures(tmp_path / "files", 40))
    run(
        ImportDatasetConfig(), {"files": Input("", {}, view)}, FolderOutputs(tmp_path / "out"), FolderContext(tmp_path / "work")
    )
    assert len(walks) <= 2


def test_a_folder_that_grows_keeps_every_image_in_its_split(tmp_path):
    files = pictures(tmp_path / "files")
    before = Dataset.open(imported(tmp_path / "1", files)[0])
    (files / "dog" / "new.png").write_bytes(png(np.full((6, 5), 7, np.uint8)))
    (files / "cat" / "copy.png").write_bytes((files / "cat" / "0.png").read_bytes())
    after = Dataset.open(imported(tmp_path / "2", files)[0])
    for split in SPLITS:
        assert set(before.column(split, "image")) <= set(after.column(split, "image"))


@pytest.mark.parametrize(
    ("path", "data", "said"),
    [
        (
            "cat/broken.png",
            b"\x89PNG\r\n\x1a\n garbage",
            r"'cat/broken.png': A truncated or broken image.*Nothing was imported",
        ),
        ("cat/notes.txt", b"hello", r"'cat/notes.txt' is no image; expected a file ending in .png"),
        ("stray.png", b"", r"'stray.png' is out of place; expected class/name.png"),
        ("train/cat/1.png", b"", r"'train/cat/1.png' is out of place"),
    ],
)
def test_a_file_out_of_place_is_named_and_nothing_published(tmp_path, path, data, said):
    files = pictures(tmp_path / "files", count=2)
    (files / path).parent.mkdir(parents=True, exist_ok=True)
    (files / path).write_bytes(data)
    with pytest.raises(Invalid, match=said):
        imported(tmp_path, files)
    assert not (tmp_path / "dataset").exists()


def test_one_class_is_no_classification(tmp_path):
    (tmp_path / "files" / "cat").mkdir(parents=True)
    (tmp_path / "files" / "cat" / "1.png").write_bytes(png(np.zeros((3, 3), np.uint8)))
    with pytest.raises(Invalid, match="at least two folders"):
        imported(tmp_path, tmp_path / "files")


def test_a_table_with_missing_values(tmp_path):
    (tmp_path / "files").mkdir()
    with (tmp_path / "files" / "t.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["zone", "age", "town", "price"])
        rows.writerows([n, "" if n % 7 == 0 else n / 2, "Zug" if n % 2 else "Bern", n * 1.5] for n in range(200))
    folder, published, _ = imported(tmp_path, tmp_path / "files", target="price")
    dataset = Dataset.open(folder)
    assert list(dataset.features) == ["zone", "age", "town", "price"]
    assert published["metadata"]["features"] == {"zone": "int", "age": "float", "town": "text", "price": "float"}
    ages = np.concatenate([dataset.column(split, "age") for split in SPLITS])
    assert np.isnan(ages).sum() == 29 == sum(dataset.features["age"].statistics[split]["missing"] for split in SPLITS)
    assert dataset.features["town"].statistics["train"]["values"] == ["Bern", "Zug"]
    assert set(dataset.column("train", "town")) == {"Bern", "Zug"}
    assert dataset.column("train", "zone").dtype == np.int64


def test_what_cannot_be_imported(tmp_path):
    with pytest.raises(Invalid, match="There is nothing to import: give files"):
        imported(tmp_path / "1")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.csv").write_text("a\n1\n")
    (tmp_path / "files" / "b.csv").write_text("a\n1\n")
    with pytest.raises(Invalid, match="expected one CSV file alone"):
        imported(tmp_path / "2", tmp_path / "files")
    with pytest.raises(Invalid, match="are for files with columns"):
        imported(tmp_path / "3", pictures(tmp_path / "pictures", count=1), target="y")


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.parent


def test_a_source_with_its_own_splits(tmp_path):
    lines(tmp_path / "files" / "train.jsonl", ({"text": f"t{n}", "label": "ab"[n % 2]} for n in range(300)))
    files = lines(tmp_path / "files" / "test.jsonl", ({"text": f"r{n}", "label": "ab"[n % 2]} for n in range(50)))
    (files / "README.md").write_text("what a hub keeps beside the data")
    dataset = Dataset.open(imported(tmp_path, files, target="label")[0])
    assert (dataset.task, dataset.labels) == ("text-classification", ("a", "b"))
    assert sorted(dataset.column("report", "text")) == sorted(f"r{n}" for n in range(50))
    assert all(dataset.rows(split) > 10 for split in ("train", "calibrate", "select"))
    assert sum(dataset.rows(split) for split in SPLITS) == 350


def test_equal_rows_of_any_format_share_a_split_and_bytes(tmp_path):
    texts = [f"row {n}" for n in range(60)]
    files = lines(tmp_path / "1" / "a.jsonl", ({"text": text} for text in texts))
    (tmp_path / "2").mkdir()
    pq.write_table(pa.table({"text": texts}), tmp_path / "2" / "a.parquet")
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "a.txt").write_text("\n".join(texts))
    datasets = [imported(tmp_path / f"out{n}", tmp_path / str(n), rows="line")[0] for n in (1, 2, 3)]
    assert files == tmp_path / "1"
    shards = [{name: data for name, data in contents(d).items() if name.endswith("parquet")} for d in datasets]
    assert shards[0] == shards[1] == shards[2]
    assert Dataset.open(datasets[0]).task == "text-generation"


def test_chats(tmp_path):
    chats = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": str(n)}] for n in range(40)]
    folder, published, _ = imported(tmp_path, lines(tmp_path / "files" / "a.jsonl", ({"messages": c} for c in chats)))
    dataset = Dataset.open(folder)
    assert published["metadata"]["features"] == {"messages": "chat"}
    assert dataset.of_type("chat") == ["messages"]
    read = [messages(text) for split in SPLITS for text in dataset.column(split, "messages")]
    assert sorted(c[0]["content"] for c in read) == sorted(c[0]["content"] for c in chats)
    assert "values" in dataset.features["messages"].statistics["train"]


def test_images_in_parquet_go_where_a_folder_puts_them(tmp_path):
    files = pictures(tmp_path / "files", count=12)
    paths = sorted(files.rglob("*.png"))
    (tmp_path / "parquet").mkdir()
    table = pa.table({"image": [p.read_bytes() for p in paths], "label": [p.parent.name for p in paths]})
    pq.write_table(table, tmp_path / "parquet" / "a.parquet")
    first = Dataset.open(imported(tmp_path / "1", files)[0])
    second = Dataset.open(imported(tmp_path / "2", tmp_path / "parquet", target="label")[0])
    assert second.task == "image-classification"
    for split in SPLITS:
        assert set(first.column(split, "image")) == set(second.column(split, "image"))


def test_a_broken_image_in_parquet_is_named(tmp_path):
    (tmp_path / "files").mkdir()
    pq.write_table(pa.table({"image": [b"\x89PNG\r\n\x1a\n garbage"]}), tmp_path / "files" / "a.parquet")
    with pytest.raises(Invalid, match=r"'a.parquet', row 1: A truncated or broken image"):
        imported(tmp_path, tmp_path / "files")


def test_files_of_two_kinds_are_refused(tmp_path):
    files = lines(tmp_path / "files" / "a.jsonl", [{"a": 1}])
    (files / "b.csv").write_text("a\n1\n")
    with pytest.raises(Invalid, match=r"'a.jsonl' is beside files of another kind \(.csv, .jsonl\)"):
        imported(tmp_path / "1", files)
    (files / "b.csv").rename(files / "b.doc")
    with pytest.raises(Invalid, match=r"'b.doc' is beside files of another kind"):
        imported(tmp_path / "2", files)


def test_a_hub_id_without_files_says_what_to_do(tmp_path):
    with pytest.raises(
        Invalid, match=r"no network, so it cannot fetch 'hf:org/name'.*modelyard dataset import NAME --from hf:org"
    ):
        imported(tmp_path, source="hf:org/name")
    files = lines(tmp_path / "files" / "a.jsonl", [{"a": n} for n in range(9)])
    folder, _, _ = imported(tmp_path / "1", files, source="hf:org/name@0a1b")
    assert Dataset.open(folder).card.source["from"] == "hf:org/name@0a1b"
