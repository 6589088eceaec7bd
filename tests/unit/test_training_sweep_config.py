"""A sweep is checked whole before it starts: names, values, and that each trial could be."""

import json
from typing import Any

import pytest

from modelyard.errors import Invalid
from modelyard.training.sweep.config import SweepConfig
from modelyard.training.sweep.space import Choice, Range


def config(space: Any, **rest: Any) -> SweepConfig:
    return SweepConfig.model_validate({"space": space, **rest})


def test_a_bare_name_is_of_the_recipes_own_part_where_it_is_no_option_of_training() -> None:
    asked = config("width=[16,32],lr=1e-3..1e-2", train={"epochs": 3, "image_classifier": {"blocks": 1}})
    assert asked.whole({"width": 16, "lr": 0.002}) == {
        "epochs": 3,
        "lr": 0.002,
        "image_classifier": {"blocks": 1, "width": 16},
    }
    assert asked.train == {"epochs": 3, "image_classifier": {"blocks": 1}}


def test_dotted_names_reach_what_a_recipe_takes() -> None:
    part = {"name": "Net", "inputs": ["x"]}
    asked = config("module.arguments.hidden=8..64", train={"recipe": "module", "module": part})
    assert asked.trial({"module.arguments.hidden": 9}).module is not None
    assert asked.searched == {"module.arguments.hidden": Range(low=8, high=64)}


def test_a_range_of_whole_numbers_has_steps_only_where_its_option_has() -> None:
    assert config("epochs=3..10,lr=1..2").searched == {"epochs": Range(low=3, high=10), "lr": Range(low=1.0, high=2.0)}
    assert not config("lr=1..2").searched["lr"].whole  # type: ignore[union-attr]


def test_it_is_the_same_after_a_journey_as_json() -> None:
    asked = config("lr=1e-4..1e-2:log,width=[16,32],epochs=3..10")
    assert SweepConfig.model_validate(json.loads(asked.model_dump_json())) == asked
    assert asked.space["width"] == Choice(values=(16, 32))


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ("widht=[1,2]", "'widht' is not an option of 'train'; did you mean 'width'?"),
        ("image_classifier.widht=[1,2]", "'image_classifier.widht' is not an option of 'train'"),
        ("epochs=0..3", "'epochs' is 0; expected"),
        ("epochs=1.5..3", "'epochs' is 1.5; expected"),
        ("optimiser=[adamw,adam]", "'optimiser' is \"adam\"; expected"),
        ("width=[16,4096]", "'image_classifier.width' is 4096; expected"),
        ("lr.x=1..2", "'lr' is no part of the configuration"),
        ({}, "names nothing to search"),
    ],
)
def test_what_no_trial_could_be_is_refused(space: Any, told: str) -> None:
    with pytest.raises(Invalid) as refused:
        config(space, train={"lr": 0.1})
    assert told in refused.value.message


def test_the_sweep_itself_is_one_rank() -> None:
    config("lr=1..2", ranks=4).check_ranks(1)
    with pytest.raises(Invalid, match="is one rank, not 2"):
        config("lr=1..2").check_ranks(2)
