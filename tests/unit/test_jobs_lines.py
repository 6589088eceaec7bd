"""JSON lines: whole messages out of any pieces, and bounds on both sides."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import Invalid
from modelyard.jobs.lines import LONGEST, LineBuffer, encode

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=5), st.data())
def test_messages_survive_any_cutting(messages: list[dict[str, Any]], data: st.DataObject) -> None:
    wire = b"".join(map(encode, messages))
    buffer, heard = LineBuffer(), []
    while wire:
        cut = data.draw(st.integers(1, len(wire)))
        heard += buffer.feed(wire[:cut])
        wire = wire[cut:]
    assert heard == messages


@pytest.mark.parametrize("wrong", [b"{", b"[1]", b"7", b'"x"', b"nonsense", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_object_is_refused(wrong: bytes) -> None:
    with pytest.raises(Invalid):
        LineBuffer().feed(wrong + b"\n")


def test_a_line_without_end_is_refused() -> None:
    buffer = LineBuffer()
    for _ in range(10):
        buffer.feed(b"x" * (LONGEST // 10))
    with pytest.raises(Invalid, match="longer than"):
        buffer.feed(b"x" * 100)


def test_what_json_has_no_word_for_becomes_null() -> None:
    assert LineBuffer().feed(b'{"a":NaN,"b":-Infinity}\n') == [{"a": None, "b": None}]


def test_half_characters_become_question_marks() -> None:
    assert LineBuffer().feed(b'{"a":"x\\ud800y"}\n') == [{"a": "x?y"}]
    assert LineBuffer().feed(b'{"a":"\\ud83d\\ude00"}\n') == [{"a": "\N{GRINNING FACE}"}]


@pytest.mark.parametrize("wrong", [{"a": object()}, {"a": b"x"}, {"a": "x" * LONGEST}])
def test_what_cannot_be_said_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        encode(wrong)
