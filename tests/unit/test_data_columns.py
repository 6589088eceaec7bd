import numpy as np
import pytest

from modelyard.data.transforms import build
from modelyard.errors import Invalid


def columns(*specs, **options):
    return build({"name": "columns", "columns": list(specs), **options})


AGE = {"name": "age", "mean": 40.0, "std": 10.0}
ROOMS = {"name": "rooms", "datatype": "INT64"}
TOWN = {"name": "town", "datatype": "BYTES", "categories": ["Bern", "Zug"]}


def test_columns_become_one_matrix_in_their_order():
    rows = {"town": np.array([b"Zug"], object), "rooms": np.array([3]), "age": np.array([50], np.float32)}
    assert columns(AGE, ROOMS, TOWN).before(rows)["x"].tolist() == [[1.0, 3.0, 0.0, 1.0]]


def test_a_missing_number_counts_as_the_mean():
    assert columns(AGE).before({"age": np.array([np.nan])})["x"].tolist() == [[0.0]]


def test_a_missing_number_is_told_where_that_may_say_something():
    told = columns({**AGE, "indicator": True}, TOWN).before(
        {"age": np.array([np.nan, 50]), "town": np.array(["Zug"] * 2, object)}
    )
    assert told["x"].tolist() == [[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]]


def test_a_category_that_training_has_not_seen_is_none_of_those_it_has():
    towns = {"town": np.array(["Rom", b"Zug"], object)}
    assert columns({**TOWN, "others": True}).before(towns)["x"].tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_a_number_model_that_learned_in_deviations_predicts_numbers():
    far = columns(AGE, mean=1e9, std=2.0).after({"output": np.array([[0.0], [-32.0]], np.float32)})["prediction"]
    assert far.tolist() == [1e9, 1e9 - 64]
    assert far.dtype == np.float32


def test_large_integers_lose_nothing_before_their_mean_is_taken_off():
    year = {"name": "at", "datatype": "INT64", "mean": 2.0**53 - 1, "std": 1.0}
    assert columns(year).before({"at": np.array([2**53 - 3, 2**53])})["x"].tolist() == [[-2.0], [1.0]]


def test_a_number_model_predicts():
    assert columns(AGE).after({"output": np.array([[1.5], [2.5]])})["prediction"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"age": np.array([np.inf]), "town": np.array([b"Zug"], object)}, "Row 0 of 'age' is infinite"),
        (
            {"age": np.array([1.0]), "town": np.array([b"Rom"], object)},
            "Row 0 of 'town' is b'Rom'; the model knows 'Bern', 'Zug'",
        ),
        (
            {"age": np.array([1.0, 2.0]), "town": np.array([b"Zug"], object)},
            r"different numbers of rows: \{'age': 2, 'town': 1\}",
        ),
        ({"age": np.array([1.0])}, "Tensor 'town' is missing; given: 'age'"),
    ],
)
def test_rows_that_cannot_be_used_are_named(rows, said):
    with pytest.raises(Invalid, match=said):
        columns(AGE, TOWN).before(rows)


@pytest.mark.parametrize(
    "wrong",
    [
        {"std": 0.0},
        {"mean": float("nan")},
        {"datatype": "BYTES"},
        {"categories": ["a"]},
        {"datatype": "FP16"},
        {"others": True},
        {"datatype": "BYTES", "categories": ["a"], "indicator": True},
    ],
)
def test_options_are_checked(wrong):
    with pytest.raises(Invalid, match="options of transform 'columns' are wrong"):
        columns({**AGE, **wrong})
