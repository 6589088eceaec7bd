"""What every transform keeps to, over every registered one: it can be rebuilt from its own JSON, works on whole batches in
order, changes nothing it was given, and its tensors are those its signature states."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from modelyard.data.transforms import TRANSFORMS, build
from modelyard.errors import Invalid
from modelyard.tensors import Signature, TensorSpec, datatype_of

rng = np.random.default_rng(0)


def png(seed: int, size=(9, 7), mode="L") -> bytes:
    draw = np.random.default_rng(seed)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    file = io.BytesIO()
    Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def objects(values) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


ENGINE = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("output", "FP32", (-1, 1)),))
PIXELS = Signature((TensorSpec("pixels", "FP32", (-1, 1, 8, 8)),), (TensorSpec("logits", "FP32", (-1, 2)),))
NUMBERS = [
    {"name": "age", "mean": 40.0, "std": 10.0},
    {"name": "rooms", "datatype": "INT64"},
    {"name": "town", "datatype": "BYTES", "categories": ["Bern", "Zug"]},
]

TOWNS = objects([b"Zug", b"Bern", "Zug"])

# config, engine signature, public inputs of three rows, engine outputs of three rows
CASES = {
    "image": (
        {"name": "image", "height": 8, "width": 8, "channels": 1, "mean": [0.3], "std": [0.4], "labels": ["cat", "dog"]},
        PIXELS,
        {"image": objects([png(1), base64.b64encode(png(2)), b"data:image/png;base64," + base64.b64encode(png(3))])},
        {"logits": np.array([[1, 2], [3, -1], [0, 1000]], np.float32)},
    ),
    "columns": (
        {"name": "columns", "columns": NUMBERS},
        ENGINE,
        {"age": np.array([30, 50, np.nan], np.float32), "rooms": np.array([1, 2, 3]), "town": TOWNS},
        {"output": np.array([[1], [2], [3]], np.float32)},
    ),
    "columns with labels": (
        {"name": "columns", "columns": NUMBERS, "labels": ["no", "yes"], "output": "logits"},
        PIXELS,
        {"age": np.array([30, 50, 40], np.float32), "rooms": np.array([1, 2, 3]), "town": TOWNS},
        {"logits": np.array([[1, 2], [3, -1], [0, 1]], np.float32)},
    ),
    "columns that may miss values": (
        {
            "name": "columns",
            "columns": [{**NUMBERS[0], "indicator": True}, {**NUMBERS[2], "others": True}],
            "mean": 9,
            "std": 2,
        },
        ENGINE,
        {"age": np.array([30, 50, np.nan], np.float32), "town": objects([b"Zug", b"", "Rom"])},
        {"output": np.array([[1], [2], [3]], np.float32)},
    ),
    "tensor": (
        {"name": "tensor"},
        ENGINE,
        {"x": rng.normal(size=(3, 4)).astype(np.float32)},
        {"output": np.ones((3, 1), np.float32)},
    ),
}


def test_every_transform_is_here():
    assert {config["name"] for config, *_ in CASES.values()} == set(TRANSFORMS.names())


@pytest.mark.parametrize("case", CASES)
class TestEveryTransform:
    def test_it_is_rebuilt_from_its_own_config(self, case):
        config, _, inputs, _ = CASES[case]
        transform = build(config)
        again = build(json.loads(json.dumps(transform.config)))
        assert again.config == transform.config
        first, second = transform.before(inputs), again.before(inputs)
        assert all(np.array_equal(first[name], second[name]) for name in first)

    def test_its_tensors_are_those_of_its_signature(self, case):
        config, engine, inputs, outputs = CASES[case]
        transform = build(config)
        signature = transform.signature(engine)
        assert [spec.name for spec in signature.inputs] == list(inputs)
        public = transform.after(outputs)
        assert [spec.name for spec in signature.outputs] == list(public)
        for spec in signature.outputs:
            array = public[spec.name]
            assert datatype_of(array) == spec.datatype
            assert len(array) == 3
            assert all(want in (-1, have) for want, have in zip(spec.shape or array.shape, array.shape, strict=True))

    def test_rows_are_independent_and_in_order(self, case):
        config, _, inputs, outputs = CASES[case]
        transform = build(config)
        (whole,) = transform.before(inputs).values()
        for row in range(3):
            (alone,) = transform.before({name: array[row : row + 1] for name, array in inputs.items()}).values()
            assert np.array_equal(alone, whole[row : row + 1])
        answers = transform.after(outputs)
        for row in range(3):
            alone = transform.after({name: array[row : row + 1] for name, array in outputs.items()})
            assert all(np.array_equal(alone[name], answers[name][row : row + 1]) for name in answers)

    def test_it_changes_nothing_it_was_given(self, case):
        config, _, inputs, outputs = CASES[case]
        given = {name: array.copy() for name, array in {**inputs, **outputs}.items()}
        transform = build(config)
        (engine,) = transform.before(inputs).values()
        engine += 1 if case != "tensor" else 0
        transform.after(outputs)
        for name, array in {**inputs, **outputs}.items():
            assert all(a is b or a == b or (a != a and b != b) for a, b in zip(array.flat, given[name].flat, strict=True))

    def test_the_engine_gets_fp32(self, case):
        config, _, inputs, _ = CASES[case]
        assert all(array.dtype == np.float32 for array in build(config).before(inputs).values())

    def test_a_missing_tensor_is_named(self, case):
        transform = build(CASES[case][0])
        if case == "tensor":  # the identity has no inputs of its own
            assert list(transform.before({"other": np.zeros(1)})) == ["other"]
            return
        with pytest.raises(Invalid, match=r"Tensor '\w+' is missing; given: 'other'"):
            transform.before({"other": np.zeros(1)})

    def test_unknown_options_are_refused(self, case):
        with pytest.raises(Invalid, match="colour"):
            build({**CASES[case][0], "colour": "red"})
