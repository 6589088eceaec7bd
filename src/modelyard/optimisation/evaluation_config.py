"""What an `evaluate` job is asked for. Read by `work.py` in every process, so nothing here loads a model library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from modelyard.errors import Invalid
from modelyard.kinds import Config, Pinned
from modelyard.optimisation.evidence import TOKENS, Counted


class EvaluateConfig(Config):
    """`slices`: columns of the dataset within whose values the two are compared, too. `confidence`: of every interval in the
    report. `seed`: of resampling. `metric`: what decides, None what is usual for the task; of texts 'accuracy' is the share of
    those that are as wanted, letter by letter. `max_tokens`: of a language model's answer."""

    slices: tuple[str, ...] = Field(default=(), max_length=10)
    metric: Literal["accuracy", "r2", "spearman", Counted] | None = None
    max_tokens: int = Field(default=TOKENS, ge=1, le=4096)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    seed: int = Field(default=0, ge=0)

    @field_validator("slices")
    @classmethod
    def _each_once(cls, slices: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(slices)) != len(slices):
            raise ValueError("each column may be named once")
        return slices


def check_evaluation(inputs: Mapping[str, Pinned]) -> None:
    """Raises `Invalid` where the catalogue knows already that the dataset can tell nothing: no target, one class, no rows kept
    for the report."""
    dataset = inputs["dataset"]
    splits, labels = dataset.metadata.get("splits"), dataset.metadata.get("labels")
    if isinstance(splits, Mapping) and not splits.get("report"):
        raise Invalid(f"{dataset.reference} has no row in the split 'report', which versions are evaluated on.")
    if isinstance(labels, list) and len(labels) < 2:
        raise Invalid(f"{dataset.reference} has one class, {', '.join(map(str, labels))}: it tells no model from another.")
