"""Arrays and the protocol's names for their types."""

from __future__ import annotations

import numpy as np
import pytest

from modelyard.errors import Invalid
from modelyard.tensors import DATATYPES, Call, Reply, TensorSpec, datatype_of


@pytest.mark.parametrize("name", DATATYPES)
def test_every_datatype_is_named_by_its_array_whatever_the_byte_order(name: str):
    array = np.zeros(2, DATATYPES[name])
    assert datatype_of(array) == name
    if name != "BYTES":
        assert datatype_of(array.astype(array.dtype.newbyteorder(">"))) == name


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "<U3", "S3", [("a", "f4")]])
def test_types_that_the_protocol_lacks_are_refused_by_name(dtype: object):
    with pytest.raises(Invalid, match="cannot be sent"):
        datatype_of(np.zeros(1, dtype))


def test_specs_in_json():
    assert TensorSpec("x", "FP32", (-1, 3)).to_json() == {"name": "x", "datatype": "FP32", "shape": [-1, 3]}
    assert TensorSpec("x", "FP32", ()).to_json()["shape"] == []
    assert TensorSpec("x", "FP32", None).to_json()["shape"] == [-1]


def test_values_do_not_change_and_share_nothing():
    one, two = Call("1", "p", "d", "1", ()), Call("2", "p", "d", "1", ())
    assert one.parameters is not two.parameters
    with pytest.raises(AttributeError):
        one.grant = 5
    assert Reply((), 3).units == 3
