import json

import pytest

from modelyard.data.jsonl import jsonl
from modelyard.errors import Invalid
from modelyard.kinds import FolderView


def read(folder, text, **more):
    for name, data in {"data": text, **more}.items():
        (folder / f"{name}.jsonl").write_bytes(data if isinstance(data, bytes) else data.encode())
    splits = {f"{name}.jsonl": {"train": "train", "test": "report"}.get(name) for name in ("data", *more)}
    return jsonl(FolderView(folder), splits, {})


def test_each_line_is_a_row_with_its_place(tmp_path):
    made = read(tmp_path, b'\xef\xbb\xbf{"a": 1, "b": null}\r\n\n{"b": true, "a": 2.5}')
    assert [tuple(record) for record in made.read()] == [
        ("'data.jsonl', line 1", None, {"a": 1, "b": None}),
        ("'data.jsonl', line 3", None, {"a": 2.5, "b": 1}),
    ]
    assert list(made.read()) == list(made.read())


def test_files_come_in_order_with_their_splits(tmp_path):
    made = read(tmp_path, '{"a": 1}', train='{"a": 2}', test='{"a": 3}')
    assert [(record.values["a"], record.split) for record in made.read()] == [(1, None), (2, "train"), (3, "report")]
    assert made.own == {"report"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1}\n{"a": 1,}', r"'data.jsonl', line 2, character 9: .*; expected one JSON object"),
        ('{"a": 1}\n[1]', "line 2: list where an object with fields was expected"),
        ("{}", "line 1: dict where an object with fields"),
        (
            '{"a": 1, "b": 2}\n{"a": 1}',
            r"line 2: field 'b' is missing \(null where there is no value\); expected a, b, as in 'data",
        ),
        ('{"a": 1}\n{"a": 1, "c": 2}', "line 2: field 'c' is too much; expected a"),
        ('{"a": 1, "a": 2}', "line 1: field 'a' is there twice"),
        ('{"a": NaN}', "line 1: NaN is no JSON"),
        ('{"a": ' + "[" * 100_000, "line 1: nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "line 1: Exceeds the limit"),
        (b'{"a": 1}\n{"a": "\xff"}', "line 2: byte 7 is not UTF-8"),
        (json.dumps({"a": [{"role": "x"}]}), r"line 1, 'a'\[0\]: keys"),
    ],
)
def test_a_broken_line_is_named(tmp_path, text, said):
    with pytest.raises(Invalid, match=said) as caught:
        list(read(tmp_path, text).read())
    assert "Nothing was imported" in caught.value.message
