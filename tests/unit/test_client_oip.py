from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from modelyard.client import oip
from modelyard.errors import Internal, Invalid
from modelyard.tensors import DATATYPES, Array


def split(headers: dict[str, str], body: bytes) -> tuple[dict[str, Any], bytes]:
    length = int(headers[oip.HEADER_LENGTH])
    return json.loads(body[:length]), body[length:]


def test_a_request_is_a_json_header_and_the_tensors_behind_it() -> None:
    header, data = split(*oip.encode({"x": np.array([[1, 2]], np.float32), "t": ["a", "bc"]}, {"t": "BYTES"}))
    assert header == {
        "inputs": [
            {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}},
            {"name": "t", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 11}},
        ],
        "parameters": {"binary_data_output": True},
    }
    assert data == np.array([1, 2], "<f4").tobytes() + b"\x01\0\0\0a\x02\0\0\0bc"


def test_lists_take_the_model_s_datatype_and_arrays_keep_their_own() -> None:
    header, _ = split(*oip.encode({"x": [[1, 2]], "y": np.array([1.0])}, {"x": "FP32", "y": "FP32"}))
    assert [tensor["datatype"] for tensor in header["inputs"]] == ["FP32", "FP64"]
    assert oip.needs_signature({"x": [1]})
    assert not oip.needs_signature({"x": np.zeros(1)})


@pytest.mark.parametrize("value", [[[1, 2], [3]], ["a", 1], [{}]])
def test_what_is_no_tensor_is_refused_by_name(value: Any) -> None:
    with pytest.raises(Invalid, match="'x'"):
        oip.encode({"x": value}, {"x": "FP32"})


def test_an_array_of_an_unknown_type_is_refused() -> None:
    with pytest.raises(Invalid, match="complex"):
        oip.encode({"x": np.zeros(1, np.complex64)}, {})
    with pytest.raises(Invalid, match="BYTES"):
        oip.encode({"x": np.array([object()])}, {})


@given(
    st.sampled_from(sorted(set(DATATYPES) - {"BYTES"})).flatmap(
        lambda n: hnp.arrays(DATATYPES[n], hnp.array_shapes(max_dims=3))
    )
)
def test_numbers_survive_the_wire(array: Array) -> None:
    back = oip.unpack(oip.pack("x", array), oip.datatype_of(array), array.shape)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_bytes_survive_the_wire(elements: list[bytes]) -> None:
    array = np.empty(len(elements), object)
    array[:] = elements
    assert oip.unpack(oip.pack("x", array), "BYTES", [len(elements)]).tolist() == elements


def test_row_major_order_is_kept_for_transposed_and_big_endian_arrays() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    np.testing.assert_array_equal(oip.unpack(oip.pack("x", array), "INT32", [3, 2]), array)


def test_bf16_comes_back_as_float32() -> None:
    words = (np.array([1.5, -2.0], np.float32).view(np.uint32) >> 16).astype("<u2")
    assert oip.unpack(words.tobytes(), "BF16", [2]).tolist() == [1.5, -2.0]


def answer(outputs: list[dict[str, Any]], tail: bytes = b"") -> tuple[dict[str, str], bytes]:
    told = {"model_name": "m", "model_version": "3", "parameters": {"model": "cnn@3"}, "id": "r1"}
    header = json.dumps({**told, "outputs": outputs}).encode()
    return {oip.HEADER_LENGTH.lower(): str(len(header))}, header + tail


def test_an_answer_has_arrays_version_and_id() -> None:
    scores = np.array([[0.25, 0.75]], "<f4").tobytes()
    outputs = [
        {"name": "scores", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
        {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["seven"]},
    ]
    got = oip.decode(*answer(outputs, scores))
    assert (got.deployment, got.model, got.version, got.id) == ("m", "cnn@3", "3", "r1")
    assert got["label"][0] == b"seven"
    assert list(got) == ["scores", "label"]
    assert got.plain() == {"scores": [[0.25, 0.75]], "label": ["seven"]}


def test_nested_and_flat_json_data_are_the_same() -> None:
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]]):
        got = oip.decode(*answer([{"name": "y", "datatype": "INT64", "shape": [2, 2], "data": data}]))
        assert got["y"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b'{"model_name":"m","outputs":[{"name":"y"}]}'])
def test_an_answer_that_is_not_the_protocol_s_is_ours_to_answer_for(body: bytes) -> None:
    with pytest.raises(Internal):
        oip.decode({}, body)


def test_a_truncated_answer_is_noticed() -> None:
    outputs = [{"name": "y", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 9}}]
    with pytest.raises(Internal):
        oip.decode(*answer(outputs, b"\x05\0\0"))


def test_images_are_paths_bytes_or_pillow_images(tmp_path: Path) -> None:
    picture = Image.new("L", (8, 8), 200)
    picture.save(tmp_path / "a.png")
    tensor = oip.image_tensor([tmp_path / "a.png", str(tmp_path / "a.png"), b"raw", picture])
    assert tensor.shape == (4,)
    assert tensor[0] == tensor[1] == (tmp_path / "a.png").read_bytes()
    assert tensor[2] == b"raw"
    assert Image.open(io.BytesIO(tensor[3])).getpixel((0, 0)) == 200
    assert oip.image_tensor(b"one").tolist() == [b"one"]


def test_texts_are_one_or_a_list() -> None:
    assert oip.text_tensor("é").tolist() == ["é".encode()]
    assert oip.text_tensor(["one", b"two"]).tolist() == [b"one", b"two"]
    with pytest.raises(Invalid, match="text or bytes, not int"):
        oip.text_tensor(["one", 2])


@pytest.mark.parametrize("image", ["nowhere.png", 7, np.zeros((8, 8))])
def test_what_is_no_image_is_refused(image: Any) -> None:
    with pytest.raises(Invalid, match="image"):
        oip.image_tensor(image)
