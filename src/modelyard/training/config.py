"""What a `train` job is asked for: one frozen tree. Read by `work.py` in every process, so nothing here loads torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from modelyard.kinds import Config
from modelyard.plugins import Registry

_FILE = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*"

RECIPES: Registry[Any] = Registry(
    "recipe",
    {
        "image-classifier": "modelyard.training.recipes.image_classifier:image_classifier",
        "module": "modelyard.training.recipes.module:module",
    },
)


class ImageClassifier(Config):
    """Recipe `image-classifier`: `width` channels in the first block, doubled in each further of `blocks`; training images are
    shifted by up to `shift` pixels."""

    width: int = Field(default=32, ge=1, le=1024)
    blocks: int = Field(default=2, ge=1, le=8)
    shift: int = Field(default=1, ge=0, le=64)


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


class TrainConfig(Config):
    """`batch_size` counts the rows of one step over all ranks. `lr` is the peak; `warmup` the part of all steps in which it
    rises to that. `dtype` float64 is for comparing runs. `checkpoint_every` counts epochs."""

    recipe: str = "image-classifier"
    epochs: int = Field(default=30, ge=1, le=100_000)
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=0.004, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**31)
    optimiser: Literal["adamw", "sgd"] = "adamw"
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    dtype: Literal["float32", "float64"] = "float32"
    checkpoint_every: int = Field(default=1, ge=1)
    image_classifier: ImageClassifier = ImageClassifier()
    module: Module | None = None

    @field_validator("recipe")
    @classmethod
    def _recipe_is_known(cls, recipe: str) -> str:
        RECIPES.path(recipe)  # raises `NotFound`, naming the nearest
        return recipe

    @model_validator(mode="after")
    def _recipe_has_its_part(self) -> TrainConfig:
        if self.recipe == "module" and self.module is None:
            raise ValueError("recipe 'module' needs the part 'module': {name, inputs, …}")
        if self.dtype == "float64" and (self.recipe != "module" or self.module is None or self.module.transform != "tensor"):
            raise ValueError("dtype float64 needs the recipe 'module' with transform 'tensor'")
        return self
