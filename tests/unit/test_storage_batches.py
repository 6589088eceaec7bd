"""What is packed comes out again; a batch that ends anywhere else than between two chunks says where."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import Invalid
from modelyard.storage.batches import HEADER, packed, unpacked


def digest(data):
    return hashlib.sha256(data).hexdigest()


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_what_is_packed_comes_out(blobs):
    batch = b"".join(packed(digest(blob), blob) for blob in blobs)
    assert [(name, bytes(data)) for name, data in unpacked(batch)] == [(digest(blob), blob) for blob in blobs]


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=4), st.data())
def test_a_batch_that_ends_early_is_refused(blobs, data):
    whole = b"".join(packed(digest(blob), blob) for blob in blobs)
    ends = {sum(HEADER + len(blob) for blob in blobs[:count]) for count in range(len(blobs))}
    end = data.draw(st.integers(1, len(whole) - 1).filter(lambda at: at not in ends))
    with pytest.raises(Invalid, match="send it whole"):
        list(unpacked(whole[:end]))


def test_the_error_names_the_blob_and_what_is_missing():
    with pytest.raises(Invalid, match=f"ends 2 bytes into the blob {digest(b'four')} of 4"):
        list(unpacked(packed(digest(b"four"), b"four")[:-2]))
    with pytest.raises(Invalid, match=f"of {2**32 - 1}"):
        list(unpacked(b"\0" * 32 + b"\xff" * 4))
