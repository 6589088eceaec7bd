from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modelyard.conversion.base import WORST, check_rows, compare, count, made_up, try_out, verify
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.errors import Invalid
from modelyard.tensors import Signature, TensorSpec
from modelyard.testing import FAKE_CARD, FakeEngine


class Off(FakeEngine):
    """Answers `by` more in the row whose inputs sum to `at`."""

    by, at = 0.0, 5.0

    def forward(self, batch):
        y = super().forward(batch)["y"]
        return {"y": np.where(y == self.at, y + self.by, y).astype(np.float32)}


def off(by: float) -> FakeEngine:
    engine = Off()
    engine.by = by
    return engine


SAMPLES = {"x": np.stack([np.arange(100, dtype=np.float32), np.zeros(100, np.float32)], axis=1)}


def test_the_same_model_in_all_batch_sizes() -> None:
    candidate = FakeEngine()
    found = compare(FakeEngine(), candidate, SAMPLES)
    assert found.ok
    assert (found.max_abs, found.max_rel, found.rows) == (0, 0, 100)
    assert candidate.batches == [64, 36, 1, 2, 7]
    assert found.batches == (1, 2, 7, 36, 64)


def test_the_worst_row_is_found_and_kept(tmp_path: Path) -> None:
    found = compare(FakeEngine(), off(0.5), SAMPLES)
    assert not found.ok
    assert (found.worst, found.output) == (5, "y")
    assert found.max_abs == pytest.approx(0.5)
    assert found.max_rel == pytest.approx(0.1)
    with pytest.raises(Invalid, match=r"output 'y' differs by 0\.5 at row 5"):
        verify(FakeEngine(), off(0.5), SAMPLES, keep=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / WORST)["x"], SAMPLES["x"][5:6])


def test_tolerance_is_relative_above_one_and_absolute_below() -> None:
    assert compare(FakeEngine(), off(4e-4), SAMPLES).ok
    assert not compare(FakeEngine(), off(6e-4), SAMPLES).ok
    assert compare(FakeEngine(), off(0.5), SAMPLES, tolerance=0.1001).ok
    assert compare(FakeEngine(), off(9.0), SAMPLES, tolerance=None).ok


class Said:
    """Answers with these arrays, cut to the batch."""

    def __init__(self, **arrays) -> None:
        self._arrays, self.signature = arrays, FakeEngine().signature

    def forward(self, batch):
        return {name: array[: len(batch["x"])] for name, array in self._arrays.items()}

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("dtype", "close", "far", "bound"),
    [("float16", 8e-3, 2e-2, 1e-2), ("float32", 5e-5, 2e-4, 1e-4), ("float64", 5e-5, 2e-4, 1e-4), ("int64", 0, 1, 0.0)],
)
def test_each_datatype_has_a_tolerance_of_its_own(tmp_path: Path, dtype: str, close: float, far: float, bound: float) -> None:
    samples = {"x": np.zeros((3, 2), np.float32)}
    other = np.full((3, 1), 1 + 5e-5, np.float32)  # within its own bound, whatever the rest does
    reference = Said(y=np.ones((3, 2), dtype), z=np.ones((3, 1), np.float32))
    for off, ok in ((close, True), (far, False)):
        y = np.ones((3, 2), dtype)
        y[0, 0] += off
        found = compare(reference, Said(y=y, z=other), samples)
        assert found.ok is ok
    assert (found.output, found.worst, found.tolerance) == ("y", 0, bound)
    with pytest.raises(Invalid, match=f"allowed {bound:g}"):
        verify(reference, Said(y=y, z=other), samples, keep=tmp_path)


@pytest.mark.parametrize(
    ("largest", "error", "ok"),
    [
        (5e-5, 5e-5, False),  # all answers are zeros
        (0.2, 1e-5, True),
        (0.2, 3e-5, False),
        (1e-6, 5e-7, True),  # the rounding of numbers near 1, whose difference the answer may be
        (0.0, 5e-7, True),
        (0.0, 5e-5, False),
        (300.0, 5e-5, True),
        (300.0, 2e-4, False),
    ],
)
def test_errors_of_an_output_of_small_numbers_are_relative_to_its_largest(largest: float, error: float, ok: bool) -> None:
    samples = {"x": np.zeros((3, 2), np.float32)}
    y = np.array([[largest], [0], [0]], np.float32)
    assert compare(Said(y=y), Said(y=y - np.array([[0], [error], [0]], np.float32)), samples).ok is ok


def test_large_whole_numbers_are_compared_as_they_are() -> None:
    samples = {"x": np.zeros((3, 2), np.float32)}
    y = np.full((3, 1), 2**60)
    assert compare(Said(y=y), Said(y=y.copy()), samples).ok
    found = compare(Said(y=y), Said(y=y + 1), samples)
    assert (found.ok, found.max_abs) == (False, 1)


