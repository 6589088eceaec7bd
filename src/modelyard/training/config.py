"""What a `train` job is asked for: one frozen tree. Read by `work.py` in every process, so nothing here loads torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from modelyard.kinds import Config
from modelyard.plugins import Registry
from modelyard.training import mesh as meshes

_FILE = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*"

RECIPES: Registry[Any] = Registry(
    "recipe",
    {
        "image-classifier": "modelyard.training.recipes.image_classifier:image_classifier",
        "module": "modelyard.training.recipes.module:module",
        "tabular": "modelyard.training.recipes.tabular:tabular",
        "causal-lm": "modelyard.training.recipes.causal_lm:causal_lm",
        "transformers": "modelyard.training.recipes.transformers:transformers",
    },
)


class ImageClassifier(Config):
    """Recipe `image-classifier`: `width` channels in the first block, doubled in each further of `blocks`; training images are
    shifted by up to `shift` pixels and, with `flip`, mirrored left to right half of the time."""

    width: int = Field(default=32, ge=1, le=1024)
    blocks: int = Field(default=2, ge=1, le=8)
    shift: int = Field(default=1, ge=0, le=64)
    flip: bool = False


class Module(Config):
    """Recipe `module`: class `name` of the user's `file`, built with `arguments`. `inputs`: the columns that make its one input
    matrix, in order, or the one image feature; `target`: None is the dataset's. `transform`: what callers of the deployed model
    send: 'tensor' the model's own input, 'columns' one tensor a column, normalised as in training; images are always encoded
    files. `weights`: the name of the file of trained weights, a plain state_dict (.pth) or safetensors."""

    file: str = Field(default="model.py", pattern=_FILE + r"\.py$", description="the name of a .py file, without folders")
    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="the name of a class in that file")
    arguments: dict[str, Any] = Field(default_factory=dict)
    inputs: tuple[str, ...] = Field(min_length=1)
    target: str | None = None
    loss: Literal["mse", "cross-entropy"] = "mse"
    transform: Literal["tensor", "columns"] = "tensor"
    task: str | None = None
    weights: str = Field(
        default="model.pth",
        pattern=_FILE + r"\.(pth|safetensors)$",
        description="a file name, .pth or .safetensors",
    )


class Tabular(Config):
    """Recipe `tabular`: predicts `target` (None: the dataset's) from `inputs` (None: all other columns) but `leave_out`.
    `blocks` of `width` with a shortcut around each, of whose answers `dropout` are left out in training."""

    inputs: tuple[str, ...] | None = Field(default=None, min_length=1)
    leave_out: tuple[str, ...] = ()
    target: str | None = None
    width: int = Field(default=128, ge=1, le=8192)
    blocks: int = Field(default=2, ge=1, le=64)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class CausalLm(Config):
    """Recipe `causal-lm`: `column` of texts or chats (None: the only one); blocks of `length` tokens, several documents in one
    where `together`. Of a chat the `answers` are learned, or all of it."""

    column: str | None = None
    length: int = Field(default=512, ge=2, le=131_072)
    together: bool = True
    learn: Literal["answers", "all"] = "answers"


class Transformers(Config):
    """Recipe `transformers`: `column` of texts or images (None: the only one); texts are cut at `length` tokens."""

    column: str | None = None
    length: int = Field(default=256, ge=2, le=131_072)


class Lora(Config):
    """Matrices of `rank` beside `layers` learn, and the base stays as it is. `layers`: last parts of names (None: all linear
    ones). What they add counts `alpha` / `rank`. `keep`: what becomes a version."""

    rank: int = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    layers: tuple[str, ...] | None = Field(default=None, min_length=1)
    keep: Literal["adapter", "merged", "both"] = "adapter"


# What a checkpoint does not depend on: how long and how fast is learned, how often one is kept, how the ranks are arranged.
RESUMABLE = (
    *("epochs", "lr", "schedule", "warmup", "weight_decay", "clip", "checkpoint_every", "checkpoint_steps", "checkpoint_keep"),
    *("mesh", "micro_batches", "precision", "recompute", "compile", "pipe_schedule", "verify"),
)
FINETUNING = ("causal-lm", "transformers")


class TrainConfig(Config):
    """`batch_size` counts the rows of one step over all ranks. `lr` is the peak; `warmup` the part of all steps in which it
    rises to that. `dtype` float64 is for comparing runs. `checkpoint_every` counts epochs;
    `checkpoint_steps`: also within an epoch, every so many steps; `checkpoint_keep`: the last so many stay, and the best.

    `mesh`: how the ranks are arranged (`mesh.py`). `micro_batches`: a rank's part of a step is computed in so many pieces
    (None: one, or two a stage of a pipe). `clip`: the gradient's greatest length. `precision` bf16: parameters stay float32.
    `recompute` forgets what blocks computed and computes it again; `verify` compares the network that was split with the whole
    one."""

    recipe: str = "image-classifier"
    epochs: int = Field(default=30, ge=1, le=100_000)
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=0.004, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**31)
    optimiser: Literal["adamw", "sgd"] = "adamw"
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    dtype: Literal["float32", "float64"] = "float32"
    checkpoint_every: int = Field(default=1, ge=1)
    checkpoint_steps: int | None = Field(default=None, ge=1)
    checkpoint_keep: int = Field(default=1, ge=1, le=100)
    mesh: str = Field(default=meshes.DATA, description="data, auto, or ranks by axis as data=2,shard=2")
    micro_batches: int | None = Field(default=None, ge=1, le=10_000)
    clip: float | None = Field(default=None, gt=0)
    precision: Literal["float32", "bf16"] = "float32"
    recompute: bool = False
    compile: bool = False
    pipe_schedule: Literal["1f1b", "gpipe", "interleaved"] = "1f1b"
    verify: bool = True
    image_classifier: ImageClassifier = ImageClassifier()
    module: Module | None = None
    tabular: Tabular = Tabular()
    causal_lm: CausalLm = CausalLm()
    transformers: Transformers = Transformers()
    lora: Lora | None = None

    @field_validator("recipe")
    @classmethod
    def _recipe_is_known(cls, recipe: str) -> str:
        RECIPES.path(recipe)  # raises `NotFound`, naming the nearest
        return recipe

    @field_validator("mesh")
    @classmethod
    def _mesh_is_one(cls, text: str) -> str:
        meshes.check(text)  # raises `Invalid`
        return text

    def check_ranks(self, ranks: int) -> None:
        meshes.check(self.mesh, ranks)

    @model_validator(mode="after")
    def _recipe_has_its_part(self) -> TrainConfig:
        if self.recipe == "module" and self.module is None:
            raise ValueError("recipe 'module' needs the part 'module': {name, inputs, …}")
        tensors = self.recipe == "module" and self.module is not None and self.module.transform == "tensor"
        if self.dtype == "float64" and not (tensors or self.recipe == "causal-lm"):
            raise ValueError("dtype float64 needs the recipe 'module' with transform 'tensor', or 'causal-lm'")
        if self.lora is not None and self.recipe not in FINETUNING:
            raise ValueError(f"lora changes a base: recipe {' or '.join(map(repr, FINETUNING))}; there is '{self.recipe}'")
        if self.dtype == "float64" and self.precision == "bf16":
            raise ValueError("precision bf16 computes in half of float32; it does not go with dtype float64")
        return self
