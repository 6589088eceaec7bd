"""What a search may be asked to try, and the steps it comes to."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelyard.errors import Invalid
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.search.config import SearchConfig
from modelyard.optimisation.search.point import Point, candidates, usual, written

POINTS = st.fixed_dictionaries(
    {
        "channels": st.sampled_from([0.0, 0.5]),
        "heads": st.sampled_from([0.0, 0.25]),
        "lesson": st.sampled_from(["none", "finetune", "distil"]),
        "epochs": st.integers(1, 9),
        "qat": st.integers(0, 2),
        "unpad": st.booleans(),
        "quantize": st.sampled_from(["none", "static-int8", "dynamic-int8", "weights-int8"]),
        "calibration": st.sampled_from(["minmax", "entropy"]),
        "sensitive": st.sampled_from([0, 2, "auto"]),
    }
)


@given(POINTS)
def test_the_steps_of_every_point_are_taken_by_optimise(point: dict[str, Any]) -> None:
    steps = Point(**point).steps()
    assert OptimiseConfig(steps=written(steps)).steps == steps


@pytest.mark.parametrize(
    ("point", "steps"),
    [
        ({}, ()),
        ({"epochs": 9, "qat": 2}, ()),
        ({"channels": 0.5}, ("prune:channels=0.5,finetune=5",)),
        ({"channels": 0.5, "lesson": "distil", "epochs": 2}, ("prune:channels=0.5", "distil:epochs=2")),
        ({"channels": 0.5, "lesson": "none"}, ("prune:channels=0.5",)),
        ({"qat": 1, "quantize": "static-int8"}, ("qat:epochs=1", "quantize:static-int8")),
        ({"qat": 1, "quantize": "weights-int8", "sensitive": "auto"}, ("quantize:weights-int8",)),
        ({"quantize": "dynamic-int8", "calibration": "entropy"}, ("quantize:dynamic-int8",)),
        ({"quantize": "dynamic-int8", "unpad": True}, ("unpad", "quantize:dynamic-int8")),
    ],
)
def test_what_makes_no_difference_is_left_out(point: dict[str, Any], steps: tuple[str, ...]) -> None:
    assert written(Point(**point).steps()) == steps


def test_points_that_come_to_the_same_are_tried_once() -> None:
    space = SearchConfig(space="channels=[0,0.5],lesson=[finetune,distil],quantize=[none,static-int8],qat=[0,1]").space
    assert space is not None
    found = [written(Point(**point).steps()) for point in candidates(space)]
    assert len(found) == len(set(found)) == 9
    assert found[0] == ()


def test_the_usual_space_is_of_what_the_model_takes() -> None:
    whole = {(trains, heads): set(usual(trains=trains, labels=True, heads=heads)) for trains in (0, 1) for heads in (0, 1)}
    assert whole[False, False] == whole[False, True] == {"quantize", "calibration", "sensitive"}
    assert whole[True, False] == {"channels", "lesson", "qat", "quantize"}
    assert whole[True, True] == {"heads", "lesson", "qat", "quantize"}
    assert set(usual(trains=False, labels=False, heads=False, unpads=True)) == {"unpad", "quantize", "calibration", "sensitive"}
    assert "lesson" not in usual(trains=True, labels=False, heads=False)
    assert len(candidates(usual(trains=True, labels=True, heads=False))) == 35


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"space": "chanels=[0,0.5]"}, "'chanels' is nothing that a search can try; did you mean 'channels'?"),
        ({"space": "lr=[1,2]"}, "'lr' is nothing that a search can try; there are channels, heads"),
        ({"space": "channels=[0,1.5]"}, "channels"),
        ({"space": "quantize=[int4,none]"}, "quantize"),
        ({"space": "channels=0.1..0.5"}, "The space has endlessly many points, 20,000 is the most"),
        ({"space": "epochs=1..10000,qat=1..100"}, "The space has 1,000,000 points"),
        ({"space": {}}, "names nothing to try"),
        ({"time_budget": 0}, "time_budget"),
        ({"trials": 0}, "trials"),
    ],
)
def test_what_cannot_be_searched_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises((Invalid, ValidationError)) as refused:
        SearchConfig(**config)
    assert said in str(refused.value)


def test_a_search_has_one_rank() -> None:
    SearchConfig().check_ranks(1)
    with pytest.raises(Invalid, match="one rank, not 2"):
        SearchConfig().check_ranks(2)


def test_whole_numbers_may_be_a_range() -> None:
    space = SearchConfig(space="epochs=2..4,channels=[0.5,0.25]").space
    assert space is not None
    assert space["epochs"].values == (2, 3, 4)
