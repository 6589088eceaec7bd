import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.data.config import ImportDatasetConfig
from modelyard.data.tables import integer, number, sniff, table
from modelyard.errors import Invalid, NotFound
from modelyard.kinds import FolderView


def source(folder, text, **config):
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "data.csv").write_bytes(data)
    return table(FolderView(folder, "hash"), "data.csv", ImportDatasetConfig(**config), lambda done: None)


def rows(source):
    return [dict(sample.values) for sample in source.samples]


def kinds(source):
    return {name: feature.type for name, feature in source.features.items()}


def test_types_are_inferred(tmp_path):
    read = source(tmp_path, "a,b,c,d\n1,1.5,x,3\n2,-2e3,y,\n")
    assert kinds(read) == {"a": "int", "b": "float", "c": "text", "d": "float"}
    assert rows(read) == [{"a": 1, "b": 1.5, "c": "x", "d": 3.0}, {"a": 2, "b": -2000.0, "c": "y", "d": None}]
    assert (read.rows, read.target, read.task) == (2, None, None)


def test_bom_quotes_blank_lines_and_semicolons(tmp_path):
    read = source(tmp_path, b'\xef\xbb\xbfname;note\r\n"Meier; Zug";"said ""no""\nand left"\r\n\r\nHuber;\r\n')
    assert rows(read) == [{"name": "Meier; Zug", "note": 'said "no"\nand left'}, {"name": "Huber", "note": None}]


@pytest.mark.parametrize(
    ("text", "delimiter"), [("a,b\n1,2", ","), ("a\tb\n1,5\t2", "\t"), ("a|b\n1|2", "|"), ("a\n1", ","), ("a;b\n1", ";")]
)
def test_the_delimiter_is_found(tmp_path, text, delimiter):
    (tmp_path / "t.csv").write_text(text)
    assert sniff(FolderView(tmp_path), "t.csv") == delimiter


@pytest.mark.parametrize(
    ("values", "config", "task", "names"),
    [
        (["no", "yes", "no"], {}, "tabular-classification", ("no", "yes")),
        (["10", "2", "10"], {}, "tabular-classification", ("2", "10")),
        (["1.5", "2.5", "1.5"], {}, "tabular-regression", None),
        (["10", "2", "10"], {"task": "tabular-regression"}, "tabular-regression", None),
        (["so ist es", "ja", "ja"], {"task": "translation"}, "translation", None),
    ],
)
def test_the_task_follows_the_target(tmp_path, values, config, task, names):
    read = source(tmp_path, "x,y\n" + "\n".join(f"{n}.5,{value}" for n, value in enumerate(values)), target="y", **config)
    assert (read.task, read.features["y"].names) == (task, names)
    if names:
        assert [names[row["y"]] for row in rows(read)] == values


MANY = "".join(f"{n},{n}\n" for n in range(20))


@pytest.mark.parametrize(
    ("text", "config", "said"),
    [
        ("a,y\n1,2\n", {"target": "y", "task": "translation"}, r"'y' is of type int; translation needs a target of texts"),
        (f"a,b\n{MANY}oops,3\n", {}, r"'data.csv', line 22, column 'a': 'oops' where an integer was expected|a number"),
        ("a,b\n1,2\n3\n", {}, r"'data.csv', line 3: 1 fields, column 'b' is missing; expected 2 \(a, b\)"),
        ("a,b\n1,2\n3,4,5\n", {}, r"line 3: 3 fields, '5' is too much"),
        ('a,b\n1,"2\n', {}, r"line 2: unexpected end of data"),
        ("a,b\n1,2.5\n", {"types": {"b": "int"}}, r"line 2, column 'b': '2.5' where an integer was expected"),
        ("a,y\n1,x\n2,\n", {"target": "y"}, r"line 3, column 'y': no value; expected a text"),
        ("a,b\n1,\n2,\n", {}, r"column 'b': no value; the column is empty"),
        ("1,2\n3,4\n", {}, r"line 1: \['1', '2'\] names no columns"),
        ("a,a\n3,4\n", {}, r"line 1: column names must be there and differ; wrong: \['a'\]"),
        ("a,\n3,4\n", {}, r"column names must be there"),
        ("a,b\n", {}, "has no rows"),
        ("", {}, "names no columns"),
        ("a,y\n1,x\n", {"target": "y"}, "1 different values; a class needs 2"),
        ("a,y\n1,x\n2,z\n", {"target": "y", "task": "tabular-regression"}, "needs a target of numbers"),
        (b"a,b\n1,2\n\xff\xfe,3\n", {}, r"line 3: byte 0 is not UTF-8 text"),
        (f"a\n{'x' * 200_000}\n", {}, r"line 2: field larger than field limit"),
    ],
)  # fmt: skip
def test_a_broken_row_is_named(tmp_path, text, config, said):
    with pytest.raises(Invalid, match=said) as caught:
        source(tmp_path, text, **config)
    assert (
        "othing was imported" in caught.value.message
        or "a class needs" in caught.value.message
        or "needs a target" in str(caught.value)
        or "names no" in str(caught.value)
    )


def test_an_unknown_target_says_what_there_is(tmp_path):
    with pytest.raises(NotFound, match=r"No column 'weigth'\. Did you mean 'weight'\?"):
        source(tmp_path, "weight,b\n1,2\n", target="weigth")


def test_the_content_of_a_row_leaves_the_target_out_and_the_order_of_columns(tmp_path):
    first = next(iter(source(tmp_path, "a,b,y\n1,2.5,no\n3,4,yes\n", target="y").samples))
    other = next(iter(source(tmp_path, "y,b,a\nyes,2.5,1\nno,4,3\n", target="y").samples))
    assert first.content == other.content == json.dumps({"a": 1, "b": 2.5}).encode()


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_read_as_written(value):
    assert number(repr(value)) == value


@given(st.integers())
def test_integers_are_those_of_64_bits(value):
    assert integer(str(value)) == (value if -(2**63) <= value < 2**63 else None)


@pytest.mark.parametrize("text", ["1_000", "inf", "-Infinity", "nan", "", "0x10", "1,5", "١_"])
def test_what_is_no_number(text):
    assert number(text) is None
    assert integer(text) is None
