"""What each technique is asked for. Read by `work.py` in every process, so nothing here loads a model library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from modelyard.kinds import Config


class Prune(Config):
    """Leaves out `channels` of every layer but the last, `heads` of every attention, `blocks` of those whose answer has the
    shape of their input: shares, the least important first. `layers`: other shares of channels for those whose names match
    (`features.6.*`). `importance`: of a channel, by its weights' L1 or L2 norm, or by
    what a first-order expansion of the loss says (taylor). Channels that stay are `multiple` times a number. Afterwards
    `finetune` epochs at the peak rate `lr` (None: a quarter of the version's own)."""

    step: Literal["prune"] = "prune"
    channels: float = Field(default=0.0, ge=0, lt=1)
    heads: float = Field(default=0.0, ge=0, lt=1)
    blocks: float = Field(default=0.0, ge=0, lt=1)
    layers: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(default_factory=dict)
    importance: Literal["l1", "l2", "taylor"] = "l2"
    multiple: int = Field(default=1, ge=1, le=1024)
    finetune: int = Field(default=0, ge=0, le=10_000)
    lr: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _something_goes(self) -> Prune:
        if not (self.channels or self.heads or self.blocks or any(self.layers.values())):
            raise ValueError("prune leaves nothing out: give a share of channels, heads or blocks, as prune:channels=0.5")
        return self


class Finetune(Config):
    """`epochs` more on the train split, at the peak rate `lr` (None: a quarter of the version's own)."""

    step: Literal["finetune"] = "finetune"
    epochs: int = Field(default=3, ge=1, le=10_000)
    lr: float | None = Field(default=None, gt=0)


class Distil(Config):
    """The version teaches a student for `epochs`: what the steps before made of it or, with `student`, a fresh network of the
    same class with those arguments changed, or of the recipe that it names as in `TrainConfig`. The loss is `alpha` of the
    teacher's part, by logits softened by `temperature`, the rest the labels', and `features` times what separates what their
    last layers take. `lr` None: the version's own. A control is trained beside it, always."""

    step: Literal["distil"] = "distil"
    epochs: int = Field(default=5, ge=1, le=10_000)
    lr: float | None = Field(default=None, gt=0)
    alpha: float = Field(default=0.5, ge=0, le=1)
    temperature: float = Field(default=4.0, gt=0, le=100)
    features: float = Field(default=0.0, ge=0)
    student: dict[str, Any] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _the_teacher_says_something(self) -> Distil:
        if not (self.alpha or self.features):
            raise ValueError("the teacher has no part in it: give alpha (by logits) or features")
        return self


class Qat(Config):
    """Quantisation-aware training: `epochs` in which weights and what layers take are rounded to eight bits as they will be, at
    the peak rate `lr` (None: a tenth of the version's own)."""

    step: Literal["qat"] = "qat"
    epochs: int = Field(default=2, ge=1, le=10_000)
    lr: float | None = Field(default=None, gt=0)


class Quantize(Config):
    """Eight bits: of weights and what flows between layers (`static-int8`, `dynamic-int8`, by onnxruntime), or of weights as
    they are stored, which is smaller and no faster (`weights-int8`). `calibration`: how ranges follow from `rows` (256) of the
    calibrate split (static-int8): the smallest and largest, the least loss of information, or a `percentile` of them.
    `per_channel`: a scale for each channel of the weights. In float stay the layers of `float_layers`, and of the others the
    `sensitive` ones that do most harm alone; `auto`: as many as it takes for the rest to answer alike.

    Language models: the weights on a grid of GGUF's (`q8_0`, `q4_0`, `q4_1`), by `rounding` them where those that are left make
    up for the error on `rows` (32) blocks of the calibrate split, or where they are nearest; `embeddings` (None: q8_0) are on
    a grid of their own, `eight_bit_layers` on q8_0. With `bits`, which the mean weight may have, scales included, those are on
    q8_0 that gain most by it, embeddings like any other. For `tune` epochs of those blocks scales and norms then learn to foretell as the
    original does, at the peak rate `tune_lr`."""

    step: Literal["quantize"] = "quantize"
    method: Literal["static-int8", "dynamic-int8", "weights-int8", "q8_0", "q4_0", "q4_1"] = "static-int8"
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    percentile: float = Field(default=99.99, gt=50, le=100)
    rows: int | None = Field(default=None, ge=1, le=100_000)
    per_channel: bool = True
    float_layers: tuple[str, ...] = ()
    sensitive: Annotated[int, Field(ge=0, strict=True)] | Literal["auto"] = 0
    rounding: Literal["compensated", "nearest"] = "compensated"
    embeddings: Literal["q8_0", "q4_0", "q4_1"] | None = None
    eight_bit_layers: tuple[str, ...] = ()
    bits: float | None = Field(default=None, gt=0, lt=8.5)
    tune: int = Field(default=0, ge=0, le=100)
    tune_lr: float = Field(default=2e-3, gt=0, le=1)

    @model_validator(mode="after")
    def _options_are_the_method_s(self) -> Quantize:
        alone, fields = _ONNX_ALONE if self.method in GGUF else _GGUF_ALONE, type(self).model_fields
        given = {name for name in alone if getattr(self, name) != fields[name].default}  # a config is kept with all of them
        if given or (self.bits and self.method == "q8_0"):
            raise ValueError(f"{', '.join(sorted(given)) or 'bits'}: no option of {self.method}")
        return self


# Methods for language models, and what is an option of these or of the others alone.
GGUF = ("q8_0", "q4_0", "q4_1")
_GGUF_ALONE = {"rounding", "embeddings", "eight_bit_layers", "bits", "tune", "tune_lr"}
_ONNX_ALONE = {"calibration", "percentile", "per_channel", "sensitive"}
Step = Annotated[Prune | Finetune | Distil | Qat | Quantize, Field(discriminator="step")]
STEPS: dict[str, type[Prune | Finetune | Distil | Qat | Quantize]] = {
    "prune": Prune,
    "finetune": Finetune,
    "distil": Distil,
    "qat": Qat,
    "quantize": Quantize,
}
SHORT = {"quantize": "method"}  # the option that may be written without its name


def check_order(steps: Sequence[Any]) -> None:
    """Raises `ValueError` where eight bits do not come last, or a student is its own teacher."""
    names = [step.step for step in steps]
    if "quantize" in names[:-1]:
        after = names[names.index("quantize") + 1]
        raise ValueError(f"'{after}' comes after 'quantize'; a network of eight bits is not trained: quantize comes last")
    for place, step in enumerate(steps):
        if isinstance(step, Distil) and step.student is None and "prune" not in names[:place]:
            raise ValueError(
                "distil has no student but the teacher itself; put prune before it, or say how the student differs, as "
                "distil:student.width=8"
            )


def epochs(steps: Sequence[Any], *, controls: bool = True) -> int:
    """How many epochs they train in all, with those of a control: as many as its student had since it was cut."""
    total = since = 0
    for step in steps:
        own = step.finetune if isinstance(step, Prune) else getattr(step, "epochs", 0)
        if isinstance(step, Prune) or (isinstance(step, Distil) and step.student is not None):
            since = 0
        since += own
        total += own + (since if controls and isinstance(step, Distil) else 0)
    return total


def variant_name(steps: Sequence[Any]) -> str:
    """What the variant is called that these steps make: 'prune50+distil+static-int8'."""
    return "+".join(_called(step) for step in steps)


def _called(step: Any) -> str:
    match step:
        case Prune():
            channels = step.channels or max(step.layers.values(), default=0)
            shares = (("prune", channels), ("heads", step.heads), ("blocks", step.blocks))
            return "-".join(f"{what}{100 * share:.3g}" for what, share in shares if share)
        case Quantize():
            return str(step.method)
        case _:
            return str(step.step)
