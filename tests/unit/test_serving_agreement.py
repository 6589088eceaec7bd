"""Two answers to one call: what counts as the same, by what the task gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelyard.serving.agreement import disagreeing

TASKS = ("image-classification", "tabular-regression", "feature-extraction", "text-generation")
patient = settings(deadline=None)
floats = st.one_of(st.floats(width=32), st.sampled_from([np.nan, np.inf, -np.inf, 0.0]))
shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
anything = st.one_of(
    arrays.arrays(np.float32, shapes, elements=floats),
    arrays.arrays(np.float64, shapes),
    arrays.arrays(np.int64, shapes),
    arrays.arrays(np.bool_, shapes),
    arrays.arrays(np.object_, shapes, elements=st.binary(max_size=3)),
)
answers = st.dictionaries(st.sampled_from("abc"), anything, max_size=3)


def of(*rows: object, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {"y": np.array(rows, dtype)}


@given(st.sampled_from(TASKS), answers)
@patient
def test_an_answer_agrees_with_itself(task: str, answer: dict[str, np.ndarray]):
    assert disagreeing(task, answer, {name: array.copy() for name, array in answer.items()})[1] == 0


@given(st.sampled_from(TASKS), answers, answers)
@patient
def test_neither_side_is_preferred(task: str, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]):
    rows, wrong = disagreeing(task, ours, theirs)
    assert disagreeing(task, theirs, ours) == (rows, wrong)
    assert 0 <= wrong <= rows


@given(st.sampled_from(TASKS), st.data())
@patient
def test_the_order_of_the_rows_does_not_matter(task: str, data: st.DataObject):
    shape = (data.draw(st.integers(1, 5)), 3)
    pair = [data.draw(arrays.arrays(np.float32, shape, elements=st.floats(-9, 9, width=32))) for _ in range(2)]
    order = data.draw(st.permutations(range(shape[0])))
    there, back = ({"y": array} for array in pair), ({"y": array[order]} for array in pair)
    assert disagreeing(task, *there) == disagreeing(task, *back)


@given(st.sampled_from(TASKS), arrays.arrays(np.float64, (4, 3), elements=st.floats(-9, 9)), st.integers(0, 3))
@patient
def test_nan_agrees_with_nan_in_the_same_place_alone(task: str, array: np.ndarray, row: int):
    broken = array.copy()
    broken[row, 1] = np.nan
    assert disagreeing(task, {"y": array}, {"y": broken}) == (4, 1)
    assert disagreeing(task, {"y": broken}, {"y": broken.copy()}) == (4, 0)


@pytest.mark.parametrize("task", TASKS)
def test_other_shapes_and_names_disagree_wholly(task: str):
    four = {"y": np.zeros((4, 2))}
    assert disagreeing(task, four, {"y": np.zeros((4, 3))}) == (4, 4)
    assert disagreeing(task, four, {"y": np.zeros((6, 2))}) == (6, 6)
    assert disagreeing(task, four, {"z": np.zeros((4, 2))}) == (4, 4)
    assert disagreeing(task, four, four | {"z": np.zeros(4)}) == (4, 4)
    assert disagreeing(task, {}, {}) == (0, 0)


@pytest.mark.parametrize("task", TASKS)
def test_labels_decide_where_there_are_any(task: str):
    ours = {"label": np.array([b"cat", b"dog"], np.object_), "scores": np.array([[0.9, 0.1], [0.2, 0.8]])}
    theirs = {"label": np.array([b"cat", b"cat"], np.object_), "scores": np.array([[0.1, 0.9], [0.2, 0.8]])}
    assert disagreeing(task, ours, theirs) == (2, 1)
    theirs["scores"][0, 0] = np.nan
    assert disagreeing(task, ours, theirs) == (2, 2), "an answer with NaN is none"


def test_a_row_of_ids_agrees_where_all_are_the_same():
    assert disagreeing(
        "text-generation", of([1, 2, 3], [4, 5, 6], dtype=np.int64), of([1, 2, 3], [4, 5, 7], dtype=np.int64)
    ) == (2, 1)


def test_scores_are_read_by_the_best_class():
    assert disagreeing("text-classification", of([5, 1], [0, 1]), of([2, 1], [1, 0])) == (2, 1)
    masked = of([-np.inf, 1.0], [-np.inf, 1.0])
    assert disagreeing("text-classification", masked, of([-1e9, 0.7], [1.0, 0.7])) == (2, 1)


def test_one_score_a_row_is_a_number_not_a_class():
    assert disagreeing("tabular-classification", of([0.9], [0.1]), of([0.1], [0.1])) == (2, 1)
    assert disagreeing("tabular-classification", of(0.9, 0.1), of(0.1, 0.1)) == (2, 1)


def test_embeddings_are_read_by_their_direction():
    ours = of([1, 0, 0], [0, 1, 0], [0, 0, 0], [1e30, 0, 0], [0, 0, 0])
    theirs = of([3, 0.1, 0], [1, 1, 0], [0, 0, 0], [1e-30, 0, 0], [0, 0, 1])
    assert disagreeing("feature-extraction", ours, theirs) == (5, 2)


def test_numbers_are_read_by_how_far_they_are_apart():
    assert disagreeing("tabular-regression", of(100, 50, 1), of(104, 56, 1)) == (3, 1)
    assert disagreeing("tabular-regression", of(0.001, 1.0), of(-0.001, 1.0)) == (2, 0), "0.2 % of the spread"
    assert disagreeing("tabular-regression", of(0.001), of(-0.001)) == (1, 1)
    assert disagreeing("tabular-regression", of(0.001), of(-0.001), spread=1.0) == (1, 0)
    huge = of(1.7e308, -1.7e308, dtype=np.float64)
    assert disagreeing("tabular-regression", huge, of(-1.7e308, -1.7e308, dtype=np.float64)) == (2, 1)


def test_infinity_is_no_number_near_another():
    assert disagreeing("tabular-regression", of(np.inf, 1), of(np.inf, 1)) == (2, 0)
    assert disagreeing("tabular-regression", of(np.inf, 1), of(-np.inf, 1)) == (2, 1)


def test_half_precision_is_the_same_answer():
    array = np.linspace(-3, 3, 40).reshape(10, 4)
    assert disagreeing("tabular-regression", {"y": array}, {"y": array.astype(np.float16)}) == (10, 0)


def test_an_output_with_other_rows_speaks_for_all():
    ours = {"y": np.ones((3, 2)), "loss": np.ones(1)}
    assert disagreeing("tabular-regression", ours, {"y": np.ones((3, 2)), "loss": np.zeros(1)}) == (3, 3)
    assert disagreeing("tabular-regression", ours, {"y": np.ones((3, 2)), "loss": np.ones(1)}) == (3, 0)
