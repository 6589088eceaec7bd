import pytest

from modelyard.data.texts import texts
from modelyard.errors import Invalid
from modelyard.kinds import FolderView


def read(folder, rows="document", **files):
    for name, data in files.items():
        (folder / f"{name}.txt").write_bytes(data)
    source = texts(FolderView(folder), {f"{name}.txt": None for name in files}, rows, {}, lambda done: None)
    return source, [(sample.where, sample.values["text"]) for sample in source.samples]


TEXT = b"\xef\xbb\xbfOne\r\ntwo\n \n\n  three\nfour"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("document", [("'a.txt'", "One\ntwo\n \n\n  three\nfour"), ("'b.txt'", "x\n")]),
        ("paragraph", [("'a.txt', line 1", "One\ntwo"), ("'a.txt', line 5", "three\nfour"), ("'b.txt', line 1", "x")]),
        ("line", [("'a.txt', line 1", "One"), ("'a.txt', line 2", "two"), ("'a.txt', line 5", "three"),
                  ("'a.txt', line 6", "four"), ("'b.txt', line 1", "x")]),
    ],
)  # fmt: skip
def test_what_makes_a_row(tmp_path, rows, expected):
    source, found = read(tmp_path, rows, a=TEXT, b=b"x\n")
    assert found == expected
    assert (source.rows, source.task, source.target) == (len(expected), "text-generation", None)


@pytest.mark.parametrize("rows", ["document", "paragraph", "line"])
def test_what_is_no_text_is_named(tmp_path, rows):
    with pytest.raises(Invalid, match=r"'b.txt', line 2: byte 1 is not UTF-8 text. Nothing was imported"):
        read(tmp_path, rows, a=b"fine", b=b"fine\nb\xff")
    with pytest.raises(Invalid, match=r"'a.txt' has no text; leave it out"):
        read(tmp_path, rows, a=b" \n")