def test_answers_without_a_finite_number_prove_nothing() -> None:
    samples = {"x": np.zeros((3, 2), np.float32)}
    y = np.full((3, 1), np.nan, np.float32)
    with pytest.raises(Invalid, match="Output 'y' has no finite number in any of 3 rows"):
        compare(Said(y=y), Said(y=y), samples)


def test_an_output_past_its_bound_is_told_of_before_one_that_is_further_off_within_its_own() -> None:
    samples = {"x": np.zeros((3, 2), np.float32)}
    reference = Said(wide=np.zeros((3, 1), np.float16), narrow=np.ones((3, 1), np.float32))
    other = Said(wide=np.full((3, 1), 9e-3, np.float16), narrow=np.full((3, 1), 1 + 1e-3, np.float32))
    found = compare(reference, other, samples)
    assert (found.ok, found.output) == (False, "narrow")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_never_close(value: float) -> None:
    assert not compare(FakeEngine(), off(value), SAMPLES, tolerance=1e9).ok
    assert compare(off(value), off(value), SAMPLES).ok


def test_other_names_types_and_shapes_are_refused() -> None:
    def answering(**output: object) -> FakeEngine:
        return FakeEngine(card=FAKE_CARD.changed(outputs=(FAKE_CARD.outputs[0].changed(**output),)))

    for other, said in (
        ({"name": "z"}, "no output 'y'"),
        ({"datatype": "FP64"}, "float64"),
        ({"shape": (-1, 3)}, r"\[64, 3\]"),
    ):
        with pytest.raises(Invalid, match=said):
            compare(FakeEngine(), answering(**other), SAMPLES)


def test_a_fixed_batch_is_kept() -> None:
    fixed = FakeEngine(card=FAKE_CARD.changed(inputs=(TensorCard(name="x", datatype="FP32", shape=(8, 2)),)))
    assert compare(FakeEngine(), fixed, SAMPLES).batches == (8,)
    assert set(fixed.batches) == {8}
    with pytest.raises(Invalid, match="exactly 8 rows; there are 3"):
        compare(FakeEngine(), fixed, {"x": SAMPLES["x"][:3]})


def test_text_outputs_are_compared_as_they_are() -> None:
    card = ModelCard(
        task="t",
        engines=("fake",),
        files={},
        inputs=FAKE_CARD.inputs,
        outputs=(TensorCard(name="y", datatype="BYTES", shape=(-1,)),),
    )
    assert compare(FakeEngine(card=card), FakeEngine(card=card), SAMPLES).ok


def test_samples_need_equal_rows() -> None:
    assert count({"a": np.ones(3), "b": np.ones((3, 2))}) == 3
    for wrong in ({}, {"a": np.ones(0)}, {"a": np.ones(1), "b": np.ones(2)}):
        with pytest.raises(Invalid, match="equally many rows"):
            count(wrong)


def test_made_up_inputs_fit_the_signature() -> None:
    specs = (
        TensorSpec("a", "FP32", (-1, 3, -1)),
        TensorSpec("b", "INT64", (-1,)),
        TensorSpec("c", "BYTES", (-1, 2)),
        TensorSpec("d", "FP64", None),
    )
    made = made_up(Signature(specs, ()), rows=5, size=7)
    assert {name: (a.shape, a.dtype.name) for name, a in made.items()} == {
        "a": ((5, 3, 7), "float32"),
        "b": ((5,), "int64"),
        "c": ((5, 2), "object"),
        "d": ((5, 7), "float64"),
    }
    assert set(made["b"]) == {0, 1}
    assert not made_up(Signature(specs, ()), zeros=True)["b"].any()
    assert (made_up(Signature(specs, ()), positive=True)["a"] > 0).all()
    assert made_up(Signature((TensorSpec("a", "FP32", (2, 1)),), ()))["a"].shape == (2, 1)
    both = (TensorSpec("a", "FP32", (4, 1)), TensorSpec("b", "FP32", (-1, 1)))
    assert made_up(Signature(both, ()))["b"].shape == (4, 1)


def test_numbers_are_tried_until_a_model_takes_them_and_answers_with_some() -> None:
    def places(batch):
        if batch["i"].any():
            raise IndexError("of one entry")
        return {"y": batch["i"]}

    def logarithms(batch):
        with np.errstate(invalid="ignore"):
            return {"y": np.log(batch["x"]).sum(1)}

    tried = try_out(places, Signature((TensorSpec("i", "INT64", (-1, 3)),), ()), (IndexError,))
    assert tried is not None
    assert not tried[0]["i"].any()
    tried = try_out(logarithms, Signature((TensorSpec("x", "FP32", (-1, 10)),), ()), (ValueError,))
    assert tried is not None
    assert np.isfinite(tried[1]["y"]).all()
    nothing = try_out(lambda batch: {"y": batch["x"] * np.nan}, Signature((TensorSpec("x", "FP32", (-1, 2)),), ()), ())
    assert nothing is not None


