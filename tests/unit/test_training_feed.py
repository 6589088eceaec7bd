from pathlib import Path

import numpy as np
import pytest

from modelyard.data.config import ImportDatasetConfig
from modelyard.data.datasets import Dataset
from modelyard.data.importing import run as import_dataset
from modelyard.data.shards import LANES
from modelyard.kinds import Cancelled, FolderContext, FolderOutputs
from modelyard.training.config import TrainConfig
from modelyard.training.feed import Feed
from modelyard.training.recipes import Plan
from modelyard.training.recipes.image_classifier import image_classifier


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


@pytest.fixture
def kept_bytes(dataset) -> int:
    """What all inputs of the train split take."""
    return dataset.rows("train") * 8 * 8 * 4


def feeds(dataset, plan) -> dict[str, Feed]:
    """The three ways in which rows are held."""
    return {
        "kept": Feed.read(dataset, "train", plan, alive),
        "held": Feed.read(dataset, "train", plan, alive, kept=0),
        "streamed": Feed.read(dataset, "train", plan, alive, kept=0, held=100_000),
    }


def test_inputs_are_kept_where_they_fit(dataset, plan, kept_bytes):
    assert Feed.read(dataset, "train", plan, alive, kept=kept_bytes).inputs is not None
    assert Feed.read(dataset, "train", plan, alive, kept=kept_bytes - 1).inputs is None


def test_rows_are_the_same_however_they_are_held(dataset, plan):
    positions = np.random.default_rng(0).permutation(dataset.rows("train"))[:77]
    whole = plan.before({"image": dataset.column("train", "image")[positions]})
    for feed in feeds(dataset, plan).values():
        inputs, target = feed.take(positions)
        assert inputs.tobytes() == whole.tobytes()
        assert (target == dataset.column("train", "label")[positions]).all()


def test_what_fits_in_memory_comes_in_one_order_kept_or_not(dataset, plan):
    ways = feeds(dataset, plan)
    assert ways["kept"].order(1, 2).take(0, 50).tolist() == ways["held"].order(1, 2).take(0, 50).tolist()
    assert (ways["kept"].order(1, 2).lanes, ways["streamed"].order(1, 2).lanes) == (1, LANES)


@pytest.mark.parametrize("way", ["kept", "held", "streamed"])
def test_each_row_once_an_epoch_and_the_same_batches_for_every_gang(dataset, plan, way):
    feed = feeds(dataset, plan)[way]
    alone = list(feed.batches(seed=3, epoch=1, world=1, rank=0, batch=64))
    assert [batch.step for batch in alone] == list(range(feed.steps(64)))
    assert sorted(np.concatenate([batch.positions for batch in alone])) == list(range(feed.rows))
    gang = [list(feed.batches(3, 1, 3, rank, 64, first=4)) for rank in range(3)]
    for batch, *shares in zip(alone[4:], *gang, strict=True):
        assert np.concatenate([part.inputs for part in shares]).tobytes() == batch.inputs.tobytes()
        assert np.concatenate([part.target for part in shares]).tolist() == batch.target.tolist()
        assert {(part.step, part.rows) for part in shares} == {(batch.step, len(batch.target))}


@pytest.mark.parametrize("more", [{}, {"kept": 0}, {"kept": 0, "held": 100_000}])
def test_some_rows_are_read_as_if_there_were_no_others(dataset, plan, more):
    some = np.flatnonzero(np.arange(dataset.rows("train")) % 7)
    batches = list(Feed.read(dataset, "train", plan, alive, among=some, **more).batches(3, 1, 1, 0, 64))
    read = np.concatenate([batch.positions for batch in batches])
    assert sorted(read) == list(range(len(some)))
    wanted = dataset.column("train", "label")[some[read]]
    assert np.concatenate([batch.target for batch in batches]).tolist() == wanted.tolist()


@pytest.mark.parametrize("way", ["kept", "held", "streamed"])
def test_what_was_taken_may_be_changed(dataset, plan, way):
    feed = feeds(dataset, plan)[way]
    positions = np.arange(3)
    first = [array.copy() for array in feed.take(positions)]
    for array in feed.take(positions):
        array += 1
    for before, after in zip(first, feed.take(positions), strict=True):
        assert (before == after).all()


@pytest.mark.parametrize("way", ["kept", "held"])
def test_it_can_be_cancelled_in_between(dataset, plan, way):
    left = 5

    def check() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Cancelled

    def use() -> None:
        feed = Feed.read(dataset, "train", plan, check, kept=(1 << 30) if way == "kept" else 0)
        list(feed.batches(0, 0, 1, 0, 32))

    with pytest.raises(Cancelled):
        use()


def test_an_error_made_ahead_is_raised_where_its_batch_is_asked_for(dataset, plan):
    feed = feeds(dataset, plan)["held"]
    batches = feed.batches(0, 0, 1, 0, 32)
    assert len(next(batches).target) <= 32
    object.__setattr__(plan, "before", None)
    with pytest.raises((AssertionError, TypeError)):
        list(batches)
