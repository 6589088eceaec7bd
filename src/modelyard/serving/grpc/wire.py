"""The few bytes of protobuf that the gateway reads and writes itself: what a request names, and answers without tensors.

Requests of all methods have the model's name as field 1 and its version as field 2. `names` steps over everything else, so it
costs the same for a megabyte as for a byte, and needs no library. Source: protobuf.dev, Encoding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from modelyard.errors import Invalid

MOST = 4096  # fields of a request, its tensors counted: each costs a step
LONGEST = 1024  # bytes of a name
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


def names(message: bytes) -> tuple[str, str]:
    """(model name, version) of a request; '' for what it does not say. The last of each counts, as everywhere in protobuf.

    Raises `Invalid` for what is no message, and for more than `MOST` fields."""
    found = {1: b"", 2: b""}
    at, end = 0, len(message)
    for _ in range(MOST):
        if at == end:
            return _text(found[1]), _text(found[2])
        tag, at = _varint(message, at, 5)
        number, kind = tag >> 3, tag & 7
        size = _FIXED.get(kind, 0)
        if kind == _VARINT:
            _, at = _varint(message, at, 10)
        elif kind == _BYTES:
            size, at = _varint(message, at, 5)
        elif not size:
            raise _no_message()
        if at + size > end or not number:
            raise _no_message()
        if kind == _BYTES and number in found:
            if size > LONGEST:
                raise Invalid(f"The request names a model with {size} bytes; expected {LONGEST} at most.")
            found[number] = message[at : at + size]
        at += size
    raise Invalid(f"The request has more than {MOST} fields.")


def _varint(message: bytes, at: int, longest: int) -> tuple[int, int]:
    """A number, and where the next thing starts. Those of at most 5 bytes have 32 bits."""
    value = 0
    for shift, byte in enumerate(message[at : at + longest]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            if value >> (32 if longest == 5 else 64):
                break
            return value, at + shift + 1
    raise _no_message()


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Invalid("The request names a model in bytes that are no UTF-8.") from error


def _no_message() -> Invalid:
    return Invalid("The request is not a protobuf message.")


# Answers


def flag(value: bool) -> bytes:
    """ServerLiveResponse, ServerReadyResponse and ModelReadyResponse."""
    return b"\x08\x01" if value else b""


def server(name: str, version: str, extensions: Iterable[str]) -> bytes:
    """ServerMetadataResponse."""
    return _field(1, name) + _field(2, version) + b"".join(_field(3, extension) for extension in extensions)


def model(described: Mapping[str, Any]) -> bytes:
    """ModelMetadataResponse of what OIP says of a model in JSON."""
    parts = [_field(1, described["name"]), *(_field(2, version) for version in described["versions"])]
    parts.append(_field(3, described["platform"]))
    parts += [_field(4, _tensor(tensor)) for tensor in described["inputs"]]
    parts += [_field(5, _tensor(tensor)) for tensor in described["outputs"]]
    return b"".join(parts)


def _tensor(tensor: Mapping[str, Any]) -> bytes:
    shape = b"".join(_number(size % (1 << 64)) for size in tensor["shape"])
    return _field(1, tensor["name"]) + _field(2, tensor["datatype"]) + _field(3, shape)


def _field(number: int, value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return bytes([number << 3 | _BYTES]) + _number(len(data)) + data


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