def one_only(x):
    if len(x) < 3:
        raise ValueError("3 at least")
    return x


@pytest.mark.parametrize(
    ("answer", "rows", "said"),
    [
        (lambda x: np.exp(x) / np.exp(x).sum(0), -1, "follows from the rows beside it"),
        (lambda x: np.cumsum(x, 0), -1, r"row 6 of 7"),
        (lambda x: np.argsort(x, 0), -1, "follows from the rows beside it"),
        (lambda x: x @ x.T, -1, "follows from the rows beside it"),
        (lambda x: x - x.mean(0), 4, r"row 0 of 4"),
        (lambda x: x.squeeze(), -1, "follows from the rows beside it"),
        (lambda x: x[:3], -1, r"\[3, 2\] for 7 rows: its dim 0 must be the batch"),
        (one_only, -1, "on 7 rows but not on one alone: 3 at least"),
        (lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True), -1, None),
        (lambda x: x * 3, 4, None),
        (lambda x: x * 3 + np.float32(1e-6 * len(x)), -1, None),
        (lambda x: x.sum(0), 1, r"\[2\] for 1 rows"),
        (lambda x: x.mean(0, keepdims=True), 1, None),
        (lambda x: x + np.random.default_rng().standard_normal(x.shape), -1, None),  # is another at each call
    ],
)
def test_rows_that_follow_from_others_are_found(answer, rows: int, said: str | None) -> None:
    signature = Signature((TensorSpec("x", "FP32", (rows, 2)),), ())
    samples = made_up(signature)

    def forward(batch):
        return {"y": answer(batch["x"])}

    if said is None:
        check_rows(forward, signature, samples, forward(samples), (ValueError,))
        return
    with pytest.raises(Invalid, match=said):
        check_rows(forward, signature, samples, forward(samples), (ValueError,))


def test_a_model_is_tried_with_few_rows() -> None:
    ran = []

    def forward(batch):
        ran.append(len(batch["x"]))
        return {"y": batch["x"] * 2}

    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), ())
    tried = try_out(forward, signature, ())
    assert tried is not None
    check_rows(forward, signature, *tried, ())
    assert ran == [7, 1, 1]


def test_an_output_as_wide_as_the_longest_row_is_no_mixture() -> None:
    def texts(batch, more=0.0):
        length = batch["x"][:, 0]
        at = np.arange(int(length.max()))
        return {"y": np.where(at < length[:, None], at + 1 + more * length.sum(), 0).astype(np.float32)}

    signature = Signature((TensorSpec("x", "INT64", (-1, 1)),), ())
    samples = {"x": np.array([[2], [5], [3]])}
    check_rows(texts, signature, samples, texts(samples), ())
    with pytest.raises(Invalid, match="follows from the rows beside it"):
        check_rows(lambda b: texts(b, 1.0), signature, samples, texts(samples, 1.0), ())


@pytest.mark.parametrize("shape", [(3,), (3, 3)])
def test_an_input_of_a_fixed_size_beside_an_open_batch_is_no_row(shape: tuple[int, ...]) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 3)), TensorSpec("s", "FP32", shape)), ())
    samples = made_up(signature)

    def scaled(batch):
        return {"y": batch["x"] * batch["s"]}

    def mixed(batch):
        return {"y": batch["x"].sum(0) * batch["s"] + 0 * batch["x"]}

    check_rows(scaled, signature, samples, scaled(samples), ())
    with pytest.raises(Invalid, match="follows from the rows beside it"):
        check_rows(mixed, signature, samples, mixed(samples), ())


def test_open_dims_are_tried_in_several_sizes_closed_ones_must_run() -> None:
    def picky(batch):
        if batch["x"].shape[1] != 64:
            raise ValueError("64, please\nand more")
        return {"y": batch["x"]}

    tried = try_out(picky, Signature((TensorSpec("x", "FP32", (-1, -1)),), ()), (ValueError,))
    assert tried is not None
    assert tried[0]["x"].shape == (7, 64)
    with pytest.raises(Invalid, match=r"shapes it states: 64, please$"):
        try_out(picky, Signature((TensorSpec("x", "FP32", (-1, 5)),), ()), (ValueError,))

    def never(batch):
        raise ValueError

    assert try_out(never, Signature((TensorSpec("x", "FP32", (-1, -1)),), ()), (ValueError,)) is None
