"""What an `optimise` job is asked for. Read by `work.py` in every process, so nothing here loads a model library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from modelyard.errors import Invalid
from modelyard.kinds import Config, Pinned
from modelyard.optimisation.steps.config import Step, check_order
from modelyard.optimisation.steps.text import parse

Goal = Literal["latency", "throughput", "size", "memory"]
Variant = Literal["fp32", "static-int8", "dynamic-int8", "openvino", "litert", "pt2"]


def check_inputs(inputs: Mapping[str, Pinned]) -> None:
    """Raises `Invalid` where the model is what an optimise job made: losses would add up, and its figures mean nothing."""
    model = inputs["model"]
    if "variant" in model.metadata:
        original = model.metadata.get("original")
        rest = f" of {original}; optimise that one" if original else "; optimise the version it was made from"
        raise Invalid(f"{model.reference} is already the variant {model.metadata['variant']}{rest}.")


class OptimiseConfig(Config):
    """`max_accuracy_drop`: the most accuracy (for regression: R²) the chosen variant may lose on the select split, in
    percentage points. `goal`: what is best among those within it: p50 latency at batch 1, throughput at batch 32, size, or
    the memory that serving it takes.
    `steps`: techniques to be done one after another, as objects or as text ('prune:channels=0.5'); they make one variant, and
    `variants` is then left aside.
    `alias`: whether the chosen one gets the alias 'best'.
    `confidence`: of every interval reported. `seed`: of the calibration sample. `seconds`: of measuring each variant."""

    max_accuracy_drop: float = Field(default=1.0, ge=0, le=1e6)
    goal: Goal = "latency"
    variants: tuple[Variant, ...] = Field(default=("fp32", "static-int8", "dynamic-int8"), min_length=1)
    steps: tuple[Step, ...] = Field(default=(), max_length=16)
    alias: bool = True
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    seed: int = Field(default=0, ge=0)
    seconds: float = Field(default=1.5, gt=0, le=60)

    @field_validator("variants")
    @classmethod
    def _each_once(cls, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
        if len(set(variants)) != len(variants):
            raise ValueError("each variant may be named once")
        return variants

    @field_validator("steps", mode="before")
    @classmethod
    def _steps_may_be_text(cls, steps: Any) -> Any:
        return [parse(step) if isinstance(step, str) else step for step in steps] if isinstance(steps, list | tuple) else steps

    @field_validator("steps")
    @classmethod
    def _eight_bits_come_last(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        check_order(steps)
        return steps
