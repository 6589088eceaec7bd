"""Published doubles: the same contracts as the real things, in memory, for the product's tests and for yours."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from modelyard.errors import Invalid, NotFound
from modelyard.storage.stores import Buffer, check_key


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
