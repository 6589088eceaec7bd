"""The OIP door: every datatype there and back, and for each mistake what was given and what is expected."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelyard.errors import Invalid, NotFound
from modelyard.serving.oip import HEADER_LENGTH, OIP
from modelyard.tensors import DATATYPES, Signature, TensorSpec

TWO = Signature(
    (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("k", "INT64", (-1,))),
    (TensorSpec("y", "FP32", (-1, 1)), TensorSpec("label", "BYTES", (-1,))),
)
ONE = Signature((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 1)),))
X = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2.5, -3e2]}
NUMERIC = [name for name in DATATYPES if name != "BYTES"]


def decode(body, signature=ONE, head=None):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return OIP.codec(signature).decode(head or {}, raw)


def refusal(body, signature=ONE, head=None):
    with pytest.raises(Invalid) as caught:
        dict(decode(body, signature, head).inputs)  # a number out of range is found when it is made one
    return caught.value.message


def one(**changed):
    return {"inputs": [{**X, **changed}]}


def binary(header, *blobs):
    text = json.dumps(header).encode()
    return b"".join([text, *blobs]), {HEADER_LENGTH: str(len(text))}


def of(datatype, shape=None):
    return Signature((TensorSpec("t", datatype, shape),), (TensorSpec("t", datatype, shape),))


# The envelope


@pytest.mark.parametrize(
    ("path", "deployment", "version"),
    [
        (b"/v2/models/digits/infer", "digits", None),
        (b"/v2/models/digits/versions/3/infer", "digits", "3"),
        (b"/v2/models/other.digits/infer", "other.digits", None),
        (b"/v2/models/%64igits/infer", "digits", None),
        (b"/v2/models/%2e%2e%2fx/infer", "../x", None),
    ],
)
def test_envelope(path, deployment, version):
    envelope = OIP.envelope(b"POST", path)
    assert (envelope.deployment, envelope.version, envelope.verb) == (deployment, version, "infer")


@pytest.mark.parametrize(
    "path",
    [
        b"/v2/models/digits",
        b"/v2/models//infer",
        b"/v2/models/a/b/infer",
        b"/v2/models/a/infer/",
        b"//v2/models/a/infer",
        b"/V2/models/a/infer",
        b"/v2/models/a/versions//infer",
        b"/api/v2/models/a/infer",
        b"/v2/models/a/../infer/x",
    ],
)
def test_other_paths_are_not_calls(path):
    assert OIP.envelope(b"POST", path) is None


def test_only_post_is_a_call():
    assert OIP.envelope(b"GET", b"/v2/models/digits/infer") is None


def test_error_body():
    assert json.loads(OIP.error(NotFound('no "x"'))) == {"error": 'no "x"'}


# JSON


def test_flat_and_nested_data_are_the_same():
    flat = decode(one(shape=[2, 3], data=[1, 2, 3, 4, 5, 6])).inputs["x"]
    nested = decode(one(shape=[2, 3], data=[[1, 2, 3], [4, 5, 6]])).inputs["x"]
    np.testing.assert_array_equal(flat, nested)
    assert flat.shape == (2, 3)
    assert flat.dtype == np.float32


@given(st.sampled_from(NUMERIC).filter(lambda n: n != "FP16"), st.data())
def test_numbers_survive_json(datatype, data):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    kinds = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else {}
    array = data.draw(hnp.arrays(DATATYPES[datatype], shape, elements=hnp.from_dtype(DATATYPES[datatype], **kinds)))
    nested = data.draw(st.booleans())
    body = {"inputs": [{"name": "t", "shape": list(shape), "datatype": datatype,
                        "data": (array if nested else array.ravel()).tolist()}]}  # fmt: skip
    codec = OIP.codec(of(datatype))
    question = codec.decode({}, json.dumps(body).encode())
    np.testing.assert_array_equal(question.inputs["t"], array)
    head, answer = codec.encode(question, "m", "1", {"t": question.inputs["t"]})
    assert head is None
    [output] = json.loads(answer)["outputs"]
    back = np.array(output["data"], DATATYPES[datatype]).reshape(output["shape"])
    np.testing.assert_array_equal(back, array)
    assert (output["name"], output["datatype"]) == ("t", datatype)


def test_text_in_json_is_utf8():
    array = decode({"inputs": [{"name": "t", "shape": [2], "datatype": "BYTES", "data": ["héé", ""]}]}, of("BYTES")).inputs["t"]
    assert array.tolist() == ["héé".encode(), b""]
    assert array.dtype == object


def test_the_answer_echoes_what_was_asked():
    body = {
        "id": 'a"b',
        "inputs": [X, {"name": "k", "shape": [1], "datatype": "INT64", "data": [7]}],
        "outputs": [{"name": "label"}],
    }
    codec = OIP.codec(TWO, "cnn@3")
    question = codec.decode({}, json.dumps(body).encode())
    assert question.outputs == ("label",)
    label = np.array([b"seven"], object)
    _, answer = codec.encode(question, "digits", "3", {"y": np.ones((1, 1), np.float32), "label": label})
    assert json.loads(answer) == {
        "model_name": "digits",
        "model_version": "3",
        "parameters": {"model": "cnn@3"},
        "id": 'a"b',
        "outputs": [{"name": "label", "shape": [1], "datatype": "BYTES", "data": ["seven"]}],
    }


def test_parameters_are_kept():
    assert decode({**one(), "parameters": {"a": 1, "b": "c", "d": True}}).parameters == {"a": 1, "b": "c", "d": True}


def test_no_number_is_null_in_json_and_itself_in_binary():
    values = np.array([[np.nan], [np.inf], [-np.inf]], np.float32)
    codec = OIP.codec(ONE)
    _, text = codec.encode(codec.decode({}, json.dumps(one()).encode()), "m", "1", {"y": values})
    assert json.loads(text)["outputs"][0]["data"] == [None, None, None]
    asked = {**one(), "parameters": {"binary_data_output": True}}
    head, raw = codec.encode(codec.decode({}, json.dumps(asked).encode()), "m", "1", {"y": values})
    np.testing.assert_array_equal(np.frombuffer(raw[int(head[HEADER_LENGTH]) :], "<f4"), values.ravel())


@pytest.mark.parametrize("binary_output", [False, True])
@pytest.mark.parametrize(
    "lay",
    [np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2], lambda a: a[::-1].copy()[::-1], lambda a: a.T.copy().T],
)
def test_the_wire_is_row_major_however_an_output_lies_in_memory(lay, binary_output):
    array = lay(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert not array.flags.c_contiguous
    codec = OIP.codec(of("FP32", (-1, 3)))
    body = {"inputs": [{"name": "t", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    question = codec.decode({}, json.dumps({**body, "parameters": {"binary_data_output": binary_output}}).encode())
    head, answer = codec.encode(question, "m", "1", {"t": array})
    size = int(head[HEADER_LENGTH]) if binary_output else len(answer)
    [output] = json.loads(answer[:size])["outputs"]
    assert output["shape"] == [2, 3]
    data = np.frombuffer(answer[size:], "<f4").tolist() if binary_output else output["data"]
    assert data == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("binary_output", [False, True])
def test_words_are_row_major_too(binary_output):
    array = np.asfortranarray(np.array([["a", "b", "c"], ["d", "e", "f"]], object))
    codec = OIP.codec(of("BYTES", (-1, 3)))
    body = {"inputs": [{"name": "t", "shape": [1, 3], "datatype": "BYTES", "data": ["x", "y", "z"]}]}
    question = codec.decode({}, json.dumps({**body, "parameters": {"binary_data_output": binary_output}}).encode())
    head, answer = codec.encode(question, "m", "1", {"t": array})
    if binary_output:
        assert answer[int(head[HEADER_LENGTH]) :] == b"".join(b"\1\0\0\0" + bytes([letter]) for letter in b"abcdef")
    else:
        assert json.loads(answer)["outputs"][0]["data"] == list("abcdef")


# Binary


@given(st.sampled_from([*NUMERIC, "BF16"]), st.data())
def test_binary_there_and_back(datatype, data):
    dtype = np.dtype(np.uint16) if datatype == "BF16" else DATATYPES[datatype]
    array = data.draw(hnp.arrays(dtype, hnp.array_shapes(max_dims=3, max_side=4)))
    blob = array.tobytes()
    header = {
        "inputs": [
            {"name": "t", "shape": list(array.shape), "datatype": datatype, "parameters": {"binary_data_size": len(blob)}}
        ],
        "outputs": [{"name": "t", "parameters": {"binary_data": True}}],
    }
    body, head = binary(header, blob)
    codec = OIP.codec(of(datatype))
    question = codec.decode(head, body)
    np.testing.assert_array_equal(question.inputs["t"], array)
    out_head, answer = codec.encode(question, "m", "1", {"t": array})
    length = int(out_head[HEADER_LENGTH])
    assert answer[length:] == blob
    [output] = json.loads(answer[:length])["outputs"]
    assert output["parameters"] == {"binary_data_size": len(blob)}
    assert "data" not in output


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_binary_bytes_there_and_back(elements):
    blob = b"".join(struct.pack("<I", len(e)) + e for e in elements)
    header = {
        "inputs": [{"name": "t", "shape": [len(elements)], "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}],
        "parameters": {"binary_data_output": True},
    }
    body, head = binary(header, blob)
    codec = OIP.codec(of("BYTES"))
    question = codec.decode(head, body)
    assert question.inputs["t"].tolist() == elements
    out_head, answer = codec.encode(question, "m", "1", {"t": question.inputs["t"]})
    assert answer[int(out_head[HEADER_LENGTH]) :] == blob


def test_json_and_binary_inputs_mix():
    header = {"inputs": [X, {"name": "k", "shape": [1], "datatype": "INT64", "parameters": {"binary_data_size": 8}}]}
    body, head = binary(header, struct.pack("<q", 9))
    question = decode(body, TWO, head)
    assert question.inputs["k"].tolist() == [9]
    assert question.inputs["x"].tolist() == [[1, 2.5, -300]]


def test_a_cache_may_be_of_no_tokens():
    cache = TensorSpec("past_key_values.0.key", "FP32", (-1, 2, -1, 4))
    signature = Signature((TensorSpec("x", "FP32", (-1, 3)), cache), ONE.outputs)
    empty = {"name": cache.name, "shape": [1, 2, 0, 4], "datatype": "FP32"}
    body, head = binary({"inputs": [X, {**empty, "parameters": {"binary_data_size": 0}}]})
    for made in (decode({"inputs": [X, {**empty, "data": []}]}, signature), decode(body, signature, head)):
        assert made.inputs[cache.name].shape == (1, 2, 0, 4)
    for shape in ([0, 2, 0, 4], [1, 0, 1, 4], [1, 2, -1, 4]):
        assert f"has shape {shape}; expected" in refusal({"inputs": [X, {**empty, "shape": shape, "data": []}]}, signature)


def test_a_byte_that_is_no_bool_is_true():
    header = {"inputs": [{"name": "t", "shape": [3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}}]}
    body, head = binary(header, b"\x00\x01\x07")
    assert decode(body, of("BOOL"), head).inputs["t"].tolist() == [False, True, True]


# Mistakes


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not valid JSON"),
        (b"hello", "not valid JSON"),
        (b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,NaN,2]}]}', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "Expected `object`, got `array`"),
        ({}, "missing required field `inputs`"),
        ({"inputs": {}}, "Expected `array`"),
        ({"inputs": [{"name": 1}]}, "Expected `str`, got `int`"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "data": []}]}, "missing required field `shape`"),
        (b'{"inputs":[{"name":' + b"[" * 100_000, "Expected `str`, got `array`"),
        (b'{"x":' + b"[" * 100_000, "nested too deeply"),
        ({**one(), "parameters": {"a": {"b": 1}}}, "not an inference request"),
        ({"inputs": []}, "Input missing: expected also 'x' FP32 [-1, 3]"),
        (one(name="z"), "Input 'z' is not known; expected: 'x' FP32 [-1, 3]"),
        ({"inputs": [X, X]}, "Input 'x' is given twice"),
        (one(datatype="FP64"), "Input 'x' has datatype 'FP64'; expected FP32"),
        (one(datatype="float"), "Input 'x' has datatype 'float'; expected FP32"),
        (one(shape=[3]), "Input 'x' has shape [3]; expected [-1, 3]"),
        (one(shape=[1, 4]), "Input 'x' has shape [1, 4]; expected [-1, 3]"),
        (one(shape=[1, 3, 1]), "Input 'x' has shape [1, 3, 1]; expected [-1, 3]"),
        (one(shape=[-1, 3]), "shape [-1, 3]; expected sizes from 1"),
        (one(shape=[0, 3], data=[]), "shape [0, 3]; expected sizes from 1"),
        (one(shape=[2**70, 3]), "expected sizes from 1"),
        (one(shape=[2**40, 3]), "Input 'x' has 3 elements; expected 3298534883328, the product of shape [1099511627776, 3]"),
        (one(shape=[1.5, 3]), "Expected `int`, got `float`"),
        (one(data=[1, 2]), "Input 'x' has 2 elements; expected 3, the product of shape [1, 3]"),
        (one(data=[]), "Input 'x' has 0 elements; expected 3"),
        (one(data=[[1, 2]]), "Input 'x' has 2 elements in dim 1; expected 3"),
        (one(shape=[2, 3], data=[[1, 2, 3], [4, 5]]), "Input 'x' has 2 elements in dim 1; expected 3"),
        (one(shape=[2, 3], data=[[1, 2, 3], 4]), "Input 'x' has no list in dim 1"),
        (one(data=[[[1, 2, 3]]]), "Input 'x' has 1 elements in dim 1; expected 3"),
        (one(data=[[[1], [2], [3]]]), "Input 'x' is FP32, but an element is not"),
        (one(data=["1", "2", "3"]), "Expected `float`, got `str`"),
        (one(data=[1, None, 3]), "Expected `float`, got `null`"),
        (one(data=[True, 2, 3]), "Expected `float`, got `bool`"),
        (one(data={"a": 1}), "Input 'x' has data that is no list"),
        (one(data=5), "Input 'x' has data that is no list"),
        ({"inputs": [{k: v for k, v in X.items() if k != "data"}]}, "Input 'x' has no data"),
        (one(data=[1, 1e39, 3]), "outside the range of FP32"),
        (one(shape=[20, 3], data=[0.0] * 59 + [-1e300]), "outside the range of FP32"),
        (b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,1e999,2]}]}', "not valid JSON"),
        ({**one(), "outputs": [{"name": "q"}]}, "Output 'q' is not known; expected one of 'y'"),
        ({**one(), "outputs": [{"name": "y"}, {"name": "y"}]}, "Output 'y' is asked for twice"),
        ({**one(), "outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classification extension is not offered"),
    ],
)
def test_a_mistake_is_named(body, says):
    assert says in refusal(body)


def test_deep_data_is_refused():
    deep = b"[" * 50_000 + b"1" + b"]" * 50_000
    body = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":%b}]}' % deep
    assert "nested too deeply" in refusal(body)


@pytest.mark.parametrize(
    ("datatype", "value"), [("INT8", 300), ("UINT8", -1), ("INT64", 2**63), ("UINT64", 2**64), ("INT32", 10**40)]
)
def test_integers_out_of_range(datatype, value):
    body = {"inputs": [{"name": "t", "shape": [1], "datatype": datatype, "data": [value]}]}
    assert f"outside the range of {datatype}" in refusal(body, of(datatype))


def test_a_fraction_is_no_integer():
    body = {"inputs": [{"name": "t", "shape": [1], "datatype": "INT32", "data": [1.5]}]}
    assert "Expected `int`, got `float`" in refusal(body, of("INT32"))


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_travel_as_binary_only(datatype):
    body = {"inputs": [{"name": "t", "shape": [1], "datatype": datatype, "data": [1]}]}
    assert "JSON cannot carry" in refusal(body, of(datatype))
    signature = Signature(ONE.inputs, of(datatype).outputs)
    assert "ask for it with binary_data" in refusal(one(), signature)


def test_any_rank_is_bounded():
    shape = [1] * 33
    body = {"inputs": [{"name": "t", "shape": shape, "datatype": "FP32", "data": [1]}]}
    assert "33 dims; expected 32 at most" in refusal(body, of("FP32"))
    assert decode({"inputs": [{**body["inputs"][0], "shape": [1] * 32}]}, of("FP32")).inputs["t"].ndim == 32


@pytest.mark.parametrize("stated", ["-1", "0", "999", "1e3", "", "٣", "9" * 40])
def test_a_wrong_header_length(stated):
    assert "Inference-Header-Content-Length" in refusal(json.dumps(one()).encode(), ONE, {HEADER_LENGTH: stated})


@pytest.mark.parametrize(
    ("parameters", "blob", "says"),
    [
        ({"binary_data_size": 12}, b"x" * 11, "states 12 binary bytes; 11 are left"),
        ({"binary_data_size": 11}, b"x" * 11, "has 11 bytes; expected 12 for shape [1, 3] of FP32"),
        ({"binary_data_size": -1}, b"", "states -1 binary bytes"),
        ({"binary_data_size": 12}, b"x" * 13, "1 bytes follow the last binary tensor"),
        ({"binary_data_size": "12"}, b"x" * 12, "Expected `int | null`, got `str`"),
    ],
)
def test_binary_sizes_that_disagree(parameters, blob, says):
    given = {k: v for k, v in X.items() if k != "data"}
    body, head = binary({"inputs": [{**given, "parameters": parameters}]}, blob)
    assert says in refusal(body, ONE, head)


def test_data_and_binary_both():
    body, head = binary(one(parameters={"binary_data_size": 12}), b"x" * 12)
    assert "both data and binary_data_size" in refusal(body, ONE, head)


@pytest.mark.parametrize(
    "blob", [b"\x05\x00\x00\x00abc", b"\x01\x00", b"\xff\xff\xff\xff", b"\x00" * 12, b"\x01\x00\x00\x00a", b""]
)
def test_bytes_framing_that_disagrees(blob):
    given = {"name": "t", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}
    body, head = binary({"inputs": [given]}, blob)
    assert "Input 't'" in refusal(body, of("BYTES"), head)


def test_bytes_that_are_no_text_need_binary():
    codec = OIP.codec(of("BYTES"))
    question = codec.decode({}, b'{"inputs":[{"name":"t","shape":[1],"datatype":"BYTES","data":["a"]}]}')
    with pytest.raises(Invalid, match="not text"):
        codec.encode(question, "m", "1", {"t": np.array([b"\xff"], object)})


@given(st.binary(max_size=200))
def test_no_bytes_do_worse_than_a_refusal(body):
    with pytest.raises(Invalid):
        decode(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "shape", "data", "a"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {"name": st.just("x") | JSON, "shape": st.just([1, 3]) | JSON, "datatype": st.just("FP32") | JSON, "data": JSON}
    )
)
def test_no_json_does_worse_than_a_refusal(given_input):
    try:
        found = decode({"inputs": [given_input]}).inputs["x"]  # numbers that stay a list are looked at late
    except Invalid:
        return
    assert found.shape == (1, 3)
