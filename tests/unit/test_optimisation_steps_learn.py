from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_datasets import COLUMNS, images, table
from tiny_models import simple
from tiny_networks import classes, learning, subject
from torch import nn

from modelyard.data.datasets import Dataset, Feature
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.torch import TorchEngine, load_module
from modelyard.errors import Invalid
from modelyard.kinds import FolderContext
from modelyard.optimisation.examples import Source
from modelyard.optimisation.steps.learn import Learning, trained_as

IMAGE = {"name": "image", "height": 4, "width": 4, "channels": 1, "labels": ["dark", "light"], "input": "x", "output": "y"}
PICTURES = ModelCard(
    task="image-classification",
    engines=("torch",),
    files={},
    transform=IMAGE,
    inputs=(TensorCard(name="x", datatype="FP32", shape=(-1, 1, 4, 4)),),
    outputs=(TensorCard(name="y", datatype="FP32", shape=(-1, 2)),),
)


def test_it_learns_and_the_same_seed_learns_the_same(tmp_path: Path) -> None:
    found = subject(tmp_path)
    weights, accuracies = [], []
    for seed in (1, 1, 2):
        teaching, network = learning(found, tmp_path, seed=seed, total=5), load_module(found.folder, found.card)
        teaching.fit(network, "finetune", 5, 0.01)
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
        accuracies.append([figures["accuracy"] for figures in teaching.curves["finetune"]])
        assert not network.training
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert accuracies[0][0] < 0.75 < accuracies[0][-1]


def test_rows_that_judge_are_not_trained_on(tmp_path: Path) -> None:
    teaching = learning(subject(tmp_path, classes(tmp_path / "data", shared=12)), tmp_path)
    data = Dataset.open(tmp_path / "data")
    rows = np.stack([data.column("train", column) for column in COLUMNS], axis=1).astype(np.float32)
    trained = np.concatenate([batch.inputs for batch in teaching.feed.batches(0, 0, 1, 0, 24)])
    assert sorted(trained.tolist()) == sorted(rows[12:-12].tolist())
    assert teaching.context.lines == ["24 rows of the train split are in select or report as well and were left out."]
    (tmp_path / "many").mkdir()
    with pytest.raises(Invalid, match="26 of 240 rows of the split 'train' are in select or report as well"):
        learning(subject(tmp_path / "many", classes(tmp_path / "many" / "data", shared=13)), tmp_path)


def test_each_epoch_is_told(tmp_path: Path) -> None:
    found = subject(tmp_path)
    teaching = learning(found, tmp_path)
    teaching.fit(load_module(found.folder, found.card), "finetune", 2, 0.01)
    lines = teaching.context.lines
    assert [line.partition(",")[0] for line in lines] == ["finetune: epoch 1 of 2", "finetune: epoch 2 of 2"]
    assert teaching.done == 2


def test_who_watches_changes_nothing_of_what_is_learned(tmp_path: Path) -> None:
    found, weights, seen = subject(tmp_path), [], []

    def see(network: nn.Module) -> None:
        seen.append(found.source.predict(TorchEngine.of(network, found.card), found.select.inputs))

    for watch in (None, see):
        teaching, network = learning(found, tmp_path), load_module(found.folder, found.card)
        teaching.watch = watch
        teaching.fit(network, "finetune", 3, 0.01)
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(*weights)
    assert len(seen) == 3
    teaching.fit(network, "control", 1, 0.01, watched=False)
    assert len(seen) == 3


def test_labels_are_learned_by_their_names(tmp_path: Path) -> None:
    """A model that orders its labels otherwise than the dataset is taught its own order."""
    found = subject(tmp_path, labels=("high", "low", "middle"))
    teaching = learning(found, tmp_path)
    assert teaching.wanted(torch.tensor([0, 1, 2])).tolist() == [1, 2, 0]
    network = load_module(found.folder, found.card)
    teaching.fit(network, "finetune", 4, 0.01)
    source = found.source
    told = source.predict(TorchEngine.of(network, found.card), found.select.inputs)
    assert np.mean(told == found.select.wanted) > 0.75


def test_labels_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    found = subject(tmp_path, labels=("low", "middle", "top"))
    with pytest.raises(Invalid, match="The dataset has the labels 'high', which the model does not have"):
        learning(found, tmp_path)


def test_numbers_are_learned_in_the_models_own_unit(tmp_path: Path) -> None:
    card = simple(tmp_path / "version")
    columns = [{"name": f"c{i}"} for i in range(10)]
    transform = {"name": "columns", "columns": columns, "mean": 50.0, "std": 5.0, "input": "x", "output": "output"}
    card = card.changed(transform=transform)
    data = table(tmp_path / "data", Feature(type="float"), lambda x: (50 + 5 * x[:, 0]).tolist())
    source = Source(tmp_path / "version", card, data)
    (tmp_path / "work").mkdir()
    teaching = Learning.of(tmp_path / "version", card, source, FolderContext(tmp_path / "work"), seed=0, total=1)
    assert not teaching.labelled
    assert teaching.wanted(torch.tensor([55.0, 50.0])).tolist() == [1, 0]
    network = load_module(tmp_path / "version", card)
    teaching.fit(network, "finetune", 60, 0.02)
    losses = [figures["loss"] for figures in teaching.curves["finetune"]]
    assert losses[-1] < 0.2 * losses[0]
    examples = source.examples("select")
    assert np.corrcoef(source.predict(TorchEngine.of(network, card), examples.inputs), examples.wanted)[0, 1] > 0.7


