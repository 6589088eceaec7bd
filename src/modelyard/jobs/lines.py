"""JSON lines over sockets and pipes: the one format control, supervisor, launchers and ranks speak among each other.

Bounded on both sides, because one end may run a user's code: a line longer than `LONGEST` ends the conversation.
Kept apart from `types` so that the supervisor and the ranks need nothing but the standard library for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from modelyard.errors import Invalid

LONGEST = 1 << 20


def encode(message: Mapping[str, Any]) -> bytes:
    """One line. Raises `Invalid` where the message is too long or holds something JSON has no word for."""
    try:
        line = json.dumps(message, separators=(",", ":"), allow_nan=True).encode() + b"\n"
    except (TypeError, ValueError) as error:
        raise Invalid(f"Only JSON can be told to the platform: {error}.") from error
    if len(line) > LONGEST:
        raise Invalid(f"A message of {len(line)} bytes is too long: {LONGEST} is the limit. Put it in an output.")
    return line


class LineBuffer:
    """Bytes in, whole messages out; what is incomplete waits for the next bytes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages completed by `data`. Raises `Invalid` on what is no JSON object or is too long."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST:
            raise Invalid(f"A line longer than {LONGEST} bytes was received.")
        return [_object(line) for line in lines if line]


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _object(line: bytes) -> dict[str, Any]:
    try:
        # NaN and Infinity are no JSON, and no float is larger than 1e308: null
        message: Any = json.loads(line, parse_constant=lambda _: None, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise Invalid("A line that is not JSON was received.") from error
    if b"\\ud" in line:  # perhaps half of a character, which no text may hold: a question mark in its place
        message = json.loads(json.dumps(message, ensure_ascii=False).encode(errors="replace"))
    if not isinstance(message, dict):
        raise Invalid("A line that is not a JSON object was received.")
    return message
