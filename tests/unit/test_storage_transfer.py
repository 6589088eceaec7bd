"""Pieces: hashed before they are given out, and hashed again while they are."""

import hashlib

import pytest

from modelyard.errors import Damaged
from modelyard.storage import transfer
from modelyard.testing import MemoryStore

DATA = bytes(range(256)) * (2 * transfer.PIECE // 256) + b"tail"
DIGEST = hashlib.sha256(DATA).hexdigest()


class Reads(MemoryStore):
    """Counts readings, and after `sound` of them flips a byte of what it gives."""

    def __init__(self, sound=10**9):
        super().__init__()
        self.count, self.sound = 0, sound

    def get_range(self, key, start, length):
        self.count += 1
        data = super().get_range(key, start, length)
        return data if self.count <= self.sound else bytes([data[0] ^ 1]) + data[1:]


def stored(sound=10**9):
    store = Reads(sound)
    store.put("k", DATA)
    return store


@pytest.mark.parametrize(
    ("start", "stop"), [(0, len(DATA)), (5, 6), (transfer.PIECE - 1, transfer.PIECE + 1), (len(DATA) - 2, len(DATA)), (7, 7)]
)
def test_any_part_of_a_blob_comes_in_pieces(start, stop):
    pieces = list(transfer.verified(stored(), "k", DIGEST, len(DATA), start, stop))
    assert b"".join(pieces) == DATA[start:stop]
    assert all(0 < len(piece) <= transfer.PIECE for piece in pieces)


def test_not_a_byte_of_a_damaged_blob_is_given_out():
    store = stored()
    store.put("k", DATA[:-1] + b"!")
    with pytest.raises(Damaged):
        next(transfer.verified(store, "k", DIGEST, len(DATA), 0, 1))
    assert not transfer.is_whole(store, "k", DIGEST, len(DATA))


def test_a_blob_that_turns_bad_between_the_readings_never_comes_whole():
    given = []
    with pytest.raises(Damaged):
        given.extend(transfer.verified(stored(sound=4), "k", DIGEST, len(DATA), 0, len(DATA)))
    assert b"".join(given) != DATA


def test_what_is_there_whole_is_not_written_again_and_what_is_not_is():
    store = stored()
    before = store.objects["k"]
    transfer.store_blob(store, "k", DIGEST, bytearray(DATA))
    assert store.objects["k"] is before
    store.put("k", b"damaged")
    transfer.store_blob(store, "k", DIGEST, DATA)
    assert store.get("k") == DATA
