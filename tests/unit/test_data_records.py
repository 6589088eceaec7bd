import pytest

from modelyard.data.config import ImportDatasetConfig
from modelyard.data.records import Record, Records, source, value_of
from modelyard.errors import Invalid, NotFound


def made(*rows, names=None, **config):
    def read():
        for n, row in enumerate(rows, start=1):
            yield Record(f"row {n}", None, {name: value_of(value, f"row {n}, '{name}'") for name, value in row.items()})

    return source(Records(read, {"from": "test"}, names or {}), ImportDatasetConfig(**config), lambda done: None)


def kinds(read):
    return {name: feature.type for name, feature in read.features.items()}


def rows(read):
    return [dict(sample.values) for sample in read.samples]


def test_a_values_own_type_counts():
    chat = [{"role": "user", "content": "hi"}]
    read = made(
        {"a": 1, "b": 2, "c": True, "d": "7", "e": None, "f": chat},
        {"a": -3, "b": 0.5, "c": False, "d": "", "e": 4, "f": chat},
    )
    assert kinds(read) == {"a": "int", "b": "float", "c": "int", "d": "text", "e": "float", "f": "chat"}
    text = '[{"role":"user","content":"hi"}]'
    assert rows(read) == [
        {"a": 1, "b": 2.0, "c": 1, "d": "7", "e": None, "f": text},
        {"a": -3, "b": 0.5, "c": 0, "d": "", "e": 4.0, "f": text},
    ]


def test_a_declared_type_overrules():
    read = made({"zip": 8000, "n": "12"}, {"zip": 3000, "n": "-1"}, types={"zip": "text", "n": "int"})
    assert rows(read) == [{"zip": "8000", "n": 12}, {"zip": "3000", "n": -1}]


def test_only_the_columns_asked_for_are_read():
    read = made({"a": 1, "b": {"any": "thing"}["any"], "y": "no"}, {"a": 2, "b": "c", "y": "yes"}, columns=["a"], target="y")
    assert kinds(read) == {"a": "int", "y": "label"}


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"text": "a", "label": "x"}, "text-classification"),
        ({"text": "a", "n": 1, "label": "x"}, "tabular-classification"),
        ({"image": b"a", "label": "x"}, "image-classification"),
        ({"text": "a", "label": 1.5}, "tabular-regression"),
    ],
)
def test_the_task_follows_what_there_is(row, task):
    other = {**row, "label": "y" if isinstance(row["label"], str) else 2.5}
    assert made(row, other, target="label").task == task


def test_stated_classes_keep_their_order_and_make_the_target():
    read = made({"text": "a", "label": "pos"}, {"text": "b", "label": "neg"}, names={"label": ("pos", "neg", "none")})
    assert (read.target, read.task, read.features["label"].names) == ("label", "text-classification", ("pos", "neg", "none"))
    assert [row["label"] for row in rows(read)] == [0, 1]


def test_a_text_alone_is_for_generating_text():
    assert made({"text": "a"}, {"text": "b"}).task == "text-generation"


@pytest.mark.parametrize(
    ("given", "config", "said"),
    [
        ([{"a": 1}, {"a": "x"}], {}, r"row 2, 'a': 'x' where an integer was expected, as in row 1, 'a'"),
        ([{"a": 1}, {"a": [1]}], {}, r"row 2, 'a'\[0\]: 1 where a message with role and content"),
        ([{"a": 1}, {"a": {"b": 1}}], {}, r"row 2, 'a': .* where a text, a number, true, false or null was expected"),
        ([{"a": None}], {}, r"row 1, 'a': no value; the column is empty: leave 'a' out"),
        ([{"a": 1, "y": "n"}, {"a": 1, "y": None}], {"target": "y"}, r"row 2, 'y': no value where a text was expected"),
        ([{"a": 2**63}], {}, "does not fit 64 bits"),
        ([{"a": float("inf")}], {}, "where a finite number was expected"),
        ([{"a": "\ud800"}], {}, "character 0 is no Unicode text"),
        ([{"a": "x"}], {"types": {"a": "float"}}, r"row 1, 'a': 'x' where a number was expected"),
        ([{"a": 1, "y": "x"}], {"target": "y"}, "1 different values; a class needs 2"),
        ([{"a": 1, "y": b"x"}], {"target": "y"}, "is of type image; a target is text or numbers"),
        ([], {}, "no rows"),
    ],
)
def test_what_is_wrong_is_named(given, config, said):
    with pytest.raises(Invalid, match=said):
        made(*given, **config)


def test_an_integer_that_a_float_cannot_hold_is_refused_not_rounded():
    read = made({"a": 2**60 + 1}, {"a": None})
    with pytest.raises(Invalid, match="too large for a column of decimal numbers"):
        list(read.samples)


def test_an_unknown_column_says_what_there_is():
    for config in ({"target": "weigth"}, {"columns": ["weigth"]}, {"types": {"weigth": "int"}}):
        with pytest.raises(NotFound, match="Did you mean 'weight'"):
            made({"weight": 1}, **config)
