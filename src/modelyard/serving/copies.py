"""Copies of calls for a release on trial: what travels, and how the replica compares its answer with the one that was given.

The gateway (`trials`) sends a call again, with the answer that its caller got behind the body. In the replica `Comparing` is
there in place of the door's codec: the call is computed like any other, and what leaves is two numbers instead of an answer.
Both answers are read as a caller would read them: what the wire cannot tell apart (NaN and infinity, in JSON) is the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import msgspec

from modelyard.errors import Invalid
from modelyard.serving import coding
from modelyard.serving.agreement import disagreeing
from modelyard.serving.doors import Codec, Question
from modelyard.tensors import Array

COMPARE = "compare"
_SIZE, _HEAD = "x-answer-size", "x-answer-"
_LARGEST = 64 << 20  # bytes of an answer unpacked
_NOT_COPIED = frozenset({coding.LEAST, "accept"})


class Compared(msgspec.Struct, array_like=True):
    """What a replica tells of a copy: rows compared, and rows in which the two answers disagree."""

    rows: int
    disagreeing: int


class Reads(Protocol):
    """A codec that reads its own answers, too."""

    def answered(self, head: Mapping[str, str], body: bytes) -> dict[str, Array]: ...


def copied_head(head: Mapping[str, str], answer_head: Mapping[str, str] | None, size: int) -> dict[str, str]:
    """The head of a copy: the call's, the answer's under names of their own, and its size, for it follows the body."""
    theirs = {f"{_HEAD}{name}": value for name, value in (answer_head or {}).items()}
    ours = {name: value for name, value in head.items() if name not in _NOT_COPIED}
    return {**ours, **theirs, _SIZE: str(size)}


class _Wire(NamedTuple):
    """What the comparison needs: what the codec itself needs, and the answer that was given, None where nobody can read it."""

    codec: Any
    theirs: Mapping[str, Array] | None


class Comparing:
    """A codec whose answers tell how far the model's are from those that were given. `task` says what disagreeing means."""

    def __init__(self, codec: Codec, task: str) -> None:
        self._codec, self._task = codec, task

    def decode(self, head: Mapping[str, str], body: bytes) -> Question:
        size = int(head[_SIZE])
        question = self._codec.decode(head, body[: len(body) - size])
        said = {name.removeprefix(_HEAD): value for name, value in head.items() if name.startswith(_HEAD)}
        return replace(question, wire=_Wire(question.wire, self._read(said, body[len(body) - size :])))

    def encode(
        self, question: Question, deployment: str, version: str, outputs: Mapping[str, Array]
    ) -> tuple[dict[str, str] | None, bytes]:
        theirs = question.wire.theirs
        if theirs is None:
            return None, msgspec.json.encode(Compared(0, 0))
        plain = replace(question, wire=question.wire.codec)
        head, body = self._codec.encode(plain, deployment, version, outputs)
        ours = self._read(head or {}, body) or {}
        return None, msgspec.json.encode(Compared(*disagreeing(self._task, ours, theirs)))

    def _read(self, head: Mapping[str, str], body: bytes) -> Mapping[str, Array] | None:
        """The answer that was given: nothing that this model could say, where its outputs have other names or types."""
        answered = getattr(self._codec, "answered", None)
        if answered is None:
            return None
        try:
            if head.get("content-encoding") == "gzip":
                body = zlib.decompressobj(31).decompress(body, _LARGEST)
            return dict(answered(head, body))
        except (Invalid, zlib.error):
            return {}
