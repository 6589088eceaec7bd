import pytest
from pydantic import ValidationError

from modelyard.errors import NotFound
from modelyard.training.config import TrainConfig

MODULE = {"name": "Net", "inputs": ["a"]}


def test_defaults_are_a_whole_config():
    config = TrainConfig()
    assert (config.recipe, config.seed, config.dtype) == ("image-classifier", 0, "float32")
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


def test_an_unknown_recipe_is_refused_by_name():
    with pytest.raises(NotFound, match=r"No recipe 'image-classifer'\. Did you mean 'image-classifier'\?"):
        TrainConfig(recipe="image-classifer")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"recipe": "module"}, "needs the part 'module'"),
        ({"dtype": "float64"}, "float64 needs the recipe 'module'"),
        ({"recipe": "module", "dtype": "float64", "module": {**MODULE, "transform": "columns"}}, "float64 needs"),
        ({"epoch": 3}, "Extra inputs are not permitted"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"lr": 0}, "greater than 0"),
        ({"seed": 2**31}, "less than"),
        ({"optimiser": "lion"}, "'adamw' or 'sgd'"),
        ({"module": {**MODULE, "weights": "../m.pth"}}, "should match pattern"),
        ({"module": {**MODULE, "file": "/etc/model.py"}}, "should match pattern"),
        ({"module": {**MODULE, "inputs": []}}, "at least 1 item"),
    ],
)
def test_what_is_wrong_is_named(given, said):
    with pytest.raises(ValidationError, match=said):
        TrainConfig.model_validate(given)
