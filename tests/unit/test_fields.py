"""What is wrong with a configuration is said in words of whoever wrote it."""

from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from modelyard.fields import explain
from modelyard.kinds import Config


class Part(Config):
    file: str = "a"


class Plan(Config):
    epochs: int = Field(default=1, ge=1)
    lr: float = Field(default=0.1, gt=0)
    name: str = Field(default="a", pattern="^[a-z]$", description="one letter of a–z")
    how: Literal["fast", "slow"] = "fast"
    part: Part | None = None
    lines: tuple[str, ...] = Field(default=("a",), min_length=1)
    even: int = 2

    @field_validator("even")
    @classmethod
    def _is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError(f"{value} is odd")
        return value


class Named(Config):
    kind: str


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epochz": 3}, "'epochz' is not an option of 'x'; did you mean 'epochs'?"),
        ({"zzz": 3}, "'zzz' is not an option of 'x'; there are epochs, lr, name, how, part, lines, even"),
        ({"part": {"fil": "a"}}, "'part.fil' is not an option of 'x'; did you mean 'part.file'?"),
        ({"part": 5}, "'part' is 5; expected an object of fields and values"),
        ({"part": {"file": 1}}, "'part.file' is 1; expected a string"),
        ({"epochs": "x"}, "'epochs' is \"x\"; expected an integer"),
        ({"epochs": 0, "lr": 0}, "'epochs' is 0; expected greater than or equal to 1; 'lr' is 0; expected greater than 0"),
        ({"name": "A b"}, "'name' is \"A b\"; expected one letter of a–z"),
        ({"name": "b" * 99}, f"'name' is \"{'b' * 59}…; expected one letter of a–z"),
        ({"how": "well"}, "'how' is \"well\"; expected 'fast' or 'slow'"),
        ({"lines": []}, "'lines' is []; expected at least 1"),
        ({"even": 3}, "'even': 3 is odd"),
        (7, "It is 7; expected an object of fields and values"),
    ],
)
def test_what_is_wrong_is_named(given: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Plan.model_validate(given)
    assert explain(caught.value, Plan, "an option of 'x'") == said


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValidationError) as caught:
        Named.model_validate({})
    assert explain(caught.value, Named, "a field") == "'kind' is missing"
