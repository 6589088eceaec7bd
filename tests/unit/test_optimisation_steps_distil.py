from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tiny_datasets import images, table
from tiny_models import simple
from tiny_networks import learning, subject
from torch import nn

from modelyard.data.datasets import Feature
from modelyard.engines.base import ModelCard, ModuleCard, TensorCard
from modelyard.engines.torch import build_module, load_module
from modelyard.errors import Invalid
from modelyard.kinds import FolderContext
from modelyard.optimisation.examples import Source
from modelyard.optimisation.steps.config import Distil
from modelyard.optimisation.steps.distil import anew, build_student, distil
from modelyard.optimisation.steps.learn import Learning


def belief(network: nn.Module, teacher: nn.Module, rows: torch.Tensor) -> float:
    """How far a network's probabilities are from the teacher's."""
    with torch.no_grad():
        mine, theirs = (torch.softmax(part.eval()(rows), dim=1) for part in (network, teacher))
    return float((mine - theirs).abs().mean())


@pytest.mark.parametrize("step", [Distil(epochs=4, alpha=1), Distil(epochs=4, alpha=0.5, features=1.0)])
def test_a_student_comes_to_believe_what_its_teacher_does(tmp_path: Path, step: Distil) -> None:
    found = subject(tmp_path)
    teaching = learning(found, tmp_path)
    teacher = load_module(found.folder, found.card)  # has learned nothing: what it says is not what the labels say
    assert found.card.module is not None
    student, control = (build_student(found.folder, found.card.module, found.source, {"width": 8}, 5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), control.parameters(), strict=True))
    seen: list[nn.Module] = []
    teaching.watch = lambda network: seen.append(copy.deepcopy(network))  # as a job does after each epoch
    lesson = distil(copy.deepcopy(teacher), student, control, step, teaching)
    rows = teaching.some(100)[0]
    assert belief(lesson.distilled, teacher, rows) < 0.6 * belief(lesson.control, teacher, rows)
    assert [len(teaching.curves[name]) for name in ("distil", "control")] == [4, 4]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in lesson.distilled.modules())
    assert len(seen) == 4
    assert all(torch.equal(a, b) for a, b in zip(seen[-1].parameters(), lesson.distilled.parameters(), strict=True))
    again = build_student(found.folder, found.card.module, found.source, {"width": 8}, 5)
    distil(copy.deepcopy(teacher), again, copy.deepcopy(again), step, learning(found, tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), lesson.distilled.parameters(), strict=True))


def test_the_control_learns_as_long_as_the_student_has_in_all(tmp_path: Path) -> None:
    found = subject(tmp_path)
    teaching, teacher = learning(found, tmp_path), load_module(found.folder, found.card)
    student = load_module(found.folder, found.card)
    distil(teacher, student, anew(student, 0), Distil(epochs=1), teaching, spent=2)
    assert [len(teaching.curves[name]) for name in ("distil", "control")] == [1, 3]


def test_anew_draws_every_weight_again_by_the_seed(tmp_path: Path) -> None:
    found = subject(tmp_path)
    network = load_module(found.folder, found.card)
    state = torch.random.get_rng_state()
    one, same, other = anew(network, 1), anew(network, 1), anew(network, 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    for (name, was), a, b, c in zip(
        network.named_parameters(), one.parameters(), same.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        assert not torch.equal(a, was), name
        assert not torch.equal(a, c), name
    norm = anew(nn.BatchNorm1d(3), 0)
    assert norm.weight.tolist() == [1, 1, 1]


def test_a_student_needs_the_teachers_labels(tmp_path: Path) -> None:
    found = subject(tmp_path)
    assert found.card.module is not None
    teacher = load_module(found.folder, found.card)
    module = found.card.module.changed(arguments={"classes": 3})
    student = build_student(found.folder, module, found.source, {"classes": 5}, 0)
    with pytest.raises(Invalid, match=r"The student answers \[5\] labels, the teacher \[3\]; they need the same ones"):
        distil(teacher, student, student, Distil(), learning(found, tmp_path))


def test_arguments_that_the_class_does_not_have_are_named(tmp_path: Path) -> None:
    found = subject(tmp_path)
    assert found.card.module is not None
    with pytest.raises(Invalid, match="Mixer was not built with depth; its arguments are width"):
        build_student(found.folder, found.card.module, found.source, {"depth": 1}, 0)


def test_numbers_are_not_distilled(tmp_path: Path) -> None:
    card = simple(tmp_path / "version")
    data = table(tmp_path / "data", Feature(type="float"), lambda x: x[:, 0].tolist())
    source = Source(tmp_path / "version", card, data)
    (tmp_path / "work").mkdir()
    teaching = Learning.of(tmp_path / "version", card, source, FolderContext(tmp_path / "work"), seed=0, total=1)
    network = load_module(tmp_path / "version", card)
    with pytest.raises(Invalid, match="distil teaches classifiers; this dataset's target is a number"):
        distil(network, network, network, Distil(), teaching)


def pictures(root: Path, **changes: object) -> Source:
    image = {"name": "image", "height": 4, "width": 4, "channels": 1, "labels": ["dark", "light"], "input": "x", "output": "y"}
    card = ModelCard(
        task="image-classification",
        engines=("torch",),
        files={},
        transform=image | changes,
        inputs=(TensorCard(name="x", datatype="FP32", shape=(-1, 1, 4, 4)),),
        outputs=(TensorCard(name="y", datatype="FP32", shape=(-1, 2)),),
    )
    return Source(root, card, images(root / "data"))


def test_a_recipe_gives_a_student_where_it_takes_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = {"rows": 40, "width": {"max": 4}, "height": {"max": 4}, "modes": ["L"], "mean": 0.5, "std": 0.25}
    for mean, fits in ((0.5, True), (0.1, False)):
        root = tmp_path / str(mean)
        root.mkdir()
        source = pictures(root, mean=[mean], std=[0.25])
        for feature in source.dataset.features.values():
            feature.statistics["train"] = statistics
        student = {"recipe": "image-classifier", "image_classifier": {"width": 2, "blocks": 1}}
        card = ModuleCard(file="model.py", name="Anything")
        if fits:
            made = build_student(root, card, source, student, 0)
            assert made(torch.zeros(3, 1, 4, 4)).shape == (3, 2)
        else:
            with pytest.raises(Invalid, match="takes other inputs of the same rows"):
                build_student(root, card, source, student, 0)
    with pytest.raises(Invalid, match=r"student: 'image_classifier\.wide' is not an option of a recipe"):
        build_student(root, card, source, {"recipe": "image-classifier", "image_classifier": {"wide": 2}}, 0)


def test_a_teacher_without_a_linear_layer_has_no_features(tmp_path: Path) -> None:
    found = subject(tmp_path)

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, columns: torch.Tensor) -> torch.Tensor:
            return columns[:, :3] * self.scale

    assert found.card.module is not None
    student = build_module(found.folder, found.card.module)
    with pytest.raises(Invalid, match="Sums has no linear layer whose input could be compared"):
        distil(Sums(), student, student, Distil(features=1.0), learning(found, tmp_path))
