"""Recipe `image-classifier`: a small residual network, trained from scratch on images of one size with a light shift."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from torch.nn.functional import cross_entropy

from modelyard.data.datasets import Dataset
from modelyard.data.transforms import Transform, build
from modelyard.engines.base import ModuleCard
from modelyard.errors import Invalid
from modelyard.tensors import Array
from modelyard.training.config import TrainConfig
from modelyard.training.recipes import Augment, Plan
from modelyard.training.recipes.networks import residual
from modelyard.training.split import Split

LARGEST_SIDE = 224  # larger images are made smaller
_MIRRORED = 0.5  # of the images, with `flip`


def image_classifier(config: TrainConfig, dataset: Dataset, code: Path | None) -> Plan:
    """Raises `Invalid` where the dataset has not one image feature and labels."""
    names, labels = dataset.of_type("image"), dataset.labels
    if len(names) != 1 or labels is None or dataset.target is None:
        kinds = {name: feature.type for name, feature in dataset.features.items()}
        raise Invalid(f"Recipe 'image-classifier' needs one image feature and labels; the dataset has {kinds}.")
    transform = image_transform(dataset, names[0], labels, "pixels", "logits")
    options = config.image_classifier
    arguments = {
        "channels": transform.config["channels"],
        "classes": len(labels),
        "width": options.width,
        "blocks": options.blocks,
    }
    return Plan(
        network=residual.ResidualClassifier(**arguments),
        module=ModuleCard(file="model.py", name="ResidualClassifier", arguments=arguments),
        source=Path(residual.__file__),
        weights="model.safetensors",
        task="image-classification",
        transform=transform,
        features=(names[0],),
        before=image_input(transform, names[0]),
        input="pixels",
        output="logits",
        target=dataset.target,
        labels=labels,
        loss=cross_entropy,
        augment=moved(options.shift, flip=options.flip) if options.shift or options.flip else None,
        split=Split(blocks="features.*"),
    )


def image_transform(dataset: Dataset, feature: str, labels: tuple[str, ...], input: str, output: str) -> Transform:  # noqa: A002
    """Images at the largest size in the train split (no side above `LARGEST_SIDE`), normalised by its brightness."""
    known = dataset.features[feature].statistics["train"]
    if not known["rows"]:
        raise Invalid("The train split has no images; import more data.")
    width, height = known["width"]["max"], known["height"]["max"]
    scale = min(1.0, LARGEST_SIDE / max(width, height))
    return build(
        {
            "name": "image",
            "height": max(1, round(height * scale)),
            "width": max(1, round(width * scale)),
            "channels": 1 if set(known["modes"]) <= {"L", "1"} else 3,
            "mean": [known["mean"]],
            "std": [known["std"] or 1.0],
            "labels": labels,
            "input": input,
            "output": output,
        }
    )


def image_input(transform: Transform, feature: str) -> Callable[[Mapping[str, Array]], Array]:
    """Encoded images to the network's input: what a replica does with a call."""

    def before(columns: Mapping[str, Array]) -> Array:
        return transform.before({"image": columns[feature]})[transform.config["input"]]

    return before


def moved(most: int, *, flip: bool) -> Augment:
    """Each image moved by up to `most` pixels either way, its border repeated, and with `flip` mirrored by chance. The draw is
    the whole batch's, so that it does not depend on how many ranks share it."""

    def augment(pixels: Array, generator: np.random.Generator, first: int, rows: int) -> Array:
        height, width = pixels.shape[2:]
        moves = generator.integers(0, 2 * most + 1, size=(rows, 2))[first : first + len(pixels)]
        padded = np.pad(pixels, ((0, 0), (0, 0), (most, most), (most, most)), mode="edge")
        found = np.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, moves, strict=True)])
        if flip:
            mirrored = generator.random(rows)[first : first + len(pixels)] < _MIRRORED
            found[mirrored] = found[mirrored, :, :, ::-1]
        return found

    return augment
