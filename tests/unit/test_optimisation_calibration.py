from __future__ import annotations

from pathlib import Path

import pytest
from test_optimisation_examples import card
from tiny_datasets import images, write

from modelyard.data.datasets import Dataset, Feature
from modelyard.errors import Invalid
from modelyard.optimisation.calibration import LEAST, calibration
from modelyard.optimisation.examples import Source


def numbers(folder: Path, **splits: list[float]) -> Dataset:
    given = {"calibrate": [float(i) for i in range(20)], "select": [100.0], "report": [200.0]} | splits
    rows = {name: {"a": values, "t": [1.0] * len(values)} for name, values in given.items()}
    return write(folder, {"a": Feature(type="float"), "t": Feature(type="float")}, rows, "t")


def source(folder: Path, **splits: list[float]) -> Source:
    return Source(folder, card(1, 1), numbers(folder / "data", **splits))


def test_rows_come_from_the_calibrate_split(tmp_path: Path) -> None:
    found = calibration(source(tmp_path), 8, seed=1)
    assert found["x"].shape == (8, 1)
    assert set(found["x"][:, 0]) <= set(range(20))


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=f"'calibrate' of the dataset has 3 rows; this needs at least {LEAST}"):
        calibration(source(tmp_path, calibrate=[1.0, 2.0, 3.0]), 256, 0)


@pytest.mark.parametrize("split", ["select", "report"])
def test_rows_that_judge_as_well_are_left_out(tmp_path: Path, split: str) -> None:
    found = calibration(source(tmp_path, **{split: [300.0, 7.0, 4.0]}), 256, 0)
    assert sorted(found["x"][:, 0]) == [float(row) for row in range(20) if row not in (4, 7)]


@pytest.mark.parametrize("split", ["select", "report"])
def test_many_rows_that_judge_as_well_are_refused(tmp_path: Path, split: str) -> None:
    with pytest.raises(Invalid, match="3 of 20 rows of the split 'calibrate' are in select or report as well"):
        calibration(source(tmp_path, **{split: [300.0, 7.0, 4.0, 9.0]}), 8, 0)


def test_images_are_told_apart_by_their_files(tmp_path: Path) -> None:
    image = {"name": "image", "height": 4, "width": 4, "channels": 1, "labels": ["light", "dark"], "input": "x", "output": "y"}
    with pytest.raises(Invalid, match="30 of 30 rows of the split 'calibrate' are in select or report as well"):
        calibration(Source(tmp_path, card(None, 2, image), images(tmp_path / "data")), 8, 0)
