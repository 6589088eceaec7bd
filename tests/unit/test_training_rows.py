from pathlib import Path

import numpy as np
import pytest

from modelyard.data.config import ImportDatasetConfig
from modelyard.data.datasets import Dataset
from modelyard.data.importing import run as import_dataset
from modelyard.kinds import Cancelled, FolderContext, FolderOutputs
from modelyard.training.config import TrainConfig
from modelyard.training.recipes import Plan
from modelyard.training.recipes.image_classifier import image_classifier
from modelyard.training.rows import Rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    folder: Path = tmp_path_factory.mktemp("digits")
    outputs = FolderOutputs(folder)
    import_dataset(ImportDatasetConfig(source="sklearn:digits"), {}, outputs, FolderContext(folder))
    return Dataset.open(outputs.published["dataset"]["folder"])


@pytest.fixture
def plan(dataset) -> Plan:
    return image_classifier(TrainConfig(image_classifier={"width": 4, "blocks": 1}), dataset, None)


def alive() -> None: ...


def test_inputs_that_are_kept_are_those_that_are_made_at_every_step(dataset, plan):
    size = dataset.rows("select") * 8 * 8 * 4
    kept = Rows.read(dataset, "select", plan, alive, kept=size)
    made = Rows.read(dataset, "select", plan, alive, kept=size - 1)
    assert kept.inputs is not None
    assert made.inputs is None
    positions = np.random.default_rng(0).permutation(dataset.rows("select"))[:77]
    whole = plan.before({"image": dataset.column("select", "image")[positions]})
    for rows in (kept, made):
        inputs, target = rows.take(positions)
        assert inputs.tobytes() == whole.tobytes()
        assert (target == dataset.column("select", "label")[positions]).all()


@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_what_was_taken_may_be_changed(dataset, plan, kept):
    rows = Rows.read(dataset, "select", plan, alive, kept=kept)
    positions = np.arange(3)
    first = [array.copy() for array in rows.take(positions)]
    for array in rows.take(positions):
        array += 1
    for before, after in zip(first, rows.take(positions), strict=True):
        assert (before == after).all()


def test_making_inputs_can_be_cancelled_in_between(dataset, plan):
    left = 5

    def check() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Cancelled

    with pytest.raises(Cancelled):
        Rows.read(dataset, "train", plan, check)
