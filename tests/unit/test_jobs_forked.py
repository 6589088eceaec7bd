"""What a rank prints and says, over pipes of this process: lines whatever their pieces, bounded, readable."""

import os
import socket
from collections.abc import Iterator

import pytest

from modelyard.jobs.forked import Forked


class Pair:
    def __init__(self) -> None:
        near, self.far = socket.socketpair()
        near.setblocking(False)
        read, self.write = os.pipe()
        os.set_blocking(read, False)
        self.rank = Forked(0, os.getpid(), os.pidfd_open(os.getpid()), near, read)

    def prints(self, data: bytes) -> list[str] | None:
        os.write(self.write, data)
        return self.rank.printed()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.far.close()
    os.close(pair.write)
    if not pair.rank.closed:
        pair.rank.close()


def test_lines_are_put_together(pair: Pair) -> None:
    assert pair.rank.printed() is None
    assert pair.prints(b"one\ntw") == ["one"]
    assert pair.prints(b"o\n\nthree") == ["two", ""]
    assert pair.rank.rest() == ["three"]
    assert pair.rank.rest() == []


@pytest.mark.parametrize(
    ("printed", "shown"),
    [(b"a\xffb", "a�b"), (b"10%\r20%\r30%", "30%"), (b"30%\r", "30%"), (b"a\0b", "a�b"), ("ä€".encode(), "ä€")],
)
def test_lines_are_shown_as_a_terminal_would(pair: Pair, printed: bytes, shown: str) -> None:
    assert pair.prints(printed + b"\n") == [shown]


def test_long_lines_come_in_pieces(pair: Pair) -> None:
    assert pair.prints(b"x" * 20_000 + b"\n") == ["x" * 8192, "x" * 8192, "x" * 3616]
    assert "".join(pair.prints(b"y" * 10_000) or []) == "y" * 10_000


def test_a_closed_output_is_noticed(pair: Pair) -> None:
    kept = os.dup(pair.write)
    os.close(pair.write)
    pair.write = kept
    assert pair.prints(b"last\n") == ["last"]
    os.close(kept)
    assert pair.rank.printed() is None
    assert pair.rank.mute
    pair.write = os.open(os.devnull, os.O_RDONLY)


def test_messages_and_the_end_of_them(pair: Pair) -> None:
    assert pair.rank.hear() == []
    pair.far.sendall(b'{"a":1}\n{"b":')
    assert pair.rank.hear() == [{"a": 1}]
    pair.far.close()
    assert pair.rank.hear() is None


def test_once_closed_nothing_is_read(pair: Pair) -> None:
    pair.rank.close()
    assert (pair.rank.hear(), pair.rank.printed()) == (None, None)