def test_images_are_shifted_where_their_training_did_so(tmp_path: Path) -> None:
    data = images(tmp_path / "data")
    for config, moves in (
        ({"recipe": "image-classifier", "image_classifier": {"shift": 1}}, True),
        ({"recipe": "image-classifier", "image_classifier": {"shift": 0, "flip": True}}, True),
        ({"recipe": "image-classifier", "image_classifier": {"shift": 0}}, False),
        ({"recipe": "someone-elses", "epochs": 3}, False),
        (None, False),
    ):
        (tmp_path / "training.json").unlink(missing_ok=True)
        if config:
            (tmp_path / "training.json").write_text(json.dumps({"config": config}))
        source = Source(tmp_path, PICTURES, data)
        made = Learning.of(tmp_path, PICTURES, source, FolderContext(tmp_path), seed=0, total=1)
        assert (made.augment is not None) == moves


def test_what_its_training_said_is_taken_again(tmp_path: Path) -> None:
    config = {"recipe": "tabular", "batch_size": 7, "optimiser": "sgd", "momentum": 0.9, "epochs": 99, "mesh": "data=2"}
    (tmp_path / "training.json").write_text(json.dumps({"config": config}))
    found = trained_as(tmp_path)
    assert (found.batch_size, found.optimiser, found.momentum, found.mesh) == (7, "sgd", 0.9, "data")


def test_a_loss_that_is_no_number_ends_it(tmp_path: Path) -> None:
    found = subject(tmp_path)
    network = load_module(found.folder, found.card)
    nn.init.constant_(network.head.weight, float("inf"))
    with pytest.raises(Invalid, match=r"finetune: the loss became nan in epoch 1; try a smaller lr than 0\.01"):
        learning(found, tmp_path).fit(network, "finetune", 2, 0.01)


def test_a_network_of_several_inputs_is_not_trained(tmp_path: Path) -> None:
    found = subject(tmp_path, classes(tmp_path / "data"))
    two = found.card.changed(inputs=(*found.card.inputs, TensorCard(name="more", datatype="INT64")))
    with pytest.raises(Invalid, match="one tensor of numbers; this one takes columns FP32, more INT64"):
        Learning.of(found.folder, two, found.source, FolderContext(tmp_path), seed=0, total=1)


class Viewed(nn.Module):
    """Takes pictures, and lays them out by a `view`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
        self.head = nn.Linear(64, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(pixels).view(len(pixels), -1))


class Reshaped(Viewed):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(pixels).flatten(1))


@pytest.mark.parametrize(("network", "by_pixel"), [(Viewed, False), (Reshaped, True)])
def test_pictures_lie_by_pixel_where_the_network_bears_it(tmp_path: Path, network: type[nn.Module], by_pixel: bool) -> None:
    source = Source(tmp_path, PICTURES, images(tmp_path / "data"))
    teaching, made = Learning.of(tmp_path, PICTURES, source, FolderContext(tmp_path), seed=0, total=1), network()
    teaching.fit(made, "finetune", 2, 0.01)
    assert teaching.by_pixel == by_pixel
    assert made.layer[1].weight.is_contiguous()


class Pair(nn.Module):
    def __init__(self, width: int, *, frozen: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(10, width).requires_grad_(not frozen)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Tupled(Pair):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x), x  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (Tupled(3), "forward of Tupled returned tuple; steps that train take one tensor"),
        (Pair(2), r"forward of Pair returned shape \[2, 2\]; \[2, 3\], one logit a class, was expected"),
        (Pair(3, frozen=True), "No parameter of Pair learns"),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused(tmp_path: Path, network: nn.Module, said: str) -> None:
    teaching = learning(subject(tmp_path), tmp_path)
    with pytest.raises(Invalid, match=said):
        teaching.check(network)


def test_rows_are_drawn_from_all_of_the_split_by_the_seed(tmp_path: Path) -> None:
    found = subject(tmp_path)
    teaching = learning(found, tmp_path, seed=1)
    whole = torch.cat([wanted for _, wanted in teaching.drawn(10_000)])
    assert len(whole) == teaching.feed.rows
    batches = [len(wanted) for _, wanted in teaching.drawn(50)]
    assert batches == [24, 24, 2]
    first, again, other = (learning(found, tmp_path, seed=seed).some(40)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    plain = torch.from_numpy(teaching.feed.take(np.arange(40))[0])
    assert not torch.equal(first, plain)
