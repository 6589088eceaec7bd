"""How a space is written: what each form means, and what each mistake is told as."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import Invalid
from modelyard.training.sweep.space import Choice, Parameter, Range, parameter, parse, points, size

NAMES = st.from_regex(r"[a-z][a-z_]{0,6}(\.[a-z]{1,4})?", fullmatch=True)
NUMBERS = st.integers(-1000, 1000) | st.floats(-1e6, 1e6, allow_nan=False).map(float)
RANGES = st.tuples(NUMBERS, NUMBERS).filter(lambda ends: ends[0] < ends[1]).map(lambda ends: Range(low=ends[0], high=ends[1]))
WORDS = st.from_regex(r"[a-z]{1,8}", fullmatch=True).filter(lambda word: word not in ("true", "false", "null"))
VALUES = st.integers(-99, 99) | st.booleans() | WORDS
CHOICES = st.lists(VALUES, min_size=1, max_size=4, unique_by=json.dumps).map(lambda values: Choice(values=tuple(values)))


def test_the_forms() -> None:
    assert parse("lr=1e-4..1e-2:log, width=[16,32,64],epochs=3..10,optimiser=[adamw,sgd],module.loss=[mse]") == {
        "lr": Range(low=1e-4, high=1e-2, log=True),
        "width": Choice(values=(16, 32, 64)),
        "epochs": Range(low=3, high=10),
        "optimiser": Choice(values=("adamw", "sgd")),
        "module.loss": Choice(values=("mse",)),
    }


def test_lists_may_hold_any_json_and_objects_come_from_code() -> None:
    assert parse('a=[[1,2],[3]],b=["x,y",null]')["a"] == Choice(values=([1, 2], [3]))
    assert parameter("b", ["x", True]) == Choice(values=("x", True))
    assert parameter("c", {"low": 1, "high": 2.5}) == Range(low=1, high=2.5)


@given(st.dictionaries(NAMES, RANGES | CHOICES, min_size=1, max_size=4))
def test_what_is_written_is_read(space: dict[str, Parameter]) -> None:
    assert parse(",".join(f"{name}={one}" for name, one in space.items())) == space


@given(st.text(max_size=40))
def test_whatever_is_written_is_read_or_refused_in_a_sentence(text: str) -> None:
    with suppress(Invalid):  # any other error fails the test
        assert parse(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "names nothing to search"),
        ("lr", "'lr' is not NAME=VALUES"),
        ("lr=0.1", "leaves nothing to search"),
        ("lr=1e-2..1e-4", "does not rise"),
        ("lr=0..1:log", "must be above 0"),
        ("lr=1..2:lin", "only ':log' is known"),
        ("lr=1..x", "'x' is no number"),
        ("lr=1..inf", "'inf' is no number"),
        ("w=[]", "empty list"),
        ("w=[1,1]", "a value twice"),
        ("w=[1,,2]", "nothing between two commas"),
        ("w=[1,2", "not closed"),
        ("w=[1]2", "goes on after its list"),
        ("lr=1..2,lr=3..4", "'lr' is swept twice"),
        ("1r=1..2", "is no name of an option"),
    ],
)
def test_what_is_wrong_is_said(text: str, told: str) -> None:
    with pytest.raises(Invalid, match=told.replace("[", r"\[")):
        parse(text)


def test_the_points_of_a_finite_space() -> None:
    space: dict[str, Any] = parse("a=[x,y],b=1..3")
    assert size(space) == len(list(points(space))) == 6
    assert next(points(space)) == {"a": "x", "b": 1}
    assert size(parse("a=[x],b=1..3.5")) == float("inf")
