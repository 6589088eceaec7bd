"""Files of GGUF for an engine that does not know all kinds of tensors: what is Q5_0 becomes Q8_0, which has all its codes and
the same scales, so that no weight changes. It knows no engine.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: a head, facts, a line a tensor, then the tensors, each
aligned. Head and facts are copied as they are.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from modelyard.tensors import Array

_OLD, _NEW = 22, 34  # bytes of 32 weights
_FIVE, _EIGHT = gguf.GGMLQuantizationType.Q5_0, gguf.GGMLQuantizationType.Q8_0


def widen(path: Path, out: Path) -> bool:
    """Write `path` to `out`, its Q5_0 as Q8_0. False: there is none, and nothing was written. Raises `ValueError` for what is
    no GGUF."""
    reader = gguf.GGUFReader(path)
    tensors = reader.tensors
    if all(tensor.tensor_type != _FIVE for tensor in tensors):
        return False
    lines, at = bytearray(), 0
    for tensor in tensors:
        lines += _line(tensor, at)
        size = tensor.data.nbytes
        at += _padded(size // _OLD * _NEW if tensor.tensor_type == _FIVE else size, reader.alignment)
    before = reader.data[: tensors[0].field.offset].tobytes()
    with out.open("wb") as file:
        file.write(before + lines)
        file.write(bytes(_padded(file.tell(), reader.alignment) - file.tell()))
        for tensor in tensors:
            array = _eight(tensor.data) if tensor.tensor_type == _FIVE else tensor.data
            file.write(np.ascontiguousarray(array).data)
            file.write(bytes(_padded(array.nbytes, reader.alignment) - array.nbytes))
    return True


def _line(tensor: Any, at: int) -> bytes:
    """What the file says of a tensor: its name and shape as they are, its kind, and where it lies."""
    *named, _, _ = tensor.field.parts
    kind = _EIGHT if tensor.tensor_type == _FIVE else tensor.tensor_type
    return b"".join(part.tobytes() for part in named) + struct.pack("<IQ", kind, at)


def _eight(packed: Array) -> Array:
    """Blocks of a scale (2 bytes), the fifth bits (4) and the low four (16), of 32 codes from -16 → of a scale and 32 INT8."""
    blocks = packed.reshape(-1, _OLD)
    fifth = np.unpackbits(blocks[:, 2:6], axis=-1, bitorder="little") << 4
    low = np.concatenate([blocks[:, 6:] & 15, blocks[:, 6:] >> 4], axis=-1)
    codes = (low | fifth).astype(np.int8) - np.int8(16)
    wide = np.concatenate([blocks[:, :2], codes.view(np.uint8)], axis=-1)
    return wide.reshape(*packed.shape[:-1], packed.shape[-1] // _OLD * _NEW)


def _padded(size: int, alignment: int) -> int:
    return -(-size // int(alignment)) * int(alignment)
