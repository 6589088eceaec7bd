"""What one variant of a language model is made by: read off the steps, asked by `run`. Nothing is computed here."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelyard.errors import Invalid
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.steps.config import GGUF, Distil, Prune, Quantize, for_language, variant_name
from modelyard.optimisation.steps.text import show

_BLOCKS = 32  # of the calibrate split, unless a step says how many


@dataclass(frozen=True, slots=True)
class Plan:
    """One variant: the model or a student of its, whose weights are pruned or not, and then on grids, or floats of sixteen
    bits."""

    distil: Distil | None = None
    prune: Prune | None = None
    quantize: Quantize | None = None

    @property
    def steps(self) -> list[Distil | Prune | Quantize]:
        return [step for step in (self.distil, self.prune, self.quantize) if step is not None]

    @property
    def name(self) -> str:
        return variant_name(self.steps)

    @property
    def looks(self) -> bool:
        """Whether it asks what layers see of texts; eight bits are rounded nearest anyway."""
        grids = self.quantize
        return self.prune is not None or (grids is not None and not self.plain and not _eight(grids))

    @property
    def weighs(self) -> bool:
        """Whether it asks which errors cost most: of matrices, to give them finer grids; of tokens, for rounding to mind."""
        grids = self.quantize
        return grids is not None and (grids.bits is not None or (self.prune is None and self.looks))

    @property
    def reads(self) -> bool:
        """Whether it takes texts at all."""
        return self.looks or self.weighs or (self.quantize is not None and self.quantize.tune > 0)

    @property
    def plain(self) -> bool:
        """Whether it rounds where it is nearest."""
        return self.quantize is not None and self.quantize.rounding == "nearest"

    @property
    def rows(self) -> int:
        """Blocks of the calibrate split."""
        return max((step.rows for step in (self.prune, self.quantize) if step and step.rows), default=_BLOCKS)


_USUAL = (Plan(quantize=Quantize(method="q8_0")), Plan(quantize=Quantize(method="q4_0")))


def wanted(config: OptimiseConfig) -> tuple[Plan, ...]:
    """The variants to make. Raises `Invalid` for steps and variants that are not for language models."""
    if not config.steps and config.variants != OptimiseConfig.model_fields["variants"].default:
        raise Invalid(
            f"'variants' are of graphs ({', '.join(config.variants)}); of a language model ask for one by steps, as "
            f"quantize:{GGUF[0]} (there are {', '.join(GGUF)}), or for none: then q8_0 and q4_0 are made."
        )
    plan = Plan()
    for step in config.steps:
        if not for_language(step):
            raise Invalid(
                f"'{show(step)}' is not for language models; they are quantised to {', '.join(GGUF)}, pruned before, as "
                "prune:weights=0.5, and distilled before that, as distil:layers=12."
            )
        if isinstance(step, Distil):
            if plan != Plan():
                raise Invalid(
                    f"'{show(step)}': a language model is distilled once, and first: what was pruned would grow again."
                )
            plan = replace(plan, distil=step)
        elif isinstance(step, Quantize):
            plan = replace(plan, quantize=step)
        elif isinstance(step, Prune):
            if plan.prune is not None:
                raise Invalid(f"'{show(step)}': a language model is pruned once; give the whole share in one step.")
            plan = replace(plan, prune=step)
    return (plan,) if config.steps else _USUAL


def kind_of(plan: Plan, name: str, model: Any) -> str | None:
    """The grid of a weight, if it is on one: embeddings, and the head where it is one with them, have their own; layers that
    were named eight bits or none."""
    step = plan.quantize
    if step is None:
        return None
    weight, embedded = model.get_submodule(name.removesuffix(".weight")).weight, model.get_input_embeddings().weight
    called = [name.removesuffix(".weight")]
    if weight is embedded and model.get_output_embeddings().weight is embedded:  # one matrix of two names
        called = [layer for layer, part in model.named_modules() if getattr(part, "weight", None) is weight]
    if _matches(called, step.float_layers):
        return None
    if _matches(called, step.eight_bit_layers):
        return "q8_0"
    return embeddings_of(step) if weight is embedded else step.method


def embeddings_of(step: Quantize) -> str:
    """Their grid: with a number of bits for all they are like any other."""
    return step.embeddings or (step.method if step.bits else "q8_0")


def _eight(step: Quantize) -> bool:
    return {step.method, embeddings_of(step)} == {"q8_0"}


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def check_layers(plan: Plan, model: Any) -> None:
    """Raises `Invalid` for a pattern that no layer has the name of."""
    there = [name for name, part in model.named_modules() if getattr(part, "weight", None) is not None and part.weight.ndim > 1]
    named = (*plan.quantize.float_layers, *plan.quantize.eight_bit_layers) if plan.quantize else ()
    for pattern in named:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in there):
            raise Invalid(f"'{pattern}' is the name of no layer with weights; there are {', '.join(there[:12])}, ….")
