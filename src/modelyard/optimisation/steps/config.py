"""What each technique is asked for. Read by `work.py` in every process, so nothing here loads a model library."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from modelyard.kinds import Config


class Prune(Config):
    """Leaves out `channels` of every layer but the last, `heads` of every attention, `blocks` of those whose answer has the
    shape of their input: shares, the least important first. `layers`: other shares of channels for those whose names match
    (`features.6.*`). `importance`: of a channel, by its weights' L1 or L2 norm, or by
    what a first-order expansion of the loss says (taylor). Channels that stay are `multiple` times a number. Afterwards
    `finetune` epochs at the peak rate `lr` (None: a quarter of the version's own).

    Language models: the share `weights` of every row of the decoder's linear layers is set to nought (embeddings and head
    stay): any of them or, by the `pattern`, two of every four. Which ones is judged `by` their magnitude, by that times what
    the layer sees of `rows` (32) blocks of the calibrate split (wanda), or by what making up for them costs, which is then
    done (sparsegpt)."""

    step: Literal["prune"] = "prune"
    channels: float = Field(default=0.0, ge=0, lt=1)
    heads: float = Field(default=0.0, ge=0, lt=1)
    blocks: float = Field(default=0.0, ge=0, lt=1)
    layers: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(default_factory=dict)
    importance: Literal["l1", "l2", "taylor"] = "l2"
    multiple: int = Field(default=1, ge=1, le=1024)
    finetune: int = Field(default=0, ge=0, le=10_000)
    lr: float | None = Field(default=None, gt=0)
    weights: float = Field(default=0.0, ge=0, lt=1)
    pattern: Literal["any", "2:4"] = "any"
    by: Literal["magnitude", "wanda", "sparsegpt"] = "wanda"
    rows: int | None = Field(default=None, ge=1, le=100_000)

    @model_validator(mode="after")
    def _something_goes(self) -> Prune:
        if not (self.channels or self.heads or self.blocks or any(self.layers.values()) or self.weights):
            raise ValueError(
                "prune leaves nothing out: give a share of channels, heads or blocks, as prune:channels=0.5, or of a language "
                "model's weights, as prune:weights=0.5"
            )
        if given := _given(self, _NETWORKS_ALONE if self.weights else _WEIGHTS_ALONE):
            beside = "beside" if self.weights else "without"
            raise ValueError(f"{given}: no option {beside} weights, which is for language models")
        if self.pattern == "2:4" and self.weights != 0.5:
            raise ValueError("the pattern 2:4 leaves out half of the weights: give weights=0.5")
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
    last layers take. `lr` None: the version's own. `temperature` None: 4. A control is trained beside it, always.

    Language models and encoders of texts: the student is the version with `layers` of its own, evenly chosen, and learns from
    `rows` blocks of tokens or texts of the train split (None: all), at the peak rate `lr` (None: 0.0005). Language models learn
    logits (`temperature` None: 1) and labels as above, encoders the embeddings; `features` is the weight of what separates the
    answers of the layers that stayed."""

    step: Literal["distil"] = "distil"
    epochs: int = Field(default=5, ge=1, le=10_000)
    lr: float | None = Field(default=None, gt=0)
    alpha: float = Field(default=0.5, ge=0, le=1)
    temperature: float | None = Field(default=None, gt=0, le=100)
    features: float = Field(default=0.0, ge=0)
    student: dict[str, Any] | None = Field(default=None, min_length=1)
    layers: int | None = Field(default=None, ge=1)
    rows: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _the_teacher_says_something(self) -> Distil:
        if not (self.alpha or self.features):
            raise ValueError("the teacher has no part in it: give alpha (by logits) or features")
        if self.layers and self.student is not None:
            raise ValueError("layers cuts the student from the teacher, student says another one: give one of them")
        if self.rows and not self.layers:
            raise ValueError("rows: no option without layers, which is for language models and encoders of texts")
        return self


class Qat(Config):
    """Quantisation-aware training: `epochs` in which weights and what layers take are rounded to eight bits as they will be, at
    the peak rate `lr` (None: a tenth of the version's own)."""

    step: Literal["qat"] = "qat"
    epochs: int = Field(default=2, ge=1, le=10_000)
    lr: float | None = Field(default=None, gt=0)


class Unpad(Config):
    """An encoder of texts computes layers for the tokens that are there, and for none that fill a batch up (`unpad.py`). The
    answers stay the same."""

    step: Literal["unpad"] = "unpad"


