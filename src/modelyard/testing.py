"""Published doubles: the same contracts as the real things, in memory, for the product's tests and for yours."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from modelyard.engines.base import ModelCard, TensorCard
from modelyard.errors import Invalid, NotFound
from modelyard.storage.stores import Buffer, check_key
from modelyard.tensors import DATATYPES, Array, Signature, TensorSpec

FAKE_CARD = ModelCard(
    task="tabular-regression",
    engines=("fake",),
    files={},
    inputs=(TensorCard(name="x", datatype="FP32", shape=(-1, 2)),),
    outputs=(TensorCard(name="y", datatype="FP32", shape=(-1, 1)),),
)


class MemoryStore:
    """An object store in a dictionary; passes the contract suite of `storage.ObjectStore`."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put(self, key: str, data: Buffer, *, create: bool = False) -> bool:
        check_key(key)
        with self._lock:
            if create and key in self.objects:
                return False
            self.objects[key] = bytes(data)
            return True

    def get(self, key: str) -> bytes:
        if key not in self.objects:
            raise NotFound(f"There is no object '{key}' in the store.")
        return self.objects[key]

    def get_range(self, key: str, start: int, length: int) -> bytes:
        data = self.get(key)
        if start < 0 or length < 0 or start + length > len(data):
            raise Invalid(f"The range {start}+{length} is not inside an object of {len(data)} bytes.")
        return data[start : start + length]

    def size(self, key: str) -> int | None:
        return len(self.objects[key]) if key in self.objects else None

    def list(self, prefix: str) -> Iterator[str]:
        return iter([key for key in list(self.objects) if key.startswith(f"{prefix.rstrip('/')}/")])

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)


class FakeEngine:
    """A `BatchEngine` without a model: every element of an output's row is the sum of that row over all inputs (of BYTES: of
    their lengths), so that answers tell which row they belong to. `delay` seconds a forward; `failure` is raised by each.
    `batches` lists the rows of every forward."""

    def __init__(
        self, folder: Path = Path(), card: ModelCard = FAKE_CARD, *, delay: float = 0.0, failure: Exception | None = None
    ) -> None:
        self._card = card
        self.delay = delay
        self.failure = failure
        self.batches: list[int] = []
        self.closed = False

    @property
    def signature(self) -> Signature:
        return self._card.signature

    def forward(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        self.batches.append(len(next(iter(batch.values()))))
        time.sleep(self.delay)
        if self.failure is not None:
            raise self.failure
        sums = np.sum([_row_sums(array) for array in batch.values()], axis=0)
        return {spec.name: _filled(spec, sums) for spec in self.signature.outputs}

    def close(self) -> None:
        self.closed = True


def _row_sums(array: Array) -> Array:
    numbers = np.vectorize(len, otypes=[np.int64])(array) if array.dtype == object else array
    sums: Array = numbers.reshape(len(array), -1).sum(axis=1, dtype=np.float64)
    return sums


def _filled(spec: TensorSpec, sums: Array) -> Array:
    """`sums` [n] over the shape of an output; open dims past the batch are 1."""
    rest = tuple(abs(dim) for dim in (spec.shape or (-1,))[1:])
    values = np.broadcast_to(sums.reshape(-1, *(1 for _ in rest)), (len(sums), *rest))
    if spec.datatype == "BYTES":
        return np.array([f"{value:g}".encode() for value in values.ravel()], dtype=object).reshape(values.shape)
    return values.astype(DATATYPES[spec.datatype])
