"""What points cost before any is trained: measured of networks that are really cut, rounded and run."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from tiny_networks import classes, mixer

from modelyard.kinds import Cancelled, FolderContext, FolderView, Input
from modelyard.optimisation.search.estimate import estimate
from modelyard.optimisation.search.point import Point, candidates, named, shape_of, usual

SPACE = usual(trains=True, labels=True, heads=True)
SHAPES = list({named(shape): shape for point in candidates(SPACE) if (shape := shape_of(Point(**point).steps()))}.values())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Input]:
    root = tmp_path_factory.mktemp("inputs")
    classes(root / "data")
    mixer(root / "model", width=64)
    return versions(root)


def versions(root: Path) -> dict[str, Input]:
    folders = {"model": root / "model", "dataset": root / "data"}
    return {role: Input(f"{role}@1", {}, FolderView(folder, role)) for role, folder in folders.items()}


def test_points_that_learn_differently_are_one_shape_and_sensitive_layers_are_not_known() -> None:
    one, other = (
        Point(heads=0.5, lesson=lesson, quantize="static-int8", qat=qat) for lesson, qat in (("distil", 0), ("finetune", 2))
    )
    assert shape_of(one.steps()) == shape_of(other.steps()) != ()
    assert shape_of(Point().steps()) == ()
    assert shape_of(Point(quantize="dynamic-int8", sensitive="auto").steps()) is None


def test_every_shape_is_measured_and_what_is_cut_or_rounded_is_smaller(inputs: dict[str, Input], tmp_path: Path) -> None:
    found = estimate(inputs, [(), *SHAPES], 0, FolderContext(tmp_path), lambda: True)
    assert found.keys() == {named(shape) for shape in [(), *SHAPES]}
    assert found["quantize:weights-int8"].size < found["fp32"].size - 0.5
    assert found["prune:heads=0.5"].size < found["prune:heads=0.25"].size < found["fp32"].size
    assert all(abs(cost) < 8 for costs in found.values() for cost in costs)
    assert not list(tmp_path.iterdir()), "nothing of it stays"


def test_what_there_is_no_time_for_is_left_out(inputs: dict[str, Input], tmp_path: Path) -> None:
    asked = itertools.count()
    found = estimate(inputs, SHAPES, 0, FolderContext(tmp_path), lambda: next(asked) < 2)
    assert list(found) == sorted(map(named, SHAPES))[:2]


def test_a_network_that_cannot_be_cut_says_so_and_the_others_are_measured(tmp_path: Path) -> None:
    classes(tmp_path / "data")
    mixer(tmp_path / "model")
    source, line = tmp_path / "model" / "model.py", "        n, pieces, _ = x.shape\n"
    source.write_text(source.read_text().replace(line, f"{line}        assert self.q.out_features == 16\n"))
    (tmp_path / "work").mkdir()
    context = FolderContext(tmp_path / "work")
    found = estimate(versions(tmp_path), SHAPES, 0, context, lambda: True)
    assert found.keys() == {name for shape in SHAPES if "prune" not in (name := named(shape))}
    assert sum("not estimated" in line for line in context.lines) == len(SHAPES) - len(found)


def test_a_search_that_is_cancelled_meanwhile_ends(inputs: dict[str, Input], tmp_path: Path) -> None:
    class Ends(FolderContext):
        def check(self) -> None:
            raise Cancelled

    with pytest.raises(Cancelled):
        estimate(inputs, SHAPES, 0, Ends(tmp_path), lambda: True)