class Quantize(Config):
    """Eight bits: of weights and what flows between layers (`static-int8`, `dynamic-int8`, by onnxruntime), or of weights as
    they are stored, which is smaller and no faster (`weights-int8`). `calibration`: how ranges follow from `rows` (256) of the
    calibrate split (static-int8): the smallest and largest, the least loss of information, or a `percentile` of them.
    `per_channel`: a scale for each channel of the weights. In float stay the layers of `float_layers`, and of the others the
    `sensitive` ones that do most harm alone; `auto`: as many as it takes for the rest to answer alike.

    Language models: the weights on a grid of GGUF's (`q8_0`, `q5_0`, `q4_1`, `q4_0`), by `rounding` them where those that are
    left make up for the error on `rows` (32) blocks of the calibrate split, or where they are nearest; `embeddings` (None:
    q8_0) are on a grid of their own, `eight_bit_layers` on q8_0. With `bits`, which the mean weight may have, scales included,
    those are on finer grids that gain most by it, embeddings like any other. For `tune` epochs of those blocks scales and norms
    then learn to foretell as the original does, at the peak rate `tune_lr`."""

    step: Literal["quantize"] = "quantize"
    method: Literal["static-int8", "dynamic-int8", "weights-int8", "q8_0", "q5_0", "q4_1", "q4_0"] = "static-int8"
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    percentile: float = Field(default=99.99, gt=50, le=100)
    rows: int | None = Field(default=None, ge=1, le=100_000)
    per_channel: bool = True
    float_layers: tuple[str, ...] = ()
    sensitive: Annotated[int, Field(ge=0, strict=True)] | Literal["auto"] = 0
    rounding: Literal["compensated", "nearest"] = "compensated"
    embeddings: Literal["q8_0", "q5_0", "q4_1", "q4_0"] | None = None
    eight_bit_layers: tuple[str, ...] = ()
    bits: float | None = Field(default=None, gt=0, lt=8.5)
    tune: int = Field(default=0, ge=0, le=100)
    tune_lr: float = Field(default=2e-3, gt=0, le=1)

    @model_validator(mode="after")
    def _options_are_the_method_s(self) -> Quantize:
        alone = _ONNX_ALONE if self.method in GGUF else _GGUF_ALONE
        earlier = {"embeddings"} if self.embeddings == "q8_0" else set()  # by default, in configs that were kept before `bits`
        given = _given(self, alone - earlier)
        if given or (self.bits and self.method == "q8_0"):
            raise ValueError(f"{given or 'bits'}: no option of {self.method}")
        return self


# Methods for language models, and what is an option of these or of the others alone.
GGUF = ("q8_0", "q5_0", "q4_1", "q4_0")
_WEIGHTS_ALONE = {"pattern", "by", "rows"}
_NETWORKS_ALONE = {"channels", "heads", "blocks", "layers", "importance", "multiple", "finetune", "lr"}
_GGUF_ALONE = {"rounding", "embeddings", "eight_bit_layers", "bits", "tune", "tune_lr"}
_ONNX_ALONE = {"calibration", "percentile", "per_channel", "sensitive"}
Step = Annotated[Prune | Finetune | Distil | Qat | Unpad | Quantize, Field(discriminator="step")]
STEPS: dict[str, type[Prune | Finetune | Distil | Qat | Unpad | Quantize]] = {
    "prune": Prune,
    "finetune": Finetune,
    "distil": Distil,
    "qat": Qat,
    "unpad": Unpad,
    "quantize": Quantize,
}
SHORT = {"quantize": "method"}  # the option that may be written without its name


def for_language(step: Any) -> bool:
    """Whether it is for language models, or as a student that is cut for encoders of texts too; all others are for networks
    that become graphs."""
    match step:
        case Quantize():
            return step.method in GGUF
        case Prune():
            return step.weights > 0
        case _:
            return isinstance(step, Distil) and step.layers is not None


def check_order(steps: Sequence[Any]) -> None:
    """Raises `ValueError` where eight bits do not come last or another step than they after `unpad`, weights that are nought
    would be so no more, or a student is its own teacher."""
    names = [step.step for step in steps]
    if "quantize" in names[:-1]:
        after = names[names.index("quantize") + 1]
        raise ValueError(f"'{after}' comes after 'quantize'; a network of eight bits is not trained: quantize comes last")
    after_unpad = names[names.index("unpad") + 1 :] if "unpad" in names else []
    if after_unpad not in ([], ["quantize"]):
        raise ValueError(
            f"'{after_unpad[0]}' comes after 'unpad', which changes the graph and no network: only quantize may follow"
        )
    if any(isinstance(step, Prune) and step.weights for step in steps) and getattr(steps[-1], "method", "") == "q4_1":
        raise ValueError("q4_1 has no code for nought, so that nothing would stay pruned: quantize to q4_0, q5_0 or q8_0")
    for place, step in enumerate(steps):
        if isinstance(step, Distil) and not (step.student or step.layers or "prune" in names[:place]):
            raise ValueError(
                "distil has no student but the teacher itself; put prune before it, or say how the student differs, as "
                "distil:student.width=8, or distil:layers=3 of a language model or an encoder of texts"
            )


def epochs(steps: Sequence[Any], *, controls: bool = True) -> int:
    """How many epochs they train in all, with those of a control: as many as its student had since it was cut."""
    total = since = 0
    for step in steps:
        own = step.finetune if isinstance(step, Prune) else getattr(step, "epochs", 0)
        if isinstance(step, Prune) or (isinstance(step, Distil) and (step.student or step.layers)):
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
            first = step.weights or step.channels or max(step.layers.values(), default=0)
            shares = (("prune", first), ("heads", step.heads), ("blocks", step.blocks))
            said = [f"{what}{100 * share:.3g}" for what, share in shares if share]
            return "-".join(said + ["2of4"] * (step.pattern == "2:4") + [step.by] * (step.by != "wanda"))
        case Quantize():
            bits = [f"{step.bits:g}bits"] if step.bits else []
            ways = (("nearest", step.rounding == "nearest"), ("tuned", step.tune > 0))
            return "-".join([step.method, *bits, *(what for what, is_so in ways if is_so)])
        case Distil():
            return f"distil{step.layers or ''}"
        case _:
            return str(step.step)


def _given(step: Config, names: Collection[str]) -> str:
    """Those of the options that are not as by default; a config is kept with all of them."""
    fields = type(step).model_fields
    given = (name for name in names if getattr(step, name) != fields[name].get_default(call_default_factory=True))
    return ", ".join(sorted(given))
