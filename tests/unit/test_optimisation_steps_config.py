from __future__ import annotations

import pytest
from pydantic import ValidationError

from modelyard.errors import Invalid
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.steps.config import Quantize, epochs, variant_name


def steps(*texts: str):
    return OptimiseConfig(steps=texts).steps


def test_steps_are_objects_or_text_and_travel_as_json() -> None:
    config = OptimiseConfig(steps=["prune:channels=0.5", {"step": "quantize", "rows": 20}])
    assert [step.step for step in config.steps] == ["prune", "quantize"]
    assert OptimiseConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(Invalid, match="did you mean 'prune'"):
        steps("prunes")


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (("prune:channels=0.5", "distil", "quantize:static-int8"), "prune50+distil+static-int8"),
        (("prune:channels=0.333,heads=0.25,blocks=0.5", "qat"), "prune33.3-heads25-blocks50+qat"),
        (('prune:layers={"a":0.25}', "finetune"), "prune25+finetune"),
        (("quantize:dynamic-int8",), "dynamic-int8"),
        (("distil:layers=6", "quantize:q4_0"), "distil6+q4_0"),
        (("prune:weights=0.5", "quantize:q8_0"), "prune50+q8_0"),
        (("prune:weights=0.5,pattern=2:4,by=sparsegpt", "quantize:q4_0,tune=1"), "prune50-2of4-sparsegpt+q4_0-tuned"),
    ],
)
def test_a_variant_is_called_by_its_steps(texts: tuple[str, ...], name: str) -> None:
    assert variant_name(steps(*texts)) == name


def test_eight_bits_come_last() -> None:
    with pytest.raises(ValidationError, match="'prune' comes after 'quantize'"):
        steps("quantize", "prune:channels=0.5")
    with pytest.raises(ValidationError, match="'quantize' comes after 'quantize'"):
        steps("quantize", "quantize")


def test_a_grid_without_nought_is_nothing_to_prune_for() -> None:
    with pytest.raises(ValidationError, match="q4_1 has no code for nought"):
        steps("prune:weights=0.5", "quantize:q4_1")
    assert len(steps("prune:weights=0.5", "quantize:q4_0,embeddings=q4_1")) == 2


def test_a_teacher_needs_a_student() -> None:
    with pytest.raises(ValidationError, match="no student but the teacher itself"):
        steps("finetune", "distil")
    assert len(steps("prune:blocks=0.5", "distil")) == len(steps("finetune", "distil:student.width=1")) == 2
    assert len(steps("distil:layers=2")) == 1
    with pytest.raises(Invalid, match="layers cuts the student from the teacher, student says another one"):
        steps("distil:layers=2,student.width=1")
    with pytest.raises(Invalid, match="rows: no option without layers"):
        steps("distil:student.width=1,rows=9")


def test_a_control_learns_as_long_as_its_student() -> None:
    assert epochs(steps("prune:channels=0.5,finetune=3", "finetune:epochs=2", "distil:epochs=4", "qat:epochs=1")) == (
        3 + 2 + 4 + (3 + 2 + 4) + 1
    )
    assert epochs(steps("finetune:epochs=2", "distil:epochs=4,student.width=1")) == 2 + 4 + 4
    assert epochs(steps("finetune:epochs=6", "prune:channels=0.5", "distil:epochs=2")) == 6 + 2 + 2
    assert epochs(steps("finetune:epochs=3", "distil:epochs=5,student.width=1", "prune:channels=0.5", "distil:epochs=2")) == 17
    assert epochs(steps("distil:layers=2,epochs=3")) == 6
    assert epochs(steps("quantize")) == 0
    assert epochs(steps("finetune:epochs=6", "prune:channels=0.5", "distil:epochs=2"), controls=False) == 6 + 2


def test_configs_kept_before_there_were_bits_are_read() -> None:
    """A config is kept with all its options, and embeddings were on q8_0 by default."""
    for method in ("static-int8", "q4_0"):
        kept = {**Quantize(method=method).model_dump(), "embeddings": "q8_0"}
        assert Quantize.model_validate(kept).method == method
    with pytest.raises(ValidationError, match="embeddings: no option of static-int8"):
        Quantize(embeddings="q4_0")
