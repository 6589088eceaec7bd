"""The best batch: small where more rows gain nothing, never beyond the budget, and of inputs that the signature allows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_models import save

from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.onnx import OnnxEngine
from modelyard.serving.batching import SPARE
from modelyard.serving.best import BUDGET, DEFAULT, Best, choose, extended, find, measure, synthetic
from modelyard.tensors import Signature, TensorSpec

OUT = (TensorSpec("y", "FP32", (-1, 1)),)


class Timed:
    """A model of a fixed time a batch and a row, and the clock it passes on."""

    def __init__(self, fixed, each, first=0.0):
        self.fixed, self.each, self.first = fixed, each, first
        self.now, self.sizes = 0.0, []

    def __call__(self, batch):
        rows = len(batch["x"])
        self.sizes.append(rows)
        self.now += self.fixed + self.each * rows + (self.first if len(self.sizes) == 1 else 0.0)
        return {"y": batch["x"]}

    def times(self):
        return measure(self, lambda rows: {"x": np.ones((rows, 2), np.float32)}, clock=lambda: self.now)


@given(st.floats(0, 0.02), st.floats(1e-6, 0.3), st.floats(0, 0.2))
def test_the_budget_holds_for_whatever_a_model_takes(fixed, each, first):
    model = Timed(fixed, each, first)
    times = model.times()
    assert [rows for rows, _ in times] == [2**n for n in range(len(times))]
    assert model.now <= max(BUDGET, model.first + 2 * (fixed + each)) + 1e-9
    assert 1 <= choose(times) <= 256


@pytest.mark.parametrize(
    ("fixed", "each", "rows"),
    [(0.0, 0.001, 1), (0.0001, 0.00001, 128), (0.002, 0.0005, 64), (1e-6, 1e-9, 256), (0.0005, 0.001, 8), (0.0, 0.1, 4)],
)
def test_the_least_rows_that_are_about_as_fast_as_any(fixed, each, rows):
    times = Timed(fixed, each).times()
    chosen = choose(times)
    assert chosen == rows or fixed / chosen <= 0.08 * each, times


@pytest.mark.parametrize(("fixed", "each", "rows"), [(0.002, 0.008, 6), (0.002, 0.004, 12), (0.0, 0.008, 1)])
def test_where_calls_differ_in_length_a_batch_is_so_large_that_the_spare_is_what_it_costs(fixed, each, rows):
    assert rows == round(SPARE * fixed / each) or not fixed
    assert extended(Timed(fixed, each).times()) == rows


def test_a_batch_of_twice_what_was_tried_is_the_largest():
    times = Timed(0.02, 1e-4).times()
    assert extended(times) == 2 * times[-1][0] < SPARE * 0.02 / 1e-4


def test_times_that_tell_nothing_of_a_batchs_cost_leave_the_least_rows():
    assert extended([(1, 0.004), (2, 0.003), (4, 0.004)]) == choose([(1, 0.004), (2, 0.003), (4, 0.004)])
    assert extended([(1, 0.3)]) == choose([(1, 0.3)])
    assert extended([]) == DEFAULT


def test_a_slow_first_forward_is_no_measure():
    assert choose(Timed(0.0, 0.002, first=0.02).times()) == 1
    assert dict(Timed(0.0, 0.001, first=0.02).times())[1] == pytest.approx(0.001)


def test_larger_batches_that_are_slower_end_the_search():
    model = Timed(0.0, 1e-5)
    times = measure(
        lambda batch: setattr(model, "now", model.now + 1e-5 * len(batch["x"]) ** 1.5),
        lambda rows: {"x": np.ones((rows, 1))},
        clock=lambda: model.now,
    )
    assert [rows for rows, _ in times] == [1, 2, 4, 8, 16, 32]
    assert choose(times) == 4


def test_what_was_not_measured_has_a_size():
    assert choose([]) == DEFAULT


def test_inputs_are_made_from_the_signature():
    signature = Signature(
        (
            TensorSpec("input_ids", "INT64", (-1, -1)),
            TensorSpec("attention_mask", "INT64", (-1, -1)),
            TensorSpec("token_type_ids", "INT64", (-1, -1)),
            TensorSpec("pixels", "FP32", (-1, 3, 8, -1)),
            TensorSpec("on", "BOOL", (-1,)),
        ),
        OUT,
    )
    made = synthetic(signature, {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0}, 5)
    assert {name: (a.dtype.name, a.shape) for name, a in made.items()} == {
        "input_ids": ("int64", (5, 64)),
        "attention_mask": ("int64", (5, 64)),
        "token_type_ids": ("int64", (5, 64)),
        "pixels": ("float32", (5, 3, 8, 16)),
        "on": ("bool", (5,)),
    }
    assert {name: {float(value) for value in array.ravel()} for name, array in made.items()} == {
        "input_ids": {1},
        "attention_mask": {1},
        "token_type_ids": {0},
        "pixels": {1},
        "on": {1},
    }


def test_a_model_that_knows_one_type_of_tokens_is_measured(tmp_path):
    """RoBERTa's table of types has one row, so that 1 is out of its bounds."""
    table = numpy_helper.from_array(np.ones((1, 3), np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "token_type_ids"], ["y"])],
        "types",
        [helper.make_tensor_value_info("token_type_ids", TensorProto.INT64, ["n", "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "length", 3])],
        [table],
    )
    save(graph, tmp_path / "m.onnx")
    taken, given = TensorCard(name="token_type_ids", datatype="INT64", shape=(-1, -1)), TensorCard(name="y", datatype="FP32")
    card = ModelCard(task="feature-extraction", engines=("onnx",), files={"onnx": "m.onnx"}, inputs=(taken,), outputs=(given,))
    engine = OnnxEngine(tmp_path, card)
    found = find(engine.forward, engine.signature, {"token_type_ids": 0})
    assert found is not None
    assert len(found.times) > 1


@pytest.mark.parametrize(
    "spec", [TensorSpec("x", "BYTES", (-1,)), TensorSpec("x", "FP32", None), TensorSpec("x", "BF16", (-1,))]
)
def test_a_signature_that_does_not_tell(spec):
    assert find(lambda batch: {}, Signature((spec,), OUT), {}) is None


def test_large_inputs_are_not_made():
    sizes = []
    signature = Signature((TensorSpec("x", "FP32", (-1, 3, 1024, 1024)),), OUT)
    find(lambda batch: sizes.append(len(batch["x"])), signature, {})
    assert max(sizes) <= 4


def test_it_is_told_with_the_time_a_row():
    found = Best(4, ((1, 0.001), (2, 0.0012), (4, 0.002)), {})
    assert found.to_json() == {"rows": 4, "us_a_row": 500.0}
