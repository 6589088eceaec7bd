"""What every transform keeps to, over every registered one: it can be rebuilt from its own JSON, works on whole batches in
order, changes nothing it was given, and its tensors are those its signature states."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from modelyard.data.transforms import TRANSFORMS, Transform
from modelyard.data.transforms import build as make
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
MATRIX = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("logits", "FP32", (-1, 2)),))
TOKENS = Signature(
    tuple(TensorSpec(name, "INT64", (-1, -1)) for name in ("input_ids", "attention_mask", "token_type_ids")),
    (TensorSpec("sentence_embedding", "FP32", (-1, 4)),),
)
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
        MATRIX,
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
    "text": (
        {"name": "text", "length": 16, "pad": 0, "inputs": ["input_ids", "token_type_ids", "attention_mask"]},
        TOKENS,
        {"text": objects([b"the cat of rome is red.", "a fish", b"the dog"])},
        {"sentence_embedding": rng.normal(size=(3, 4)).astype(np.float32)},
    ),
    "tensor": (
        {"name": "tensor"},
        ENGINE,
        {"x": rng.normal(size=(3, 4)).astype(np.float32)},
        {"output": np.ones((3, 1), np.float32)},
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version's, as far as transforms look into it."""
    made = tmp_path_factory.mktemp("version")
    words = Tokenizer(WordLevel({"?": 1, "the": 2, "cat": 3, "dog": 4}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    words.save(str(made / "tokenizer.json"))
    return made


@pytest.fixture
def build(folder: Path):
    return lambda config: make(config, folder)


def aligned(transform: Transform, whole: dict[str, np.ndarray], alone: dict[str, np.ndarray], row: int) -> bool:
    """Whether a row of a call is what it is by itself, filled up where it may be."""
    fill = getattr(transform, "ragged", {})
    for name, array in alone.items():
        wanted = whole[name][row : row + 1]
        if name in fill:
            wide = np.full_like(wanted, fill[name])
            wide[:, : array.shape[1]] = array
            array = wide
        if not np.array_equal(array, wanted):
            return False
    return whole.keys() == alone.keys()


def test_every_transform_is_here():
    assert {config["name"] for config, *_ in CASES.values()} == set(TRANSFORMS.names())


@pytest.mark.parametrize("case", CASES)
class TestEveryTransform:
    def test_it_is_rebuilt_from_its_own_config(self, build, case):
        config, _, inputs, _ = CASES[case]
        transform = build(config)
        again = build(json.loads(json.dumps(transform.config)))
        assert again.config == transform.config
        first, second = transform.before(inputs), again.before(inputs)
        assert all(np.array_equal(first[name], second[name]) for name in first)

    def test_its_tensors_are_those_of_its_signature(self, build, case):
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

    def test_rows_are_independent_and_in_order(self, build, case):
        config, _, inputs, outputs = CASES[case]
        transform = build(config)
        whole = transform.before(inputs)
        for row in range(3):
            alone = transform.before({name: array[row : row + 1] for name, array in inputs.items()})
            assert aligned(transform, whole, alone, row)
        answers = transform.after(outputs)
        for row in range(3):
            alone = transform.after({name: array[row : row + 1] for name, array in outputs.items()})
            assert all(np.array_equal(alone[name], answers[name][row : row + 1]) for name in answers)

    def test_it_changes_nothing_it_was_given(self, build, case):
        config, _, inputs, outputs = CASES[case]
        given = {name: array.copy() for name, array in {**inputs, **outputs}.items()}
        transform = build(config)
        for array in transform.before(inputs).values():
            array += 1 if case != "tensor" else 0
        transform.after(outputs)
        for name, array in {**inputs, **outputs}.items():
            assert all(a is b or a == b or (a != a and b != b) for a, b in zip(array.flat, given[name].flat, strict=True))

    def test_the_engine_gets_its_own_tensors(self, build, case):
        config, engine, inputs, _ = CASES[case]
        datatype = "INT64" if case == "text" else "FP32"
        made = build(config).before(inputs)
        assert {datatype_of(array) for array in made.values()} == {datatype}
        assert case != "text" or made.keys() == {spec.name for spec in engine.inputs}

    def test_a_missing_tensor_is_named(self, build, case):
        transform = build(CASES[case][0])
        if case == "tensor":  # the identity has no inputs of its own
            assert list(transform.before({"other": np.zeros(1)})) == ["other"]
            return
        with pytest.raises(Invalid, match=r"Tensor '\w+' is missing; given: 'other'"):
            transform.before({"other": np.zeros(1)})

    def test_unknown_options_are_refused(self, build, case):
        with pytest.raises(Invalid, match="colour"):
            build({**CASES[case][0], "colour": "red"})
